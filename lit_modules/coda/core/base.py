"""What updates share: steps, metrics of questions with options, the schedule, and checkpoints."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from transformers import get_cosine_schedule_with_warmup

from lit_modules.coda.core.scores import PairScores, pair_numbers
from lit_modules.utils.adapters import check_restored
from lit_modules.utils.hashing import stable_seed
from lit_modules.utils.precision import check_precision
from lit_modules.utils.resuming import bring, stepping_batches
from lit_modules.utils.training_state import check_finite, without_frozen

Batch = dict[str, Any]


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    """Build AdamW without weight decay; learning rates stand in the groups of parameters."""
    return AdamW(parameters, weight_decay=0.0)


class QuestionModule(LightningModule, ABC):
    """Score answers to questions with options.

    Args:
        metric: PairAccuracy, or NWayAccuracy for more than two options.
        retention_metric: The same for the data's ``retention_pairs``.
    """

    def __init__(self, metric: Metric | None, retention_metric: Metric | None) -> None:
        super().__init__()
        self.metric, self.retention_metric = metric, retention_metric
        self.scores = PairScores(metric, retention_metric)
        self._results: dict[str, float] | None = None

    @abstractmethod
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, list[Any]]:
        """Answer a batch of questions; ``option`` is the place of the option answered, -1 for none."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Hand the model's answers to the metric."""
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metric's numbers as ``val/<name>``."""
        self._log_scores("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Hand the model's answers to the metric."""
        self._score(batch)

    def on_test_epoch_end(self) -> None:
        """Log the metric's numbers as ``test/<name>`` and keep them for :meth:`results`."""
        if self.scores.wanted:
            self._results = self._log_scores("test")

    def results(self) -> dict[str, float]:
        """Return the numbers of the last test.

        Raises:
            RuntimeError: If no test with a metric has run.
        """
        if self._results is None:
            raise RuntimeError(f"{type(self).__name__} has no results yet: run `test` with a `metric` first.")
        return self._results

    def _score(self, batch: Batch) -> None:
        if self.scores.wanted:
            self.scores.add(batch, self.predict_step(batch)["option"], pair_numbers(self))

    def _log_scores(self, stage: str) -> dict[str, float]:
        numbers = self.scores.compute(everywhere=self.trainer.world_size > 1)
        self.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, sync_dist=False)
        return numbers


class UpdateModule(QuestionModule):
    """Train ``model`` on a loss and score answers to questions with options; the base of the modules that learn.

    Args:
        warmup_ratio: Share of the steps in which the learning rate rises, in [0, 1]; then it falls by a cosine.
        metric: PairAccuracy, or NWayAccuracy for more than two options.
        retention_metric: The same for the data's ``retention_pairs``.
        optimizer: Builds the optimizer from groups of parameters that have their learning rates.
        seed: Seed of dropout.

    Raises:
        ValueError: If ``warmup_ratio`` is out of its range.
    """

    strict_loading: bool
    model: Any

    def __init__(
        self,
        warmup_ratio: float,
        metric: Metric | None,
        retention_metric: Metric | None,
        optimizer: OptimizerCallable,
        seed: int,
    ) -> None:
        super().__init__(metric, retention_metric)
        if not 0 <= warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {warmup_ratio}.")
        self.warmup_ratio = warmup_ratio
        self.optimizer = optimizer
        self.strict_loading = False
        self.seed = seed

    def configure_callbacks(self) -> list[Any]:
        """Bring what lets a run stop and go on at any batch."""
        return bring(self.trainer)

    def setup(self, stage: str) -> None:
        """Check that the trainer leaves the weights in float32."""
        check_precision(self)

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        # dropout depends on the step alone, so that a resumed run is equal to one that was never stopped
        key = (self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(stable_seed(*key))
            loss = self.loss(batch)
        value: Any = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
        check_finite(self, {"training": float(value)}, {"training": list(map(str, batch.get("path", [])))})
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["prompt"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the loss of right answers on pairs that are updated on, and hand the model's answers to the metric."""
        parts: list[str] = batch["part"] if "part" in batch else batch["prompt"]
        rows = [row for row, part in enumerate(parts) if part != "retention"]
        if rows:
            updated = {
                name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
                for name, value in batch.items()
            }
            self.log("val/loss", self.loss(updated), prog_bar=True, batch_size=len(rows), sync_dist=True)
        super().validation_step(batch, batch_idx)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that train."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def scheduled(self, groups: Sequence[tuple[list[nn.Parameter], float]]) -> Any:
        """Return the optimizer of parameters with their learning rates, and a linear rise and a cosine for them.

        Raises:
            ValueError: If nothing trains, trained weights are not float32, or the training has no end.
        """
        groups = [group for group in groups if group[0]]
        if not groups:
            raise ValueError("Nothing trains with tuning='none'; give another tuning to fit.")
        if any(parameter.dtype != torch.float32 for group, _ in groups for parameter in group):
            raise ValueError(
                "Trained weights must be float32: set the trainer's precision to '32-true' or 'bf16-mixed'."
            )
        optimizer = self.optimizer([{"params": group, "lr": rate} for group, rate in groups])
        steps = stepping_batches(self.trainer)
        if not math.isfinite(steps):
            raise ValueError("The learning rate falls until the end, so the trainer needs max_epochs or max_steps.")
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(self.warmup_ratio * steps), int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what trains."""
        checkpoint["state_dict"] = without_frozen(checkpoint["state_dict"], self.model, "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other weights, which would be left out without a word."""
        self.configure_model()
        check_restored(checkpoint["state_dict"], self.model, "model.")
