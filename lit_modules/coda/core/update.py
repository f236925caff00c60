"""Updates on few pictures: training steps, the schedule, and checkpoints."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from lit_modules.coda.core.multiple_choice import Batch, MultipleChoice, QuestionArguments
from lit_modules.utils.adapters import check_restored
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.hashing import stable_seed
from lit_modules.utils.precision import check_precision
from lit_modules.utils.random_state import preserved_random_state
from lit_modules.utils.resuming import bring, stepping_batches
from lit_modules.utils.training_state import check_finite, without_frozen


def adamw_without_decay(parameters: Iterable[Any]) -> Optimizer:
    """Build AdamW without weight decay; learning rates stand in the groups of parameters."""
    return AdamW(parameters, weight_decay=0.0)


class UpdateArguments(QuestionArguments, total=False):
    """Arguments of all updates; see :class:`UpdateModule`."""

    optimizer: OptimizerCallable


class UpdateModule(MultipleChoice):
    """Train ``model`` on a loss and score answers to questions with options; the base of the modules that learn.

    Args:
        objects: Names of further arguments that hparams leave out.
        model: Name or folder of a model, or a model.
        warmup_ratio: Share of the steps in which the learning rate rises, in [0, 1]; then it falls by a cosine.
        optimizer: Builds the optimizer from groups of parameters that have their learning rates.
        shared: Arguments of :class:`~lit_modules.coda.core.multiple_choice.MultipleChoice`, by name.

    Raises:
        ValueError: If ``warmup_ratio`` is out of its range.
    """

    def __init__(
        self,
        *objects: str,
        model: str | PreTrainedModel,
        warmup_ratio: float,
        optimizer: OptimizerCallable = adamw_without_decay,
        **shared: Unpack[QuestionArguments],
    ) -> None:
        objects = objects if isinstance(model, str) else (*objects, "model")
        super().__init__(*objects, **shared)
        if not 0 <= warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {warmup_ratio}.")
        self.model_name = model if isinstance(model, str) else None
        self.model: Any = None if isinstance(model, str) else model
        self.warmup_ratio, self.optimizer = warmup_ratio, optimizer
        self.strict_loading = False
        self._configured = False

    def configure_callbacks(self) -> list[Any]:
        """Bring what lets a run stop and resume at any batch."""
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
        with preserved_random_state(self.device, stable_seed(*key)):
            loss = self.loss(batch)
        value: Any = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
        check_finite(self, {"training": float(value)}, {"training": list(map(str, batch.get("path", [])))})
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["prompt"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of right answers on pairs that are updated on, and hand the model's answers to the metrics."""
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
        """Refuse a checkpoint of other weights, which would be left out in silence."""
        self.configure_model()
        check_restored(checkpoint["state_dict"], self.model, "model.")
