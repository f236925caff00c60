"""Turning prompts, answers and documents into token ids, and these into padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100
_IDS: dict[int, int] = {}  # one object for each token id; a tokenizer makes one for each token of a text


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its answer as token ids.

    Equal ids share one object, so a token takes 8 bytes of memory, not 36.

    Args:
        id: Name of the row.
        prompt: Ids that are not scored; may be empty.
        target: Ids that are scored.
        cut: Number of tokens that ``max_length`` took away.
    """

    id: str
    prompt: list[int]
    target: list[int]
    cut: int = 0

    def __post_init__(self) -> None:
        """Share the ids."""
        object.__setattr__(self, "prompt", [_IDS.setdefault(token, token) for token in self.prompt])
        object.__setattr__(self, "target", [_IDS.setdefault(token, token) for token in self.target])

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.prompt) + len(self.target)


def encode_row(
    tokenizer: PreTrainedTokenizerBase, name: str, prompt: str, answer: str, max_length: int, separator: str = " "
) -> Encoded:
    """Tokenise a prompt and its answer apart, so that no token crosses the border between them.

    The prompt gets the special tokens that the tokenizer puts first, such as a beginning of sequence, and none that it
    puts last. The answer ends with the end of sequence. A row longer than ``max_length`` loses the beginning of its
    prompt, behind the special tokens, and never a token of the answer.

    Args:
        tokenizer: Tokenizer with an end of sequence.
        name: Name of the row.
        prompt: Text that is not scored.
        answer: Text that is scored.
        max_length: Largest number of tokens.
        separator: Text put before the answer, and scored with it.

    Raises:
        ValueError: If the prompt or the answer has no token, the answer does not fit, or the tokenizer has no end of
            sequence.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, with which answers must end."
        )
    target = list(tokenizer(separator + answer, add_special_tokens=False, verbose=False)["input_ids"])
    if not target:
        raise ValueError(f"The row {name} has no target token: its answer {answer!r} tokenises to nothing.")
    target.append(end)
    special, body = special_and_own_ids(tokenizer, prompt)
    if not special and not body:
        raise ValueError(f"The row {name} has no prompt token: its prompt {prompt!r} tokenises to nothing.")
    room = max_length - len(special) - len(target)
    if room < (0 if special else 1):
        least = len(target) + max(1, len(special))
        raise ValueError(
            f"max_length must be at least {least} for the row {name}, whose answer has {len(target)} tokens and is "
            f"never cut, got {max_length}."
        )
    cut = max(0, len(body) - room)
    return Encoded(name, special + body[cut:], target, cut)


def encode_document(tokenizer: PreTrainedTokenizerBase, name: str, text: str, max_length: int) -> Encoded:
    """Tokenise a document of which every token is scored, its first special tokens too.

    A document longer than ``max_length`` loses its end.

    Raises:
        ValueError: If fewer than two tokens are left, since the first one is not predicted.
    """
    special, body = special_and_own_ids(tokenizer, text)
    ids = (special + body)[:max_length]
    if len(ids) < 2:
        raise ValueError(
            f"The document {name} must have at least 2 tokens within max_length={max_length}, got {len(ids)}."
        )
    return Encoded(name, [], ids, cut=len(special) + len(body) - len(ids))


def pad_right(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Stack rows for scoring.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (-100 on prompts and padding), int64 of shape
        ``(batch, tokens)``.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        start, end = len(row.prompt), len(row)
        ids[number, :end] = torch.tensor(row.prompt + row.target)
        mask[number, :end] = 1
        labels[number, start:end] = torch.tensor(row.target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Stack prompts for generation, which goes on at their right end.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 of shape ``(batch, tokens)``.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills up: padding, else the end of sequence."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def longest(rows: Sequence[Encoded]) -> tuple[str, int]:
    """Return name and number of tokens of the longest of some rows."""
    row = max(rows, key=len)
    return row.id, len(row)


def special_and_own_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts first, and the text's own tokens; those put last are left out."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    first = special.index(0) if 0 in special else len(ids)
    last = len(ids) - special[::-1].index(0) if 0 in special else len(ids)
    return ids[:first], ids[first:last]
