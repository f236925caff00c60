"""Reading LUME's files: one checked row per line."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("Task1", "Task2", "Task3")
KINDS = ("sc", "qa")
FIELDS = ("id", "input", "output", "task")

_IDENTIFIER = re.compile(r"(?P<document>.+)(?P<kind>sc|qa)(?P<number>[0-9])", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One line of a LUME file.

    Args:
        id: Identifier: document, kind and number. Those of Task1 hold literal double quotes.
        input: Prompt.
        output: Text to continue it with, or the answer.
        task: ``"Task1"`` (stories), ``"Task2"`` (biographies with personal data) or ``"Task3"`` (public biographies).
        split: ``"forget"`` or ``"retain"``.
    """

    id: str
    input: str
    output: str
    task: str
    split: str

    @property
    def kind(self) -> str:
        """``"sc"`` for a sentence completion, ``"qa"`` for a question."""
        return self.id[-3:-1]

    @property
    def document(self) -> str:
        """Identifier of the document, without quotes, kind and number."""
        return _without_quotes(self.id[:-3])

    @property
    def text(self) -> str:
        """The whole document, if the row is a sentence completion."""
        return f"{self.input} {self.output}"

    def record(self) -> dict[str, str]:
        """Return the row as LUME's files hold it."""
        return {"id": self.id, "input": self.input, "output": self.output, "task": self.task}


def parse_row(line: bytes, where: str, split: str) -> Row:
    """Read one line.

    Args:
        line: A JSON object with the strings ``id``, ``input``, ``output`` and ``task``; further fields are passed over.
        where: File and line number, for the message.
        split: ``"forget"`` or ``"retain"``.

    Raises:
        ValueError: If the line is anything else; the message is one line and begins with ``where``.

    Example:
        >>> parse_row(b'{"id": "1sc1", "input": "A", "output": "b.", "task": "Task3"}', "x.jsonl:1", "forget").text
        'A b.'
    """
    record = _parse_object(line, where, FIELDS)
    if record["task"] not in TASKS:
        raise ValueError(f"{where}: the field 'task' must be {_either(TASKS)}, got {_short(record['task'])}.")
    match = _IDENTIFIER.fullmatch(record["id"])
    if match is None or not _without_quotes(match["document"]).strip():
        raise ValueError(
            f"{where}: the field 'id' must be a document's id followed by 'sc' or 'qa' and one digit, "
            f"got {_short(record['id'])}."
        )
    return Row(record["id"], record["input"], record["output"], record["task"], split)


def read_rows(path: str | Path, split: str) -> list[Row]:
    """Read a file of rows.

    Args:
        path: JSON lines in UTF-8; the last line may lack its end.
        split: ``"forget"`` or ``"retain"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, an id comes twice or a document has rows of two tasks, with file and line
            number; if the file is empty.
    """
    rows: list[Row] = []
    lines: dict[str, str] = {}
    tasks: dict[str, str] = {}
    for where, line in _lines(path):
        row = parse_row(line, where, split)
        name = _without_quotes(row.id)
        if name in lines:
            raise ValueError(f"{where}: an id must come once, and {_short(row.id)} stands at {lines[name]} already.")
        if tasks.setdefault(row.document, row.task) != row.task:
            raise ValueError(
                f"{where}: the rows of a document must be of one task, got {row.task} and {tasks[row.document]} for "
                f"document {_short(row.document)}."
            )
        lines[name] = where
        rows.append(row)
    return rows


def read_documents(path: str | Path) -> list[tuple[str, str]]:
    """Read whole documents for a membership attack.

    Args:
        path: JSON lines in UTF-8 with the strings ``id`` and ``document``; further fields are passed over.

    Returns:
        Pairs of id and text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed or an id comes twice, with file and line number; if the file is empty.
    """
    documents: dict[str, str] = {}
    for where, line in _lines(path):
        record = _parse_object(line, where, ("id", "document"))
        if record["id"] in documents:
            raise ValueError(f"{where}: an id must come once, and {_short(record['id'])} stands in the file already.")
        documents[record["id"]] = record["document"]
    return list(documents.items())


def check_disjoint(forget: Iterable[Row], retain: Iterable[Row]) -> None:
    """Check that no document is to be forgotten and retained.

    Raises:
        ValueError: If one is; names one of them and says how many there are.
    """
    shared = sorted({row.document for row in forget} & {row.document for row in retain})
    if shared:
        documents = "1 document" if len(shared) == 1 else f"{len(shared)} documents"
        raise ValueError(
            f"The forget and the retain set share {documents}, such as {_short(shared[0])}; "
            "a document must be in one of the two."
        )


def _lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield place and content of each line; only the last may lack its end."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty; it must hold at least one line.")
    # only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        yield f"{path}:{number}", line


def _parse_object(line: bytes, where: str, fields: Sequence[str]) -> dict[str, str]:
    """Return the given fields of a JSON object, each a string that is not blank."""
    shape = "a JSON object with the strings " + ", ".join(fields)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = f"the byte {line[error.start]:#04x} at position {error.start}"
        raise ValueError(f"{where}: a line must be UTF-8, got {bad}.") from error
    if not text.strip():
        raise ValueError(f"{where}: a line must be {shape}, got a blank line.")
    try:
        record: Any = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: a line must be {shape}, got {_short(text)}, which is not JSON.") from error
    except _FieldTwiceError as error:
        raise ValueError(f"{where}: a field must come once, got {_short(error.args[0])} twice.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a line must be {shape}, got {_short(record)}.")
    for field in fields:
        if field not in record:
            raise ValueError(f"{where}: the field {field!r} is missing; a line must be {shape}, got {_short(record)}.")
        value = record[field]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: the field {field!r} must be a string that is not blank, got {_short(value)}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{where}: the field {field!r} must be Unicode text, got half a pair in {_short(value)}.")
    return {field: record[field] for field in fields}


class _FieldTwiceError(Exception):
    """A JSON object holds a field twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise _FieldTwiceError(name)
        record[name] = value
    return record


def _without_quotes(identifier: str) -> str:
    return identifier.replace('"', "")


def _either(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:-1])) + f" or {values[-1]!r}"


def _short(value: object) -> str:
    # ascii: a message stays one line of plain characters whatever the file holds
    try:
        text = ascii(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
