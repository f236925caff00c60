"""A key-value cache with room for the tokens to come, so that a step copies none of those before it."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, ``(rows, heads, tokens, size)``, at the beginning of a longer piece of memory.

    The layer of transformers joins old and new, which copies all that was read before for each token of an answer.

    Args:
        layer: Layer to go on from.
        rows: Numbers of its rows, in any order and as often as wanted; integers on its device.
        room: Most tokens to come.
    """

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        before: Any = layer
        self.device = before.keys.device
        self.is_initialized = True
        self._length = int(before.keys.shape[-2])
        self._keys, self._values = (_moved(states, rows, room) for states in (before.keys, before.values))
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values behind those that are there; return all.

        Raises:
            IndexError: If they are more than there is room for.
        """
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._keys.shape[-2]:
            raise IndexError(f"There is room for {self._keys.shape[-2]} tokens, got {self._length}.")
        self._keys[..., start : self._length, :] = key_states
        self._values[..., start : self._length, :] = value_states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, and the room."""
        room = self._keys.shape[-2] - self._length
        self._keys, self._values = (_moved(states, indices, room) for states in self._show())
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (states[..., : self._length, :] for states in (self._keys, self._values))
        return self.keys, self.values


def make_room(cache: Any, rows: Tensor, room: int) -> bool:
    """Keep some rows of a cache, with room for more tokens.

    Args:
        cache: Cache of transformers; changed in place.
        rows: Numbers of its rows, in any order and as often as wanted; integers on its device.
        room: Most tokens to come.

    Returns:
        Whether it could be done; not if a layer is another than the plain one, which keeps all that was read.
    """
    layers = getattr(cache, "layers", [None])
    if not all(type(layer) is DynamicLayer for layer in layers):
        return False
    for place, layer in enumerate(layers):
        cache.layers[place] = GrowingLayer(layer, rows, room)
    return True


def _moved(states: Tensor, rows: Tensor, room: int) -> Tensor:
    """Return rows of ``(rows, heads, tokens, size)`` in memory with room for more tokens."""
    _, heads, tokens, size = states.shape
    moved = states.new_empty(len(rows), heads, tokens + room, size)
    moved[..., :tokens, :] = states[rows]
    return moved
