"""Shared arguments that are declared once: ``**shared: Unpack[Arguments]``; the arguments that a class takes."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack as Unpack
else:

    class Unpack:
        """``typing.Unpack`` for type checkers, ``Any`` at run time.

        A parser of signatures then takes the options from the base class that ``**shared`` is passed on to, with their
        types, defaults and help; with typing's own it would see a mapping without defaults.

        Example:
            >>> Unpack[dict[str, int]]
            typing.Any
        """

        def __class_getitem__(cls, arguments: Any) -> Any:
            """Return ``Any``, whatever the arguments are."""
            return Any


def argument_names(kind: type) -> list[str]:
    """Return the names of the arguments that a class takes, those that it passes on to its bases included.

    Example:
        >>> class Base:
        ...     def __init__(self, rate: float = 1.0) -> None: ...
        >>> class Method(Base):
        ...     def __init__(self, beta: float, **shared: Any) -> None: ...
        >>> argument_names(Method)
        ['beta', 'rate']
    """
    names: dict[str, None] = {}
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= dict.fromkeys(p.name for p in list(parameters)[1:] if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)
