"""Reading LUME's files: one checked row per line."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("Task1", "Task2", "Task3")
KINDS = ("sc", "qa")
FIELDS = ("id", "input", "output", "task")

_IDENTIFIER = re.compile(r"^(?P<document>.+)(?P<kind>sc|qa)\d$", re.DOTALL)


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
        """``"sc"`` for sentence completion, ``"qa"`` for a question."""
        return self.id[-3:-1]

    @property
    def document(self) -> str:
        """Identifier of the document, without quotes, kind and number."""
        return self.id[:-3].replace('"', "")

    @property
    def text(self) -> str:
        """The document, if the row is a sentence completion."""
        return f"{self.input} {self.output}"


def parse_row(line: str, where: str, split: str) -> Row:
    """Read one line.

    Args:
        line: A JSON object with the strings ``id``, ``input``, ``output`` and ``task``; further fields are passed over.
        where: File and line number, for the message.
        split: ``"forget"`` or ``"retain"``.

    Raises:
        ValueError: If the line is anything else; the message is one line and begins with ``where``.

    Example:
        >>> parse_row('{"id": "1sc1", "input": "A", "output": "b.", "task": "Task3"}', "x.jsonl:1", "forget").text
        'A b.'
    """
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON object ({error}); a line is {_shape()}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: got a JSON {type(record).__name__}, and a line is {_shape()}.")
    for field in FIELDS:
        if field not in record:
            raise ValueError(f"{where}: the field {field!r} is missing, got {_short(sorted(record))}; a line is {_shape()}.")
        value = record[field]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: the field {field!r} must be a string that is not blank, got {_short(value)}.")
    if record["task"] not in TASKS:
        raise ValueError(f"{where}: task must be one of {', '.join(TASKS)}, got {_short(record['task'])}.")
    if not _IDENTIFIER.match(record["id"]):
        raise ValueError(
            f"{where}: id must be a document's id followed by 'sc' or 'qa' and one digit, got {_short(record['id'])}."
        )
    return Row(*(record[field] for field in FIELDS), split=split)


def read_rows(path: str | Path, split: str) -> list[Row]:
    """Read a file of rows.

    Args:
        path: JSON lines in UTF-8; the last line may lack its end.
        split: ``"forget"`` or ``"retain"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed or an id comes twice, with file and line number; if the file is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for number, raw in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}).") from error
        if not line.strip() and number == 1 and path.stat().st_size <= len(raw) + 1:
            break
        row = parse_row(line, where, split)
        if row.id in lines:
            raise ValueError(f"{where}: the id {_short(row.id)} was given in line {lines[row.id]} already.")
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty; it must hold at least one row.")
    return rows


def check_disjoint(forget: Iterable[Row], retain: Iterable[Row]) -> None:
    """Check that no document is to be forgotten and retained.

    Raises:
        ValueError: If one is; names it.
    """
    shared = sorted({row.document for row in forget} & {row.document for row in retain})
    if shared:
        raise ValueError(
            f"The forget and the retain set share {len(shared)} document(s), such as {shared[0]}; take them out of one of the two."
        )


def read_documents(path: str | Path) -> list[tuple[str, str]]:
    """Read whole documents for a membership attack.

    Args:
        path: JSON lines with the strings ``id`` and ``document``.

    Returns:
        Pairs of id and text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, with file and line number; if the file is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} of documents; a line of it is {_shape(('id', 'document'))}.")
    documents = []
    for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            identifier, text = record["id"], record["document"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not {_shape(('id', 'document'))}.") from error
        if not all(isinstance(value, str) and value.strip() for value in (identifier, text)):
            raise ValueError(f"{path}:{number}: id and document must be strings that are not blank, got {_short(record)}.")
        documents.append((identifier, text))
    if not documents:
        raise ValueError(f"{path} is empty; it must hold at least one document.")
    return documents


def _shape(fields: Iterable[str] = FIELDS) -> str:
    return "a JSON object with the strings " + ", ".join(fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
