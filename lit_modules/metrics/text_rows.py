"""Parts of the scores of text benchmarks: ROUGE, and checks of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch.distributed as dist
from rouge_score.rouge_scorer import RougeScorer


@cache
def rouge_scorer(stemmer: bool) -> RougeScorer:
    """Return the scorer of ROUGE-1 and ROUGE-L of ``rouge-score``, with or without its stemmer."""
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)


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
