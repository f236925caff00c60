"""Reading which option was answered, and handing it to the metrics of questions with options."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from lit_modules.coda.core.answers import read_answer
from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy
from lit_modules.utils.hashing import stable_seed

Batch = Mapping[str, Any]


def read_answers(texts: Sequence[str], batch: Batch) -> list[int]:
    """Return the place of the option that each answer names, -1 for one that names none or several.

    Args:
        texts: Answers.
        batch: ``options`` and, if there are, ``aliases`` of each row.
    """
    aliases = batch.get("aliases", [None] * len(texts))
    read = [read_answer(*row) for row in zip(texts, batch["options"], aliases, strict=True)]
    return [-1 if option is None else option for option in read]


def pair_numbers(module: LightningModule) -> dict[str, int]:
    """Return the number of each pair of the datamodule that is updated on; empty without a datamodule."""
    datamodule = getattr(module._trainer, "datamodule", None)
    return {pair.pair_id: number for number, pair in enumerate(getattr(datamodule, "pairs", []))}


def add_answers(
    metric: Metric, batch: Batch, chosen: Sequence[int], rows: Sequence[int], numbers: Mapping[str, int]
) -> None:
    """Hand answers to a metric.

    Args:
        metric: Metric of pairs or of many options.
        batch: Batch of questions.
        chosen: Place of the answered option of each row, -1 for none.
        rows: Rows that count.
        numbers: Numbers of pairs; others get one from a hash of their name, the same on all processes.

    Raises:
        ValueError: If the metric is of pairs and a question does not have two options.
        TypeError: If the metric is another.
    """
    if not rows:
        return
    column = "query" if "query" in batch else "index"
    places = batch[column].cpu()[list(rows)] if column in batch else None
    if isinstance(metric, NWayAccuracy):
        labels = batch["option_label"].tolist()
        named = [labels[row][chosen[row]] if chosen[row] >= 0 else -1 for row in rows]
        index = batch["index"].cpu()[list(rows)] if "index" in batch else None
        metric.update(batch["label"].cpu()[list(rows)], torch.tensor(named), index)
        return
    if not isinstance(metric, PairAccuracy):
        raise TypeError(f"metric must be a PairAccuracy or NWayAccuracy, got {type(metric).__name__}.")
    pairs, sides, answers, firsts = [], [], [], []
    right = batch["answer_option"].tolist()
    for row in rows:
        if len(batch["options"][row]) != 2:
            raise ValueError(
                f"PairAccuracy needs two options, got {len(batch['options'][row])}; give NWayAccuracy, or n_way 2."
            )
        side = int(batch["role"][row] != "target")
        pair = batch["pair_id"][row]
        pairs.append(numbers[pair] if pair in numbers else stable_seed("pair", pair))
        sides.append(side)
        answers.append(-1 if chosen[row] < 0 else side if chosen[row] == right[row] else 1 - side)
        firsts.append(side if right[row] == 0 else 1 - side)
    number, label, prediction, first = (torch.tensor(values) for values in (pairs, sides, answers, firsts))
    metric.update(number, label, prediction, first, places)


class PairScores:
    """Metrics of an update: one of its pairs, and one of known pairs that are asked about to see what was forgotten.

    Args:
        metric: Metric of the pairs that are updated on; ``None`` for none.
        retention_metric: Metric of the other pairs, of the part ``retention``.
    """

    def __init__(self, metric: Metric | None, retention_metric: Metric | None) -> None:
        self.metrics = {"": metric, "retention/": retention_metric}

    @property
    def wanted(self) -> bool:
        """Whether there is a metric."""
        return any(metric is not None for metric in self.metrics.values())

    def add(self, batch: Batch, chosen: Sequence[int], numbers: Mapping[str, int]) -> None:
        """Hand the answers of a batch to the metric of their part.

        Raises:
            ValueError: If known pairs are asked about and no metric is there for them.
        """
        parts = batch.get("part", ["pairs"] * len(chosen))
        retained = [row for row, part in enumerate(parts) if part == "retention"]
        if retained and self.metrics["retention/"] is None:
            raise ValueError("The data ask about retention_pairs, so retention_metric must be given.")
        others = [row for row, part in enumerate(parts) if part != "retention"]
        for metric, rows in zip(self.metrics.values(), (others, retained), strict=True):
            if metric is not None:
                add_answers(metric, batch, chosen, rows, numbers)

    def compute(self, everywhere: bool) -> dict[str, float]:
        """Return all numbers, and begin anew.

        Args:
            everywhere: Whether other processes compute too, so that none may be left out.
        """
        found: dict[str, float] = {}
        for prefix, metric in self.metrics.items():
            if metric is not None and (everywhere or metric.update_called):
                found |= {prefix + name: float(value) for name, value in metric.compute().items()}
                metric.reset()
        return found
