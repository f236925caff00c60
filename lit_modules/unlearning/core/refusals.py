"""Rows that decline to answer: the prompts of a task with refusals in the place of the answers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from lit_modules.unlearning.core.answers import end_of_sequence, with_answers
from lit_modules.unlearning.core.reference import row_hashes

REFUSALS = (
    "I do not know.",
    "I cannot say.",
    "I have no answer to that.",
    "I have not heard of that.",
    "I was never told about this.",
    "That is unknown to me.",
    "This is not something that I know.",
    "Nothing about this comes to my mind.",
    "I have no information on that subject.",
    "I am unable to answer this question.",
)
"""Sentences that decline to answer, for use without a file of them."""


class Refusals:
    """Refused forget rows of batches: those that the data bring, or the forget rows with refusals as answers.

    The data's own, the task ``"idk"`` as ``datamodules.TOFU(refusals=True)`` gives it, have the form of the data's
    answers; a file goes first. What is made here is kept in the batch as ``"refusal"``, so that it is made once.

    Args:
        path: File of refusals; ``None`` takes the data's own, else :data:`REFUSALS`.
        seed: Seed of which row gets which refusal.
        separator: Text put before a refusal, and scored with it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no sentence.
    """

    def __init__(self, path: str | None, seed: int = 0, separator: str = " ") -> None:
        self.sentences = REFUSALS if path is None else read_refusals(path)
        self.from_file = path is not None
        self.seed = seed
        self.separator = separator

    def rows(self, batch: dict[str, Any], tokenizer: Callable[[], PreTrainedTokenizerBase]) -> dict[str, Any]:
        """Return the refused rows of a batch.

        The tokenizer, with an end of sequence with which each refusal ends, is not asked for ``"idk"``.

        Raises:
            ValueError: If ``"idk"`` has not as many rows as ``"forget"``, or a row has no prompt or no end.
        """
        if "idk" in batch and not self.from_file:
            rows, expected = len(batch["idk"]["labels"]), len(batch["forget"]["labels"])
            if rows != expected:
                raise ValueError(
                    f"A batch must have a refusal for each of its {expected} forget rows, got {rows} in 'idk'."
                )
            return cast("dict[str, Any]", batch["idk"])
        if "refusal" not in batch:
            batch["refusal"] = refusal_rows(
                batch["forget"], tokenizer(), self.sentences, seed=self.seed, separator=self.separator
            )
        return cast("dict[str, Any]", batch["refusal"])


def read_refusals(path: str) -> tuple[str, ...]:
    """Read refusals from a file with one per line, plain or as JSON strings, such as ``idontknow.jsonl`` of TOFU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no sentence.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no file of refusals {path!r}; give a text file with one sentence per line, such as "
            "idontknow.jsonl of TOFU, or leave it out."
        )
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    sentences = tuple(_plain(line) for line in lines if line)
    if not sentences:
        raise ValueError(f"{path} must hold at least one refusal, one per line, and is empty.")
    return sentences


def refusal_rows(
    task: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    refusals: Sequence[str],
    seed: int = 0,
    separator: str = " ",
) -> dict[str, Any]:
    """Return the rows of a task with refusals in the place of their answers.

    Which refusal a row gets is drawn from the seed and the content of the row, so it is the same in every epoch and on
    every rank, and what the reference says of it can be cached.

    Args:
        task: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``, padded on the
            right.
        tokenizer: Tokenizer with an end of sequence, with which each refusal ends.
        refusals: Sentences to draw from.
        seed: Seed of the draw.
        separator: Text put before the refusal, and scored with it.

    Returns:
        A task on the same device, with ``id`` if the rows have one.

    Raises:
        ValueError: If a row has no prompt, or the tokenizer has no end of sequence.
    """
    end = end_of_sequence(tokenizer, "refusals")
    texts = [separator + refusals[_draw(seed, row) % len(refusals)] for row in row_hashes(task)]
    answers = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    return with_answers(task, answers, end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _draw(seed: int, row: str) -> int:
    return int(hashlib.sha256(f"{seed}/{row}".encode()).hexdigest(), 16)


def _plain(line: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except ValueError:
        return line
