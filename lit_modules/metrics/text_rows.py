"""Parts of the scores of text benchmarks: states of rows, ROUGE, and checks of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


@cache
def rouge_scorer(stemmer: bool) -> RougeScorer:
    """Return the scorer of ROUGE-1 and ROUGE-L of ``rouge-score``, with or without its stemmer."""
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)


class RowMetric(Metric):
    """Metric that keeps a few tensors of each row, gathered from all processes.

    Args:
        states: Type of each state and width of its rows; 0 for numbers.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, states: Mapping[str, tuple[torch.dtype, int]]) -> None:
        super().__init__()
        self._state_shapes = dict(states)
        for name in self._state_shapes:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; called by :meth:`compute`."""
        for name in self._state_shapes:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                self.append(name, [])  # torchmetrics would gather float32 from a rank without rows
        super().sync(*args, **kwargs)

    def append(self, name: str, values: Any) -> None:
        """Add rows to a state."""
        dtype, width = self._state_shapes[name]
        tensor = torch.as_tensor(values, dtype=dtype, device=self.device)
        getattr(self, name).append(tensor.reshape(-1, width) if width else tensor)

    def append_texts(self, name: str, texts: Sequence[str]) -> None:
        """Add texts, none with a zero, to a state of bytes."""
        self.append(name, list("".join(f"{text}\0" for text in texts).encode()))

    def all_rows(self, name: str) -> Tensor:
        """Return all rows of a state."""
        state: Any = getattr(self, name)
        dtype, width = self._state_shapes[name]
        shape = (0, width) if width else (0,)
        return dim_zero_cat(state) if len(state) else torch.empty(shape, dtype=dtype, device=self.device)

    def keyed(self, keys: str, values: str) -> dict[tuple[int, ...], Any]:
        """Return the rows of a state by those of another, each key once and in order."""
        pairs = zip(self.all_rows(keys).tolist(), self.all_rows(values).tolist(), strict=True)
        return dict(sorted({tuple(key): value for key, value in pairs}.items()))

    def all_texts(self, name: str) -> list[str]:
        """Return all texts of a state of bytes."""
        return bytes(self.all_rows(name).tolist()).decode().split("\0")[:-1]

    def scalars(self, numbers: Mapping[str, float]) -> dict[str, Tensor]:
        """Return numbers as float64 scalars on the device of the metric."""
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in numbers.items()}


def is_first_process() -> bool:
    """Return whether this process writes what all processes know."""
    return not dist.is_initialized() or dist.get_rank() == 0


def row_names(batch: Mapping[str, Any]) -> list[str]:
    """Return the names of a batch's rows for messages: its ``id``, else its ``row``."""
    return list(batch.get("id", [str(int(row)) for row in batch["row"]]))


def check_known(names: Sequence[str], columns: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> None:
    """Raise a ``ValueError`` that names a row with an unknown value.

    Args:
        names: Names of the rows.
        columns: Values of the rows and the allowed values, by what they are.
    """
    for word, (values, allowed) in columns.items():
        for name, value in zip(names, values, strict=True):
            if value not in allowed:
                raise ValueError(f"The {word} of row {name!r} must be one of {', '.join(allowed)}, got {value!r}.")


def check_generations(generations: Sequence[str], rows: int) -> None:
    """Raise a ``ValueError`` if there is not an answer for each row."""
    if len(generations) != rows:
        raise ValueError(f"There must be a generation for each of the {rows} rows, got {len(generations)}.")


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN without values."""
    return float(np.mean(values)) if len(values) else math.nan


def json_number(value: float) -> float | None:
    """Return a number as JSON takes it, ``None`` for NaN."""
    return None if math.isnan(value) else value
