"""Rows of MUSE's files: texts, passages to continue and questions; texts cut into blocks of tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_modules.utils.json_lines import shorten

from ..common.checks import check_texts, json_rows
from ..common.text import Encoded, special_and_own_ids

ENDINGS = (".txt", ".json", ".jsonl", ".parquet")
ASKED = "Question: {}\nAnswer: "


def find_file(root: Path, subset: str, split: str) -> Path | None:
    """Return the file ``root/subset/split`` with one of the endings, or ``None`` if there is none.

    A Parquet file may also have the hub's name, ``<split>-00000-of-00001.parquet``.
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
        return [_decoded(path)]
    rows = [(place, {"text": row} if isinstance(row, str) else row) for place, row in _rows(path)]
    return [check_texts(row, place, ("text",))["text"] for place, row in rows]


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
    return [check_texts(row, place, fields) for place, row in _rows(path)]


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
    start, body = special_and_own_ids(tokenizer, text)
    least = len(start) + 1 if start else 2
    if max_length < least:
        raise ValueError(f"max_length must be at least {least}, so that a block scores a token, got {max_length}.")
    if len(body) < (1 if start else 2):
        raise ValueError(f"The text {name} must have a token to score, got {len(body)} in all: {text[:40]!r}.")
    blocks: list[Encoded] = []
    done = 0
    while done < len(body):
        prompt = start or body[max(0, done - 1) : done]
        stop = done + max_length - len(prompt)
        blocks.append(Encoded(f"{name}/{len(blocks)}", list(prompt), body[done:stop]))
        done = stop
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
    if path.suffix == ".jsonl":
        return json_rows(path)
    rows = _parquet(path) if path.suffix == ".parquet" else _array(path)
    if not rows:
        raise ValueError(f"{path} must hold at least one row, got none.")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _array(path: Path) -> list[Any]:
    try:
        content = json.loads(_decoded(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: the file must be a JSON array of rows: {error.msg}.") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} must be a JSON array of rows, got {shorten(content)}.")
    return content


def _parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import parquet
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
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, got the byte {error.object[error.start]:#04x}.") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; it must hold at least one row.")
    return text
