"""Shared arguments that are declared once: ``**shared: Unpack[Arguments]``."""

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
