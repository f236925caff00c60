"""Shared arguments that are declared once: ``**shared: Unpack[Arguments]``; the arguments that a class takes."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

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


Shared = TypeVar("Shared", bound=Mapping[str, Any])


def without_own(shared: Shared, **own: object) -> Shared:
    """Return shared arguments without those that a class passes to its base itself.

    The hyperparameters of a checkpoint name these too, and are given back when it is loaded.

    Args:
        shared: Arguments by name.
        own: Values that the class passes itself; another value stays, and Python refuses it as given twice.

    Example:
        >>> without_own({"root": None, "seed": 1}, root=None)
        {'seed': 1}
    """
    kept = {name: value for name, value in shared.items() if name not in own or value != own[name]}
    return cast("Shared", kept)


def import_class(path: str) -> Any:
    """Return the class or function of an import path.

    Example:
        >>> import_class("pathlib.Path")
        <class 'pathlib.Path'>
    """
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


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
