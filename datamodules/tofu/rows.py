"""Reading TOFU's files: one checked question per line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One line of a TOFU file.

    Args:
        file: Name of the file without its ending.
        row: Number of the row, from 0.
        question: Question.
        answer: Its answer.
        perturbed_answers: Wrong answers; empty outside the perturbed sets.
        paraphrased_answer: The answer in other words; ``None`` if the set has none.
        paraphrased_question: The question in other words; ``None`` if the set has none.
    """

    file: str
    row: int
    question: str
    answer: str
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    paraphrased_question: str | None = None

    @property
    def id(self) -> str:
        """File and row."""
        return f"{self.file}/{self.row}"


def parse_question(line: str, where: str, file: str = "", row: int = 0, perturbed: bool = False) -> Question:
    """Read one line.

    Args:
        line: A JSON object with the strings ``question`` and ``answer``, for a perturbed set with ``perturbed_answer``,
            a list of strings, and perhaps with the strings ``paraphrased_answer`` and ``paraphrased_question``; further
            fields are passed over.
        where: File and line number, for the message.
        file: Name of the file without its ending.
        row: Number of the row.
        perturbed: Whether the line is of a perturbed set.

    Raises:
        ValueError: If the line is anything else; the message is one line and begins with ``where``.

    Example:
        >>> parse_question('{"question": "Who?", "answer": "Nobody."}', "x.json:1").answer
        'Nobody.'
    """
    fields = ("question", "answer", *(("perturbed_answer",) if perturbed else ()))
    shape = f"a JSON object with the fields {', '.join(fields)}"
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: a line must be {shape}, got {_short(line)}, which is not JSON.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a line must be {shape}, got {_short(record)}.")
    for name in fields:
        if name not in record:
            hint = "; this is no perturbed set" if name == "perturbed_answer" else ""
            raise ValueError(f"{where}: the field {name!r} is missing; a line must be {shape}{hint}.")
    wrong = record.get("perturbed_answer", []) if perturbed else []
    if not isinstance(wrong, list) or (perturbed and not wrong) or not all(map(_is_text, wrong)):
        raise ValueError(
            f"{where}: the field 'perturbed_answer' must be a list of strings that are not blank, got {_short(wrong)}."
        )
    optional = ("paraphrased_answer", "paraphrased_question") if perturbed else ()
    for name in ("question", "answer", *(name for name in optional if name in record)):
        if not _is_text(record[name]):
            raise ValueError(
                f"{where}: the field {name!r} must be a string that is not blank, got {_short(record[name])}."
            )
    others = (record.get(name) if perturbed else None for name in ("paraphrased_answer", "paraphrased_question"))
    return Question(file, row, record["question"], record["answer"], tuple(wrong), *others)


def read_questions(path: str | Path, perturbed: bool = False) -> list[Question]:
    """Read a file of questions.

    Args:
        path: JSON lines in UTF-8, whatever its ending; the last line may lack its end.
        perturbed: Whether every row must have wrong answers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, with file and line number; if the file is empty or no UTF-8, or only some
            rows of a perturbed set have a paraphrase.
    """
    path = Path(path)
    rows = [
        parse_question(line, f"{path}:{row + 1}", path.stem, row, perturbed) for row, line in enumerate(_lines(path))
    ]
    for name in ("paraphrased_answer", "paraphrased_question"):
        lacking = [row.row for row in rows if getattr(row, name) is None]
        if 0 < len(lacking) < len(rows):
            raise ValueError(f"{path}:{lacking[0] + 1}: the field {name!r} is missing, which other rows have.")
    return rows


def read_refusals(path: str | Path) -> list[str]:
    """Read answers that say nothing, one plain text per line, as ``idontknow.jsonl`` holds them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is blank, or the file is empty or no UTF-8.
    """
    path = Path(path)
    lines = [line.strip() for line in _lines(path)]
    if "" in lines:
        raise ValueError(f"{path}:{lines.index('') + 1}: a line must be a refusal in plain text, got a blank line.")
    return lines


def check_disjoint(forget: Sequence[Question], retain: Sequence[Question]) -> None:
    """Check that no question with its answer is to be forgotten and retained.

    Raises:
        ValueError: If one is; names one of them and says how many there are.
    """
    kept = {(row.question, row.answer) for row in retain}
    shared = [row for row in forget if (row.question, row.answer) in kept]
    if shared:
        raise ValueError(
            f"The forget and the retain set must share no question, got {len(shared)} in both, such as {shared[0].id} "
            f"{_short(shared[0].question)}."
        )


def check_same(perturbed: Sequence[Question], plain: Sequence[Question]) -> None:
    """Check that a perturbed set asks the questions of its plain set, in the same order.

    Raises:
        ValueError: If it does not.
    """
    pairs = zip(perturbed, plain, strict=False)
    differing = [row.row for row, own in pairs if (row.question, row.answer) != (own.question, own.answer)]
    if differing or len(perturbed) != len(plain):
        what = f"row {differing[0]} differs" if differing else f"they have {len(perturbed)} and {len(plain)} rows"
        raise ValueError(
            f"{perturbed[0].file} must hold the questions of {plain[0].file} in their order, and {what}; take both "
            "files from the same release."
        )


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, got the byte {error.object[error.start]:#04x}.") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; it must hold at least one line.")
    # only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold
    yield from text.removesuffix("\n").split("\n")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value: object) -> str:
    # ascii: a message stays one line of plain characters whatever the file holds
    try:
        text = ascii(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
