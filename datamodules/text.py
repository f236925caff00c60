"""Turning prompts and answers into batches of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answer as token ids.

    Args:
        id: Name of the row.
        prompt: Ids of the prompt.
        answer: Ids of the answer, with the end of sequence.
        cut: Number of prompt tokens that ``max_length`` took away.
    """

    id: str
    prompt: list[int]
    answer: list[int]
    cut: int = 0


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokenise a prompt with its beginning of sequence, if the tokenizer has one, and without an end."""
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def encode(
    tokenizer: PreTrainedTokenizerBase, identifier: str, prompt: str, answer: str, max_length: int, separator: str = " "
) -> Encoded:
    """Tokenise a prompt and its answer apart, so that no token crosses the border between them.

    The answer ends with the end of sequence. A row longer than ``max_length`` loses the beginning of its prompt, and never a
    token of the answer.

    Args:
        tokenizer: Tokenizer with an end of sequence.
        identifier: Name of the row.
        prompt: Text that is not scored.
        answer: Text that is scored.
        max_length: Largest number of tokens.
        separator: Put before the answer.

    Raises:
        ValueError: If the answer has no token, does not fit, or the tokenizer has no end of sequence.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, which answers must end with.")
    target: list[int] = tokenizer(separator + answer, add_special_tokens=False)["input_ids"]
    if not target:
        raise ValueError(f"The row {identifier} has no target token: its answer {answer!r} tokenises to nothing.")
    target = [*target, tokenizer.eos_token_id]
    ids = prompt_ids(tokenizer, prompt)
    room = max_length - len(target)
    if room < 1:
        raise ValueError(
            f"The row {identifier} has {len(target)} target tokens, and max_length={max_length} leaves no room for a prompt; "
            f"give max_length of at least {len(target) + 1}."
        )
    cut = max(0, len(ids) - room)
    if cut:
        first = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = [*first, *ids[len(ids) - room + len(first) :]]
    return Encoded(identifier, ids, target, cut)


def training_batch(rows: Sequence[Encoded], pad: int) -> dict[str, Any]:
    """Pad rows on the right.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (-100 on prompts and padding), int64 of shape ``(batch, tokens)``, and
        ``id``, a list of strings.
    """
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[number, :end] = torch.tensor(row.prompt + row.answer)
        mask[number, :end] = 1
        labels[number, start:end] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "id": [row.id for row in rows]}


def prompt_batch(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """Pad prompts on the left, for generation.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 of shape ``(batch, tokens)``.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}
