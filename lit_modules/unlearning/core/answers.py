"""Rows of a task with other answers, as tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lit_modules.unlearning.core.losses import IGNORED


def with_answers(task: Mapping[str, Any], answers: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """Return the rows of a task with other answers in the place of their own.

    Args:
        task: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``, padded on the
            right.
        answers: Ids of the answer of each row, all of which are scored.
        pad: Id that fills up.

    Returns:
        A task on the same device, with ``id`` if the rows have one.

    Raises:
        ValueError: If a row has no prompt.
    """
    prompts = [prompt for prompt, _ in prompts_and_answers(task)]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    filled = torch.full((3, len(prompts), width), 0, dtype=torch.int64)
    filled[0], filled[2] = pad, IGNORED
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, stop = len(prompt), len(prompt) + len(answer)
        filled[0, index, :stop] = torch.tensor([*prompt, *answer])
        filled[1, index, :stop] = 1
        filled[2, index, start:stop] = torch.tensor(answer)
    ids, mask, labels = filled.to(task["input_ids"].device)
    names = {"id": list(task["id"])} if "id" in task else {}
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **names}


def prompts_and_answers(task: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each row before its first scored token, and those from it on, padding left out.

    Raises:
        ValueError: If a row begins with a scored token.
    """
    names = task.get("id")
    rows = []
    columns = (task[key].tolist() for key in ("input_ids", "attention_mask", "labels"))
    for index, (ids, mask, labels) in enumerate(zip(*columns, strict=True)):
        start = next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
        attended = [bool(value) for value in mask]
        prompt, answer = (
            [token for token, seen in zip(ids[part], attended[part], strict=True) if seen]
            for part in (slice(start), slice(start, None))
        )
        if not prompt:
            raise ValueError(
                f"The forget row {names[index] if names else index} has no prompt before its first scored token, so "
                "there is nothing to answer otherwise; other answers need rows of question and answer."
            )
        rows.append((prompt, answer))
    return rows


def end_of_sequence(tokenizer: PreTrainedTokenizerBase, noun: str) -> int:
    """Return the token that ends answers.

    Raises:
        ValueError: If there is none; calls the answers by ``noun``.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, with which {noun} must end."
        )
    return int(tokenizer.eos_token_id)
