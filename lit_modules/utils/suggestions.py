"""Closest valid name for a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the end of a sentence on a name that does not exist: the closest names, or all if they are few.

    Args:
        name: Name given.
        known: Names that exist.
        cutoff: Least likeness of a suggestion, in [0, 1].

    Example:
        >>> "There is no command 'fitt'" + did_you_mean("fitt", ["fit", "test"])
        "There is no command 'fitt'; did you mean 'fit'?"
        >>> "There is no norm 'l7'" + did_you_mean("l7x", ["linf", "two"])
        "There is no norm 'l7'; there are linf, two."
    """
    names = list(known)
    close = [each for each in names if each.lower() == name.lower()] or get_close_matches(name, names, 1, cutoff)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(names)}." if 0 < len(names) <= 12 else "."
