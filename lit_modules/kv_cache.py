"""The memory of keys and values that a language model hands on: transformers 5.24 renamed it."""

import inspect
from typing import Any


def cache_argument(network: Any) -> str | None:
    """Return what a model calls its key-value cache, as an argument and in its output; ``None`` if it has none.

    It is ``cache`` from transformers 5.24 on, where the older ``past_key_values`` goes away with 5.40.

    Args:
        network: A model of transformers, or one with its arguments.

    Example:
        >>> class Old:
        ...     def forward(self, input_ids, past_key_values=None): ...
        >>> cache_argument(Old())
        'past_key_values'
    """
    known = inspect.signature(network.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)
