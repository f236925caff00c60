"""Reader of JSON lines that names the line of each mistake."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def numbered_lines(path: str | Path) -> list[tuple[str, str]]:
    """Return the lines of a UTF-8 text file that are not blank, each with its place, ``"FILE:NUMBER"``.

    Only line feeds end a line: JSON may hold the other characters that Python takes for line ends.

    Raises:
        ValueError: If a line is not UTF-8; names it.
    """
    lines = []
    for number, line in enumerate(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: a line must be UTF-8 text, got {line[:40]!r}.") from error
        if text.strip():
            lines.append((f"{path}:{number}", text))
    return lines


def parse_json(text: str, place: str) -> Any:
    """Parse one JSON value.

    Args:
        text: The value as text.
        place: Place that the message names, such as ``"rows.jsonl:3"``.

    Raises:
        ValueError: If the text is no JSON, nested too deeply, or an object in it has a field twice.

    Example:
        >>> parse_json('{"id": 1}', "rows.jsonl:3")
        {'id': 1}
    """
    repeated: list[str] = []

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: a line must be JSON, got {shorten(text.strip())}.") from error
    if repeated:
        raise ValueError(f"{place}: a field must come once, got {shorten(repeated[0])} more than once.")
    return value


def read_json_lines(path: str | Path) -> list[tuple[str, Any]]:
    """Return the values of a JSON lines file, each with its place, ``"FILE:NUMBER"``; blank lines are left out.

    Raises:
        ValueError: If a line is not UTF-8 or no JSON; names it.
    """
    return [(place, parse_json(text, place)) for place, text in numbered_lines(path)]


def shorten(value: object, length: int = 80) -> str:
    """Return a value as one short line of plain characters, whatever a file may hold.

    Example:
        >>> shorten({"id": "ab" * 40}, 20)
        "{'id': 'abababab..."
    """
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."
