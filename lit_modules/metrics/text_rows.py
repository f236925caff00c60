"""Parts of the scores of text benchmarks: logs, ROUGE, and checks of a batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from lit_modules.metrics.rows import RowMetric


@cache
def rouge_scorer(stemmer: bool) -> RougeScorer:
    """Return the scorer of ROUGE-1 and ROUGE-L of ``rouge-score``, with or without its stemmer."""
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)


class LoggedScore(RowMetric):
    """Metric whose record comes with a log of each row's values; subclasses write ``_log`` and ``_write``.

    Args:
        states: Type of each state and width of its rows; 0 for numbers.
        log_file: File to write the log to.
    """

    def __init__(self, states: Mapping[str, tuple[torch.dtype, int]], log_file: str | None) -> None:
        super().__init__(states)
        self.log_file = log_file

    def log(self) -> dict[str, Any]:
        """Return the log of the official evaluation. The values of all processes, so every process must call it."""
        with self.sync_context(should_sync=True, should_unsync=True):
            return self._log()

    def record(self) -> dict[str, Any]:
        """Return the numbers of :meth:`compute` ready for JSON, ``None`` where one is missing, and write ``log_file``.

        Computes if that has not been done, so every process must call it; the first one writes.
        """
        numbers = {name: json_number(float(value)) for name, value in self.compute().items()}
        if self.log_file is not None:
            log = self.log()
            if not dist.is_initialized() or dist.get_rank() == 0:
                self._write(self.log_file, log)
        return numbers

    @abstractmethod
    def _log(self) -> dict[str, Any]:
        """Return the log of the rows that this process knows."""

    @abstractmethod
    def _write(self, path: str, log: dict[str, Any]) -> None:
        """Write a log."""


def check_scores(what: str, names: Sequence[str], values: Tensor) -> None:
    """Raise a ``ValueError`` unless there is a finite value for each row; it names those that are not."""
    if values.shape != (len(names),):
        raise ValueError(f"{what} must have the shape ({len(names)},) of the ids, got {tuple(values.shape)}.")
    lost = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
    if lost:
        raise ValueError(f"The {what} of these rows is not finite, so they have no score: {', '.join(lost)}.")


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
