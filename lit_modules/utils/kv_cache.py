"""The memory of keys and values that a language model hands on: transformers 5.24 renamed it."""

import inspect
from typing import Any


def cache_argument(network: Any) -> str | None:
    """Return what a model of transformers calls its key-value cache, as an argument and in its output, if it has one.

    It is ``cache`` from transformers 5.24 on, where the older ``past_key_values`` goes away with 5.40.

    Example:
        >>> class Old:
        ...     def forward(self, input_ids, past_key_values=None): ...
        >>> cache_argument(Old())
        'past_key_values'
    """
    known = accepted_arguments(network)
    return next((name for name in ("cache", "past_key_values") if name in known), None)


def accepted_arguments(network: Any) -> set[str]:
    """Return the names that a model's ``forward`` takes, those that a subclass hands on as ``**kwargs`` too.

    Example:
        >>> class Model:
        ...     def forward(self, input_ids, position_ids=None): ...
        >>> class Mine(Model):
        ...     def forward(self, *args, **kwargs): ...
        >>> sorted(accepted_arguments(Mine()) & {"input_ids", "position_ids"})
        ['input_ids', 'position_ids']
    """
    names: set[str] = set()
    for kind in type(network).__mro__:
        if "forward" in vars(kind):
            parameters = inspect.signature(vars(kind)["forward"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names
