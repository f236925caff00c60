"""Score of WMDP: what a model says of the corpora, and the accuracies that lm-eval has measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_modules.metrics.harness import accuracy_of, read_results
from lit_modules.metrics.rows import RowMetric
from lit_modules.metrics.text_rows import check_known, check_scores, json_number, mean, row_names

__all__ = ["TASKS", "WMDPScore"]

SPLITS = ("forget", "retain")
TASKS = ("wmdp_bio", "wmdp_cyber", "mmlu")
"""Tasks of lm-eval: hazardous knowledge, wanted near 0.25, a guess of four, and what else is known, wanted high."""


class WMDPScore(RowMetric):
    """Join the NLL of WMDP's corpora and the accuracies of lm-eval in one record.

    ``forget/nll`` and ``retain/nll`` are the means over rows of the mean token NLL. ``wmdp_bio``, ``wmdp_cyber`` and
    ``mmlu`` come from ``results``, and are NaN where it lacks them or is not given: lm-eval evaluates the folder that
    ``callbacks.SavePretrained`` writes, for example by
    ``lm_eval --model hf --model_args pretrained=FOLDER --tasks wmdp_bio,wmdp_cyber,mmlu --output_path RESULTS``.

    A row that comes twice, as padding of a distributed sampler, counts once.

    Args:
        results: Result file of lm-eval, or its output folder.

    Raises:
        ValueError: If ``results`` holds none of the tasks.
        FileNotFoundError: If ``results`` names no file or folder.

    Example:
        >>> score = WMDPScore()
        >>> rows = {"split": ["forget", "retain"], "row": torch.tensor([0, 0])}
        >>> score.update(rows, nll=torch.tensor([3.0, 1.0]))
        >>> float(score.compute()["forget/nll"])
        3.0

    References:
        Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv 2403.03218.
    """

    def __init__(self, results: str | None = None) -> None:
        super().__init__({"keys": (torch.int64, 2), "nlls": (torch.float64, 0)})
        self.accuracies: dict[str, float | None] = dict.fromkeys(TASKS)
        if results is not None:
            file, content = read_results(results)
            self.accuracies = {task: accuracy_of(content, task) for task in TASKS}
            if not any(value is not None for value in self.accuracies.values()):
                raise ValueError(f"{file} must hold 'acc,none' of one of {', '.join(TASKS)}, and has none.")

    def update(self, batch: Mapping[str, Any], nll: Tensor | None = None) -> None:
        """Add the rows of a batch.

        Args:
            batch: ``split``, a list of ``"forget"`` and ``"retain"``, and ``row``, the number of each ``(batch,)``.
            nll: Mean token NLL of each row in nats, ``(batch,)``.

        Raises:
            ValueError: If there is not a finite NLL for each row, or a split is unknown.
        """
        names = row_names(batch)
        check_known(names, {"split": (batch["split"], SPLITS)})
        if nll is None:
            raise ValueError("WMDPScore takes the NLL of rows.")
        check_scores("nll", names, nll)
        rows = zip(batch["split"], batch["row"].tolist(), strict=True)
        self.append("keys", [(SPLITS.index(split), row) for split, row in rows])
        self.append("nlls", nll)

    def compute(self) -> dict[str, Tensor]:
        """Return ``forget/nll``, ``retain/nll`` and the accuracies, float64 scalars; NaN for what is missing."""
        rows = self.keyed("keys", "nlls")
        numbers = {
            f"{split}/nll": mean([nll for (number, _), nll in rows.items() if SPLITS[number] == split])
            for split in SPLITS
        }
        numbers |= {task: math.nan if value is None else value for task, value in self.accuracies.items()}
        return self.scalars(numbers)

    def record(self) -> dict[str, Any]:
        """Return the numbers of :meth:`compute` ready for JSON, ``None`` for what is missing."""
        return {name: json_number(float(value)) for name, value in self.compute().items()}
