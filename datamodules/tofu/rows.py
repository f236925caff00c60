"""Questions of TOFU's files, each checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_modules.utils.json_lines import numbered_lines, shorten

from ..common.checks import check_texts, is_text, json_rows

PARAPHRASES = ("paraphrased_answer", "paraphrased_question")


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


def read_questions(path: str | Path, perturbed: bool = False) -> list[Question]:
    """Read a file of questions.

    Args:
        path: JSON lines, whatever its ending, with the strings ``question`` and ``answer``; in a perturbed set also
            ``perturbed_answer``, a list of strings, and perhaps the strings ``paraphrased_answer`` and
            ``paraphrased_question``. Further fields are passed over.
        perturbed: Whether every row must have wrong answers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, with file and line number; if the file is empty, or only some rows of a
            perturbed set have a paraphrase.
    """
    path = Path(path)
    questions = []
    for row, (place, value) in enumerate(json_rows(path)):
        texts = check_texts(value, place, ("question", "answer"))
        further = _perturbed_texts(value, place) if perturbed else {}
        questions.append(Question(path.stem, row, texts["question"], texts["answer"], **further))
    for name in PARAPHRASES:
        lacking = [question.row for question in questions if getattr(question, name) is None]
        if 0 < len(lacking) < len(questions):
            raise ValueError(f"{path}:{lacking[0] + 1}: the field {name!r} is missing, which other rows have.")
    return questions


def _perturbed_texts(value: dict[str, Any], place: str) -> dict[str, Any]:
    wrong = value.get("perturbed_answer")
    if wrong is None:
        raise ValueError(f"{place}: the field 'perturbed_answer' is missing; this is no perturbed set.")
    if not isinstance(wrong, list) or not wrong or not all(map(is_text, wrong)):
        raise ValueError(
            f"{place}: the field 'perturbed_answer' must be a list of strings that are not blank, got {shorten(wrong)}."
        )
    paraphrases = [name for name in PARAPHRASES if name in value]
    return {"perturbed_answers": tuple(wrong), **check_texts(value, place, paraphrases)}


def read_refusals(path: str | Path) -> list[str]:
    """Read answers that say nothing, one plain text per line, as ``idontknow.jsonl`` holds them.

    Raises:
        ValueError: If a line is not UTF-8, or there is none.
    """
    refusals = [text.strip() for _, text in numbered_lines(path)]
    if not refusals:
        raise ValueError(f"{path} is empty; it must hold at least one refusal.")
    return refusals


def check_disjoint(forget: Sequence[Question], retain: Sequence[Question]) -> None:
    """Raise a ``ValueError`` if a question with its answer is to be forgotten and retained; it names one of them."""
    retained = {(row.question, row.answer) for row in retain}
    shared = [row for row in forget if (row.question, row.answer) in retained]
    if shared:
        raise ValueError(
            f"The forget and the retain set must share no question, got {len(shared)} in both, such as {shared[0].id} "
            f"{shorten(shared[0].question)}."
        )


def check_same(perturbed: Sequence[Question], plain: Sequence[Question]) -> None:
    """Raise a ``ValueError`` unless a perturbed set asks the questions of its plain set, in the same order."""
    pairs = zip(perturbed, plain, strict=False)
    differing = [row.row for row, own in pairs if (row.question, row.answer) != (own.question, own.answer)]
    if differing or len(perturbed) != len(plain):
        what = f"row {differing[0]} differs" if differing else f"they have {len(perturbed)} and {len(plain)} rows"
        raise ValueError(
            f"{perturbed[0].file} must hold the questions of {plain[0].file} in their order, and {what}; take both "
            "files from the same release."
        )
