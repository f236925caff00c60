"""Questions with options: reading which option an answer names, and scoring the answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from lit_modules.coda.core.answers import read_answer
from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy
from lit_modules.utils.hashing import stable_seed

Batch = dict[str, Any]
Prediction = dict[str, list[Any]]
_OBJECTS = ("chat", "metric", "retention_metric", "optimizer")  # which hparams leave out, as they do not load safely


class QuestionArguments(TypedDict, total=False):
    """Arguments of all modules that answer questions; see :class:`MultipleChoice`."""

    metric: Metric | None
    retention_metric: Metric | None
    seed: int


class MultipleChoice(LightningModule, ABC):
    """Answer questions with options and score the answers.

    Args:
        objects: Names of further arguments that hparams leave out.
        metric: PairAccuracy, or NWayAccuracy for more than two options.
        retention_metric: The same for the data's ``retention_pairs``, known pairs that are not updated on.
        seed: Seed of dropout and of drawn answers.
    """

    def __init__(
        self, *objects: str, metric: Metric | None = None, retention_metric: Metric | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=[*_OBJECTS, *objects])
        self.metric, self.retention_metric = metric, retention_metric
        self.seed = seed
        self._results: dict[str, float] | None = None

    @abstractmethod
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Prediction:
        """Answer a batch of questions; ``option`` is the index of the option answered, -1 for none."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Hand the model's answers to the metrics."""
        self._answer(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics' numbers as ``val/<name>``."""
        self._log_scores("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Hand the model's answers to the metrics."""
        self._answer(batch)

    def on_test_epoch_end(self) -> None:
        """Log the metrics' numbers as ``test/<name>`` and keep them for :meth:`results`."""
        if self._metrics():
            self._results = self._log_scores("test")

    def results(self) -> dict[str, float]:
        """Return the numbers of the last test.

        Raises:
            RuntimeError: If no test with a metric has run.
        """
        if self._results is None:
            raise RuntimeError(f"{type(self).__name__} has no results yet: run `test` with a `metric` first.")
        return self._results

    def score(self, batch: Batch, options: Sequence[int]) -> None:
        """Hand answers, indices of options or -1, to the metric of their part: ``retention_metric`` or ``metric``.

        Raises:
            ValueError: If known pairs are asked about without ``retention_metric``, or the metric is of pairs and a
                question does not have two options.
            TypeError: If a metric is of another kind.
        """
        parts = batch.get("part", ["pairs"] * len(options))
        retained = [row for row, part in enumerate(parts) if part == "retention"]
        others = [row for row, part in enumerate(parts) if part != "retention"]
        if retained and self.retention_metric is None:
            raise ValueError("The data ask about retention_pairs, so retention_metric must be given.")
        for metric, rows in ((self.metric, others), (self.retention_metric, retained)):
            if metric is None or not rows:
                continue
            if isinstance(metric, NWayAccuracy):
                _add_labels(metric, batch, options, rows)
            elif isinstance(metric, PairAccuracy):
                _add_pairs(metric, batch, options, rows=rows, numbers=self._pair_numbers())
            else:
                raise TypeError(f"metric must be a PairAccuracy or NWayAccuracy, got {type(metric).__name__}.")

    def _metrics(self) -> dict[str, Metric]:
        metrics = {"": self.metric, "retention/": self.retention_metric}
        return {prefix: metric for prefix, metric in metrics.items() if metric is not None}

    def _answer(self, batch: Batch) -> None:
        if self._metrics():
            self.score(batch, self.predict_step(batch)["option"])

    def _pair_numbers(self) -> dict[str, int]:
        """Return the number of each pair of the datamodule that is updated on; empty without a datamodule."""
        datamodule = getattr(self._trainer, "datamodule", None)  # the user's own may have no pairs
        return {pair.pair_id: number for number, pair in enumerate(getattr(datamodule, "pairs", []))}

    def _log_scores(self, stage: str) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for prefix, metric in self._metrics().items():
            if self.trainer.world_size > 1 or metric.update_called:  # with other processes, all compute or none
                numbers |= {prefix + name: float(value) for name, value in metric.compute().items()}
                metric.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, sync_dist=False)
        return numbers


def prediction(batch: Batch, answers: Sequence[str], options: Sequence[int] | None = None) -> Prediction:
    """Return the answers to a batch with what was asked; ``None`` for ``options`` reads them in the answers.

    Returns:
        Lists: ``question``, ``options`` in the order asked, ``answer``, ``option``, its index among them or -1 for an
        answer that names none or several, and ``name`` of it or ``None``; ``pair_id``, ``path`` and ``order`` as they
        came.
    """
    options = read_options(answers, batch) if options is None else options
    names = [names[index] if index >= 0 else None for names, index in zip(batch["options"], options, strict=True)]
    columns: Prediction = {name: list(batch[name]) for name in ("pair_id", "path") if name in batch}
    if "order" in batch:
        columns["order"] = batch["order"].tolist()
    columns |= {"question": list(batch["prompt"]), "options": list(batch["options"]), "answer": list(answers)}
    return {**columns, "option": list(options), "name": names}


def read_options(answers: Sequence[str], batch: Batch) -> list[int]:
    """Return the index of the option that each answer names, -1 for one that names none or several."""
    aliases = batch.get("aliases", [None] * len(answers))
    read = [read_answer(*row) for row in zip(answers, batch["options"], aliases, strict=True)]
    return [-1 if option is None else option for option in read]


def _add_labels(metric: NWayAccuracy, batch: Batch, options: Sequence[int], rows: Sequence[int]) -> None:
    labels = batch["option_label"].tolist()
    answered = [labels[row][options[row]] if options[row] >= 0 else -1 for row in rows]
    index = batch["index"].cpu()[list(rows)] if "index" in batch else None
    metric.update(batch["label"].cpu()[list(rows)], torch.tensor(answered), index)


def _add_pairs(
    metric: PairAccuracy, batch: Batch, options: Sequence[int], *, rows: Sequence[int], numbers: Mapping[str, int]
) -> None:
    column = next((name for name in ("query", "index") if name in batch), None)
    right = batch["answer_option"].tolist()
    table = []
    for row in rows:
        if len(batch["options"][row]) != 2:
            raise ValueError(
                f"PairAccuracy needs two options, got {len(batch['options'][row])}; give NWayAccuracy, or n_way 2."
            )
        pair, side = batch["pair_id"][row], int(batch["role"][row] != "target")
        # pairs without a number get one from their name, the same on all processes
        number = numbers[pair] if pair in numbers else stable_seed("pair", pair)
        answer = -1 if options[row] < 0 else side if options[row] == right[row] else 1 - side
        table.append((number, side, answer, side if right[row] == 0 else 1 - side))
    pairs, labels, answers, firsts = torch.tensor(table).unbind(1)
    index = None if column is None else batch[column].cpu()[list(rows)]
    metric.update(pairs, labels, answers, first=firsts, index=index)
