"""Rows of LUME's files, each checked."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_modules.utils.json_lines import shorten

from ..common.checks import check_texts, json_rows

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


def read_rows(path: str | Path, split: str) -> list[Row]:
    """Read a file of rows.

    Args:
        path: JSON lines with the strings ``id``, ``input``, ``output`` and ``task``; further fields are passed over.
        split: ``"forget"`` or ``"retain"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, an id comes twice or a document has rows of two tasks, with file and line
            number; if the file is empty.
    """
    rows: list[Row] = []
    places: dict[str, str] = {}
    tasks: dict[str, str] = {}
    for place, value in json_rows(path):
        row = Row(**check_texts(value, place, FIELDS), split=split)
        if row.task not in TASKS:
            raise ValueError(f"{place}: the field 'task' must be of {', '.join(TASKS)}, got {shorten(row.task)}.")
        match = _IDENTIFIER.fullmatch(row.id)
        if match is None or not _without_quotes(match["document"]).strip():
            raise ValueError(
                f"{place}: the field 'id' must be a document's id followed by 'sc' or 'qa' and one digit, "
                f"got {shorten(row.id)}."
            )
        name = _without_quotes(row.id)
        if name in places:
            raise ValueError(f"{place}: an id must come once, and {shorten(row.id)} stands at {places[name]} already.")
        if tasks.setdefault(row.document, row.task) != row.task:
            raise ValueError(
                f"{place}: the rows of a document must be of one task, got {row.task} and {tasks[row.document]} for "
                f"document {shorten(row.document)}."
            )
        places[name] = place
        rows.append(row)
    return rows


def read_documents(path: str | Path) -> list[tuple[str, str]]:
    """Read whole documents for a membership attack.

    Args:
        path: JSON lines with the strings ``id`` and ``document``; further fields are passed over.

    Returns:
        Pairs of id and text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed or an id comes twice, with file and line number; if the file is empty.
    """
    documents: dict[str, str] = {}
    for place, value in json_rows(path):
        record = check_texts(value, place, ("id", "document"))
        if record["id"] in documents:
            raise ValueError(f"{place}: an id must come once, and {shorten(record['id'])} stands in the file already.")
        documents[record["id"]] = record["document"]
    return list(documents.items())


def check_disjoint(forget: Iterable[Row], retain: Iterable[Row]) -> None:
    """Raise a ``ValueError`` if a document is to be forgotten and retained; it names one and counts them."""
    shared = sorted({row.document for row in forget} & {row.document for row in retain})
    if shared:
        documents = "1 document" if len(shared) == 1 else f"{len(shared)} documents"
        raise ValueError(
            f"The forget and the retain set share {documents}, such as {shorten(shared[0])}; "
            "a document must be in one of the two."
        )


def _without_quotes(identifier: str) -> str:
    return identifier.replace('"', "")
