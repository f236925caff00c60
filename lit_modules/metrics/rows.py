"""Base of the metrics that keep a row of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RowMetric(Metric):
    """Metric that keeps a few tensors of each row, gathered from all processes.

    Args:
        states: Type of each state and width of its rows; 0 for numbers.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    def __init__(self, states: Mapping[str, tuple[torch.dtype, int]]) -> None:
        super().__init__()
        self._state_shapes = dict(states)
        for name in self._state_shapes:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; called by :meth:`compute`."""
        for name in self._state_shapes:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                self.append(name, [])  # torchmetrics would gather float32 from a rank without rows
        super().sync(*args, **kwargs)

    def append(self, name: str, values: Any) -> None:
        """Add rows to a state."""
        dtype, width = self._state_shapes[name]
        tensor = torch.as_tensor(values, dtype=dtype, device=self.device)
        getattr(self, name).append(tensor.reshape(-1, width) if width else tensor)

    def append_texts(self, name: str, texts: Sequence[str]) -> None:
        """Add texts, none with a zero, to a state of bytes."""
        self.append(name, list("".join(f"{text}\0" for text in texts).encode()))

    def all_rows(self, name: str) -> Tensor:
        """Return all rows of a state."""
        state: Any = getattr(self, name)
        dtype, width = self._state_shapes[name]
        shape = (0, width) if width else (0,)
        return dim_zero_cat(state) if len(state) else torch.empty(shape, dtype=dtype, device=self.device)

    def keyed(self, keys: str, values: str) -> dict[tuple[int, ...], Any]:
        """Return the rows of a state by those of another, each key once and in order."""
        pairs = zip(self.all_rows(keys).tolist(), self.all_rows(values).tolist(), strict=True)
        return dict(sorted({tuple(key): value for key, value in pairs}.items()))

    def all_texts(self, name: str) -> list[str]:
        """Return all texts of a state of bytes."""
        return bytes(self.all_rows(name).tolist()).decode().split("\0")[:-1]

    def scalars(self, numbers: Mapping[str, float]) -> dict[str, Tensor]:
        """Return numbers as float64 scalars on the device of the metric."""
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in numbers.items()}
