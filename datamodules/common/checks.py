"""Checks of arguments and of rows in files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lit_modules.utils.json_lines import read_json_lines, shorten


def check_at_least(least: int, **numbers: float | None) -> None:
    """Raise a ``ValueError`` that names a number below ``least``; ``None`` passes."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")


def check_choices(allowed: Collection[Any], **choices: Any) -> None:
    """Raise a ``ValueError`` that names a value which is not among the allowed ones."""
    for name, value in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_request(request: int | None, requests: int) -> None:
    """Raise a ``ValueError`` unless a request is ``None`` or one of so many parts of the forget set, from 1."""
    check_at_least(1, requests=requests)
    if request is not None and not 1 <= request <= requests:
        raise ValueError(f"request must be None or from 1 to requests={requests}, got {request}.")


def in_request(units: Sequence[Any], request: int | None, requests: int, noun: str) -> list[bool]:
    """Return which of some units, in their order, a request asks to forget: one of as many parts of similar size.

    Args:
        units: Authors or documents, each once.
        request: Number of the part, from 1; ``None`` for all.
        requests: Number of parts.
        noun: Name of the units, for the message.

    Raises:
        ValueError: If there are fewer units than parts.

    Example:
        >>> in_request("abcde", 2, 2, "documents")
        [False, False, False, True, True]
    """
    if request is None:
        return [True] * len(units)
    if len(units) < requests:
        raise ValueError(f"requests must be at most {len(units)}, the {noun} of the forget set, got {requests}.")
    return [number * requests // len(units) + 1 == request for number in range(len(units))]


def json_rows(path: str | Path) -> list[tuple[str, Any]]:
    """Return the rows of a JSON lines file, each with its place, ``"FILE:NUMBER"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no JSON, with its place, or the file is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    rows = read_json_lines(path)
    if not rows:
        raise ValueError(f"{path} is empty; it must hold at least one line.")
    return rows


def check_texts(row: Any, place: str, fields: Sequence[str]) -> dict[str, str]:
    """Return some fields of a row; further ones are passed over.

    Args:
        row: JSON value.
        place: Place that messages name.
        fields: Names of the fields.

    Raises:
        ValueError: If the row is no object, or a field is missing, blank or no string; the message is one line.
    """
    shape = f"an object with the strings {', '.join(fields)}"
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a row must be {shape}, got {shorten(row)}.")
    for name in fields:
        if name not in row:
            raise ValueError(f"{place}: the field {name!r} is missing; a row must be {shape}.")
        if not is_text(row[name]):
            raise ValueError(
                f"{place}: the field {name!r} must be a string that is not blank, got {shorten(row[name])}."
            )
    return {name: row[name] for name in fields}


def are_missing(names: Sequence[str], word: str = " and ") -> str:
    """Return names with their verb.

    Example:
        >>> are_missing(["a.json"]), are_missing(["a.json", "b.json"])
        ('a.json is missing', 'a.json and b.json are missing')
    """
    return f"{word.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def is_text(value: Any) -> bool:
    """Return whether a JSON value is a string of Unicode text that is not blank; half a surrogate pair is none."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)
