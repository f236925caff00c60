"""Judges of designs that are asked in words: the questions, and the reading of answers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from lit_modules.metrics.judge import CRITERIA

QUESTIONS = {
    "faithfulness": (
        "Can the object in the picture do all that was asked for?",
        "every function can be seen, and they are joined well",
        "functions are missing or cannot be made out",
    ),
    "novelty": (
        "Would the design surprise someone who knows the usual products?",
        "unlike anything that is sold",
        "an everyday object as it has always been",
    ),
    "practicality": (
        "Could people use it with ease, and could it be made?",
        "handy, safe and within reach of a factory",
        "it could neither be used nor built",
    ),
    "coherence": (
        "Is there one main object, whole and free of clutter?",
        "exactly one object, clear at a glance",
        "several things or loose pieces, and no main one",
    ),
}
"""Each criterion's question, and what the best and the worst score mean."""
VERDICTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


class NoAnswerError(Exception):
    """There is no answer to this question, such as when an endpoint refuses it; says why."""


class AskingJudge(ABC):
    """A judge that is asked in words and answers with a JSON object; subclasses say whom.

    The requested affordances stand in every question. Two images are shown in both orders. The verdict on a criterion
    is the one that both answers give, and a tie if they differ, so that a liking for the first place does not count.

    An answer that is not as asked for is asked for again, with a reminder. If it is of no use in the end, its scores
    are NaN, ``unanswered`` counts it, and the first such answer is told in a warning.

    Args:
        retries: Times that a useless answer is asked for again.
        workers: Questions asked at the same time.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        The criteria are those of Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv
        2502.17793; the wording is ours.
    """

    def __init__(self, retries: int = 2, workers: int = 1) -> None:
        if retries < 0 or workers < 1:
            raise ValueError(f"retries must not be negative and workers at least 1, got {retries} and {workers}.")
        self.retries, self.workers = retries, workers
        self.asked = self.unanswered = 0
        self._lock = Lock()

    @abstractmethod
    def answer(self, question: str, images: Sequence[Tensor]) -> str:
        """Return the answer to a question about images, in words.

        Args:
            question: The question.
            images: Floats in [0, 1], ``(3, height, width)`` each, in the order that the question speaks of.

        Raises:
            NoAnswerError: If there is none, and asking again is of no use.
        """

    def score(self, images: Sequence[Tensor] | Tensor, affordances: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Return the score of each criterion, from 1 to 5; see :meth:`lit_modules.metrics.judge.Judge.score`.

        Raises:
            ValueError: If there are not affordances for each image.
        """
        _check(affordances, images)
        tasks = [(score_question(row), [image]) for row, image in zip(affordances, images, strict=True)]
        return _columns(self._ask_all(tasks, read_scores))

    def compare(
        self, first: Sequence[Tensor] | Tensor, second: Sequence[Tensor] | Tensor, affordances: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]:
        """Return verdicts on pairs of images; see :meth:`lit_modules.metrics.judge.Judge.compare`.

        Beside the criteria, ``consistency`` is the share of criteria on which both orders agree.

        Raises:
            ValueError: If there are not as many images and affordances.
        """
        _check(affordances, first, second)
        rows = list(zip(affordances, first, second, strict=True))
        tasks = [(comparison_question(names), [one, other]) for names, one, other in rows]
        tasks += [(question, images[::-1]) for question, images in tasks]
        answers = self._ask_all(tasks, read_verdicts)
        verdicts = _columns(answers[: len(rows)])
        swapped = {name: 1 - value for name, value in _columns(answers[len(rows) :]).items()}
        both = {name: (verdicts[name] + swapped[name]).isfinite() for name in CRITERIA}
        same = {name: verdicts[name] == swapped[name] for name in CRITERIA}
        result = {
            name: torch.where(same[name], verdicts[name], 0.5).masked_fill(~both[name], torch.nan) for name in CRITERIA
        }
        agree = torch.stack([same[name].double().masked_fill(~both[name], torch.nan) for name in CRITERIA])
        return result | {"consistency": agree.nanmean(0)}

    def _ask_all(
        self, tasks: Sequence[tuple[str, list[Tensor]]], read: Callable[[str], dict[str, float]]
    ) -> list[dict[str, float] | None]:
        if self.workers == 1:
            return [self._ask(question, images, read) for question, images in tasks]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda task: self._ask(task[0], task[1], read), tasks))

    def _ask(
        self, question: str, images: list[Tensor], read: Callable[[str], dict[str, float]]
    ) -> dict[str, float] | None:
        reason = ""
        for attempt in range(self.retries + 1):
            reminder = f"\nThe last answer could not be read: {reason} Answer with the JSON object alone."
            try:
                answer = self.answer(question + reminder if attempt else question, images)
            except NoAnswerError as error:
                reason = str(error)
                break
            try:
                values = read(answer)
            except ValueError as error:
                reason = str(error)
                continue
            with self._lock:
                self.asked += 1
            return values
        with self._lock:
            self.asked += 1
            self.unanswered += 1
            if self.unanswered == 1:
                rank_zero_warn(
                    f"{type(self).__name__} gave no useful answer, asked {attempt + 1} times, which leaves NaN: "
                    f"{reason} The attribute `unanswered` counts such images.",
                    UserWarning,
                )
        return None


def score_question(affordances: Sequence[str]) -> str:
    """Return the question for scores from 1 to 5 of one image of an object with these affordances."""
    return "\n".join(
        [
            f"The picture shows a new product. It was asked for with these functions: {_listed(affordances)}.",
            "Rate it by four criteria, each with a whole number from 1 to 5:",
            *(f"- {name}: {what} 5: {best}. 1: {worst}." for name, (what, best, worst) in QUESTIONS.items()),
            "Rate each criterion on its own, by what the picture shows.",
            f"Answer with a JSON object alone, of this form: {json.dumps(dict.fromkeys(CRITERIA, 3))}",
        ]
    )


def comparison_question(affordances: Sequence[str]) -> str:
    """Return the question which of two images of an object with these affordances is better."""
    return "\n".join(
        [
            "Each of the two pictures shows a new product. Both were asked for with these functions: "
            f"{_listed(affordances)}.",
            'Say for each of four criteria which picture is better, "first", "second", or "tie" if neither is:',
            *(
                f"- {name}: {what} At best: {best}. At worst: {worst}."
                for name, (what, best, worst) in QUESTIONS.items()
            ),
            "Judge each criterion on its own, by what the pictures show; their order means nothing.",
            f"Answer with a JSON object alone, of this form: {json.dumps(dict.fromkeys(CRITERIA, 'tie'))}",
        ]
    )


def read_scores(answer: str) -> dict[str, float]:
    """Return the scores that an answer gives, whole numbers from 1 to 5; words around the JSON object are passed over.

    Example:
        >>> read_scores('I say {"Faithfulness": 4, "novelty": "5", "practicality": 2, "coherence": 1.0}')
        {'faithfulness': 4.0, 'novelty': 5.0, 'practicality': 2.0, 'coherence': 1.0}
    """

    def number(value: Any) -> float | None:
        text = str(value).strip()
        return float(text[0]) if text in {f"{n}{end}" for n in range(1, 6) for end in ("", ".0")} else None

    return _read(answer, number, "a whole number from 1 to 5")


def read_verdicts(answer: str) -> dict[str, float]:
    """Return the verdicts that an answer gives: 1 for the first image, 0.5 for a tie, 0 for the second."""
    return _read(answer, lambda value: VERDICTS.get(str(value).strip().lower()), '"first", "second" or "tie"')


def _listed(affordances: Sequence[str]) -> str:
    return json.dumps([name.replace("_", " ") for name in affordances], ensure_ascii=False)


def _check(affordances: Sequence[Sequence[str]], *images: Sequence[Tensor] | Tensor) -> None:
    if any(len(batch) != len(affordances) for batch in images):
        raise ValueError(
            f"There must be affordances for each image, got {len(affordances)} for "
            f"{' and '.join(str(len(batch)) for batch in images)} images."
        )
    if any(isinstance(row, str) or not row for row in affordances):
        raise ValueError(f"affordances must be a sequence of at least one name for each image, got {affordances!r}.")


def _read(answer: str, convert: Callable[[Any], float | None], expected: str) -> dict[str, float]:
    """Return the criteria of the last JSON object in a text that has them all."""
    decoder, start, objects = json.JSONDecoder(), 0, []
    while (start := answer.find("{", start)) >= 0:
        try:
            value_by_name, start = decoder.raw_decode(answer, start)
        except (json.JSONDecodeError, RecursionError):
            start += 1
            continue
        objects.append({str(key).strip().lower(): value for key, value in value_by_name.items()})
    complete = [value_by_name for value_by_name in objects if set(CRITERIA) <= value_by_name.keys()]
    if not complete:
        raise ValueError(f"it must hold a JSON object with {', '.join(CRITERIA)}, got {answer.strip()[:80]!r}.")
    values = {name: convert(complete[-1][name]) for name in CRITERIA}
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{name} must be {expected}, got {str(complete[-1][name])[:40]!r}.")
    return {name: value for name, value in values.items() if value is not None}


def _columns(rows: Sequence[Mapping[str, float] | None]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([torch.nan if row is None else row[name] for row in rows], dtype=torch.float64)
        for name in CRITERIA
    }
