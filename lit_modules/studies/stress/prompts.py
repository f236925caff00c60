"""Prompts in another form, for a test: behind examples, or with the answer begun."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_modules.datamodules import common
from lit_modules.studies.runs import read_json

PREFILL = "Sure, here is the answer:"


class ChangedPrompts(Callback):
    """Put tokens before and behind each prompt of a test; what is scored stays as it is.

    Asks of a batch without ``labels`` for ``input_ids`` and ``attention_mask``, padded on the left.

    Args:
        path: JSON ``{"before": [ids], "after": [ids]}``.
    """

    def __init__(self, path: str) -> None:
        tokens = read_json(Path(path))
        self.before, self.after = list(tokens["before"]), list(tokens["after"])

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Change the prompts of the batch."""
        if "labels" not in batch:
            changed = around(batch["input_ids"], batch["attention_mask"], before=self.before, after=self.after)
            batch["input_ids"], batch["attention_mask"] = changed


def around(ids: Tensor, mask: Tensor, before: Sequence[int], after: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return prompts with tokens before and behind each, padded on the left as they were.

    Example:
        >>> ids, mask = torch.tensor([[0, 7], [8, 9]]), torch.tensor([[0, 1], [1, 1]])
        >>> [tensor.tolist() for tensor in around(ids, mask, before=[5], after=[6])]
        [[[0, 5, 7, 6], [5, 8, 9, 6]], [[0, 1, 1, 1], [1, 1, 1, 1]]]
    """
    rows = []
    for row, attended in zip(ids.tolist(), mask.tolist(), strict=True):
        pads = attended.index(1)
        rows.append([*row[:pads], *before, *row[pads:], *after])
    wider = torch.ones(len(rows), len(before) + len(after), dtype=mask.dtype, device=mask.device)
    return torch.tensor(rows, device=ids.device), torch.cat([mask, wider], dim=1)


def few_shot_tokens(rows: Sequence[common.Encoded], number: int, tokenizer: Any) -> list[int]:
    r"""Return the tokens of examples: the shortest rows, each with its answer, a blank line behind each."""
    blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    tokens: list[int] = []
    for row in sorted(rows, key=len)[:number]:
        tokens += [*row.prompt, *(token for token in row.target if token != tokenizer.eos_token_id), *blank]
    return tokens
