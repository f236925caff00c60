"""Reading MUSE's files: texts, passages to continue and questions; and cutting texts into blocks of tokens."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..common.text import Encoded

ENDINGS = (".txt", ".json", ".jsonl", ".parquet")
ASKED = "Question: {}\nAnswer: "


def find_file(root: Path, subset: str, split: str) -> Path | None:
    """Return the file of a split, or ``None`` if there is none.

    Args:
        root: Folder of a corpus.
        subset: Folder in it, such as ``raw``.
        split: Name of the file without its ending, which is ``.txt``, ``.json``, ``.jsonl`` or ``.parquet``; a Parquet
            file may also have the hub's name, ``<split>-00000-of-00001.parquet``.
    """
    names = [f"{split}{ending}" for ending in ENDINGS] + [f"{split}-00000-of-00001.parquet"]
    return next((root / subset / name for name in names if (root / subset / name).is_file()), None)


def read_texts(path: str | Path) -> list[str]:
    """Read texts.

    Args:
        path: Plain text, which is one text; or a JSON array, JSON lines or a Parquet file, whose rows are strings or
            objects with the string ``text``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, with file and row; or the file is empty, damaged or no UTF-8.
    """
    path = Path(path)
    if path.suffix == ".txt":
        text = _decoded(path)
        if not text.strip():
            raise ValueError(f"{path} is empty; it must hold a text.")
        return [text]
    records = [(where, {"text": row} if isinstance(row, str) else row) for where, row in _rows(path)]
    return [row["text"] for row in _checked(records, ("text",), path)]


def read_records(path: str | Path, fields: Sequence[str]) -> list[dict[str, str]]:
    """Read rows of strings.

    Args:
        path: JSON array, JSON lines or a Parquet file of objects; further fields are passed over.
        fields: Names of the strings that each row must have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, with file and row; or the file is empty, damaged or no UTF-8.
    """
    path = Path(path)
    if path.suffix == ".txt":
        raise ValueError(f"{path} must be JSON or Parquet with the fields {', '.join(fields)}, got plain text.")
    return _checked(_rows(path), fields, path)


def encode_blocks(tokenizer: PreTrainedTokenizerBase, name: str, text: str, max_length: int) -> list[Encoded]:
    """Cut a text into blocks of tokens of which none is lost and none is scored twice.

    A block begins with the special tokens that the tokenizer puts first. If it puts none, a block that is not the first
    one begins with the last token of the block before, which is not scored again. So every token is scored once, but
    the first of a text without a token before it. The last block may be shorter; the official code fills it up with the
    beginning of the text.

    Args:
        tokenizer: Tokenizer.
        name: Name of the text; block ``i`` is called ``<name>/<i>``.
        text: Text.
        max_length: Largest number of tokens of a block, special tokens included.

    Raises:
        ValueError: If the text has no token that is scored, or ``max_length`` leaves no room for one.
    """
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    first = special.index(0) if 0 in special else len(ids)
    last = len(ids) - special[::-1].index(0) if 0 in special else len(ids)
    start, body = ids[:first], ids[first:last]
    least = len(start) + 1 if start else 2
    if max_length < least:
        raise ValueError(f"max_length must be at least {least}, so that a block scores a token, got {max_length}.")
    if len(body) < (1 if start else 2):
        raise ValueError(f"The text {name} must have a token to score, got {len(body)} in all: {text[:40]!r}.")
    blocks: list[Encoded] = []
    place = 0
    while place < len(body):
        prompt = start or body[max(0, place - 1) : place]
        room = max_length - len(prompt)
        blocks.append(Encoded(f"{name}/{len(blocks)}", list(prompt), body[place : place + room]))
        place += room
    return blocks


def question_prompt(question: str, examples: Sequence[dict[str, str]]) -> str:
    r"""Return the text that asks a question behind examples, as the official evaluation puts it.

    Example:
        >>> question_prompt("Who?", [{"question": "Where?", "answer": "Here."}])
        'Question: Where?\nAnswer: Here.\n\nQuestion: Who?\nAnswer: '
    """
    shown = "".join(ASKED.format(row["question"]) + row["answer"] + "\n\n" for row in examples)
    return shown + ASKED.format(question)


def _rows(path: Path) -> list[tuple[str, Any]]:
    """Return the rows of a file, each with the place that a message names."""
    if path.suffix == ".parquet":
        return [(f"{path}, row {number}", row) for number, row in enumerate(_parquet(path), start=1)]
    text = _decoded(path)
    rows: list[tuple[str, Any]] = []
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: a line must be JSON, got {_short(line)}.") from error
        return rows
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: the file must be a JSON array of rows: {error.msg}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} must be a JSON array of rows, and is nested too deeply.") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} must be a JSON array of rows, got {_short(content)}.")
    return [(f"{path}, row {number}", row) for number, row in enumerate(content, start=1)]


def _checked(rows: Sequence[tuple[str, Any]], fields: Sequence[str], path: Path) -> list[dict[str, str]]:
    if not rows:
        raise ValueError(f"{path} must hold at least one row with the fields {', '.join(fields)}, got none.")
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: a row must be an object with the fields {', '.join(fields)}, got {_short(row)}."
            )
        for name in fields:
            if name not in row:
                raise ValueError(f"{where}: the field {name!r} is missing; a row has {', '.join(fields)}.")
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(
                    f"{where}: the field {name!r} must be a string that is not blank, got {_short(row[name])}."
                )
    return [{name: row[name] for name in fields} for _, row in rows]


def _parquet(path: Path) -> list[Any]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            f'Reading {path} needs pyarrow: pip install "lit-modules[parquet]"; JSON files need nothing.'
        ) from error
    try:
        rows: list[Any] = parquet.ParquetFile(path).read().to_pylist()
    except Exception as error:  # pyarrow has errors of its own, and OSError
        raise ValueError(f"{path} is no Parquet file: {error}.") from error
    return rows


def _decoded(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, got the byte {error.object[error.start]:#04x}.") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; it must hold at least one row.")
    return text


def _short(value: object) -> str:
    try:
        text = ascii(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
