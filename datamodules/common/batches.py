"""Datasets of whole batches: an index is a tuple of row numbers, an item is a padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .text import Encoded, pad_left, pad_right

Column = Sequence[str] | Tensor


class TaskBatches(Dataset[dict[str, Any]]):
    """Rows for scoring, padded on the right.

    A batch holds ``input_ids``, ``attention_mask``, ``labels`` (int64, ``(batch, tokens)``), ``id`` and the columns.

    Args:
        rows: Rows.
        pad: Id that fills up.
        columns: Further values of each row: strings, which become a list, or a tensor, which is indexed.
    """

    def __init__(self, rows: Sequence[Encoded], pad: int, columns: Mapping[str, Column] | None = None) -> None:
        self.rows = rows
        self.pad = pad
        self.columns = dict(columns or {})

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, indices: int | Sequence[int]) -> dict[str, Any]:
        """Return the batch of some rows, or of one."""
        chosen = [indices] if isinstance(indices, int) else list(indices)
        rows = [self.rows[i] for i in chosen]
        columns = {
            name: column[chosen] if isinstance(column, Tensor) else [column[i] for i in chosen]
            for name, column in self.columns.items()
        }
        return {**self.pad_rows(rows), "id": [row.id for row in rows], **columns}

    def pad_rows(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Stack rows."""
        return pad_right(rows, self.pad)


class PromptBatches(TaskBatches):
    """Prompts for generation, padded on the left; the rows' prompts are taken.

    A batch holds ``input_ids``, ``attention_mask`` (int64, ``(batch, tokens)``), ``id`` and the columns.
    """

    def pad_rows(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Stack prompts."""
        return pad_left([row.prompt for row in rows], self.pad)


class PairBatches(Dataset[dict[str, dict[str, Any]]]):
    """Batches ``{"forget": task, "retain": task}``; an index is a tuple of pairs of row numbers."""

    def __init__(self, forget: TaskBatches, retain: TaskBatches) -> None:
        self.forget = forget
        self.retain = retain

    def __len__(self) -> int:
        """Return the number of rows of the larger set."""
        return max(len(self.forget), len(self.retain))

    def __getitem__(self, indices: int | Sequence[tuple[int, int]]) -> dict[str, dict[str, Any]]:
        """Return the batch of some pairs; a number, as ``Trainer(overfit_batches=1)`` gives it, is one pair."""
        if isinstance(indices, int):
            indices = [(indices % len(self.forget), indices % len(self.retain))]
        return {
            "forget": self.forget[[forget for forget, _ in indices]],
            "retain": self.retain[[retain for _, retain in indices]],
        }


class GroupBatches(Dataset[dict[str, dict[str, Any]]]):
    """Batches of several tasks by name; an index is a tuple of tuples, a row number of each task."""

    def __init__(self, tasks: Mapping[str, TaskBatches]) -> None:
        self.tasks = dict(tasks)

    def __len__(self) -> int:
        """Return the number of rows of the largest task."""
        return max(map(len, self.tasks.values()))

    def __getitem__(self, indices: int | Sequence[tuple[int, ...]]) -> dict[str, dict[str, Any]]:
        """Return the batch of some rows of each task; a number is one row of each."""
        if isinstance(indices, int):
            indices = [tuple(indices % len(rows) for rows in self.tasks.values())]
        columns = zip(*indices, strict=True)
        return {name: rows[list(chosen)] for (name, rows), chosen in zip(self.tasks.items(), columns, strict=True)}


def columns_of(facts: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Return the facts of at least one row as columns: texts as lists, numbers and truth values as tensors."""
    columns = {name: [fact[name] for fact in facts] for name in facts[0]}
    return {name: list(v) if isinstance(v[0], str) else torch.tensor(v) for name, v in columns.items()}
