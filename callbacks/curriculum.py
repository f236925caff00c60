"""Stages of a curriculum."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader


class Curriculum(Callback):
    """Log the stage of a curriculum and how distant its pairs are, and go on early when a metric stops to improve.

    Without ``monitor`` the stages follow the sampler's schedule. With it, a stage ends when ``patience`` validations
    passed without an improvement; the next one begins with the next epoch. It begins at the latest when the schedule
    says so. A metric that is not finite is no improvement.

    Asks of the training loader a sampler with ``stage``, the number of the stage or ``None`` where there are none;
    with ``monitor`` also ``starts``, the first epoch of each stage, and ``promote()``, which brings the next stage
    forward; ``datamodules.affordances.sampling.CurriculumSampler`` has them. Asks of the batch the distances under
    ``distance_key``. Processes compare the mean of their metrics. State is kept in the checkpoint.

    A learning-rate scheduler with ``set_stages(steps)``, as :class:`~lit_modules.synthia.StagedLR` has it, is given the
    optimizer steps of each stage at the start of the run and of each epoch, from ``starts`` and ``epochs`` of the
    sampler, or of the whole run where the sampler has no stages. ``accumulate_grad_batches`` must then be the same in
    all epochs.

    Logs, once an epoch, ``curriculum/stage`` from 0, and ``curriculum/<distance_key>``, the mean over the pairs that
    the epoch met.

    Args:
        monitor: Name of a logged validation metric that decides when a stage ends; ``None`` leaves it to the schedule.
        mode: Whether the metric improves upwards or downwards.
        patience: Validations without improvement that end a stage.
        min_delta: Least change that is an improvement, at least 0, in the metric's unit.
        distance_key: Key of the distances in the batch, ``(batch,)``; ``None`` logs no distance.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> Curriculum(monitor="val/recall", patience=2).state_dict()["starts"] is None
        True
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        patience: int = 1,
        min_delta: float = 0.0,
        distance_key: str | None = "tdistance",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 validation, got {patience}.")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be at least 0 and finite, got {min_delta}.")
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.distance_key = distance_key
        self._starts: list[int] | None = None
        self._best: float | None = None
        self._waited = 0
        self._stage: int | None = None  # that best and waited belong to
        self._announced: int | None = None
        self._begins = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sampler, and give it the stages that a resumed run had brought forward."""
        sampler = self._sampler(trainer)
        if trainer.global_step == 0 and trainer.current_epoch == 0:  # not a resumed run
            self._starts, self._best, self._waited, self._stage, self._announced = None, None, 0, None, None
        if self.monitor is not None and not getattr(sampler, "starts", None):
            raise ValueError(
                f"Curriculum(monitor={self.monitor!r}) ends stages, and the training sampler "
                f"{type(sampler).__name__} has none; choose one of its modes with stages, or leave monitor out."
            )
        self._restore(sampler)
        self._give_stages(trainer, sampler)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the stages to a sampler that was made anew, and to the scheduler, as they are now."""
        sampler = self._sampler(trainer)
        self._restore(sampler)
        self._give_stages(trainer, sampler)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage at the first batch, and the distances of each batch."""
        if self._begins:  # only now does a sampler that was resumed know its epoch
            self._begins = False
            self._log_stage(trainer, pl_module)
        if self.distance_key is None:
            return
        if not isinstance(batch, Mapping) or self.distance_key not in batch:
            keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(
                f"Curriculum asks for batch[{self.distance_key!r}], the distances of the pairs, and found {keys}; "
                "add it to the batch, or set distance_key to None."
            )
        distances = batch[self.distance_key]
        pl_module.log(
            f"curriculum/{self.distance_key}",
            distances.float().mean(),
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(distances),
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark that the next batch is the first of an epoch."""
        self._begins = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the next stage forward if the metric has stopped to improve."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        sampler = self._sampler(trainer)
        if sampler.stage != self._stage:
            self._stage, self._best, self._waited = sampler.stage, None, 0
        value = self._metric(trainer, pl_module)
        gain = math.inf if self._best is None else (value - self._best) * (1 if self.mode == "max" else -1)
        if math.isfinite(value) and gain > self.min_delta:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience and sampler.promote():
            self._starts = list(sampler.starts)
            rank_zero_info(
                f"Curriculum: stage {self._stage + 1 if self._stage is not None else 0} begins with the next epoch: "
                f"{self.monitor} did not improve in {self._waited} validations."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the first epochs of the stages, if any was brought forward, and what the metric has done."""
        return {"starts": self._starts, "best": self._best, "waited": self._waited, "stage": self._stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the stages of an interrupted run."""
        self._starts, self._best = state_dict["starts"], state_dict["best"]
        self._waited, self._stage = state_dict["waited"], state_dict["stage"]

    def _sampler(self, trainer: Trainer) -> Any:
        """Return the sampler with stages."""
        loaders = trainer.train_dataloader
        combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
        samplers = []
        for loader in combined.flattened:
            own = getattr(loader, "sampler", None)
            samplers += [own, getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "stage"):
                return sampler
        names = sorted({type(sampler).__name__ for sampler in samplers if sampler is not None}) or ["none"]
        raise TypeError(
            f"Curriculum asks for a training sampler with stages and found {', '.join(names)}; give the loader a "
            "datamodules.affordances.sampling.CurriculumSampler and Trainer(use_distributed_sampler=False), or leave "
            "the callback out."
        )

    def _restore(self, sampler: Any) -> None:
        if self._starts is None or list(sampler.starts) == self._starts:
            return
        if len(sampler.starts) != len(self._starts):
            raise ValueError(
                f"The checkpoint has a curriculum of {len(self._starts)} stages, got a sampler with "
                f"{len(sampler.starts)}; resume with the same pairs and mode."
            )
        sampler.starts = list(self._starts)

    def _give_stages(self, trainer: Trainer, sampler: Any) -> None:
        """Give the lengths of the stages to schedulers that ask for them."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        asking = [scheduler for scheduler in schedulers if hasattr(scheduler, "set_stages")]
        if not asking:
            return
        if not hasattr(sampler, "epochs"):
            raise TypeError(
                f"{type(asking[0]).__name__} asks for the lengths of the stages, and {type(sampler).__name__} has no "
                "epochs, the number of epochs of the curriculum; give the scheduler the steps of each stage instead."
            )
        steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        end = max(sampler.epochs, trainer.max_epochs or 0)  # the last stage goes on as long as the run
        lengths = [steps * (later - first) for first, later in pairwise([*(sampler.starts or [0]), end])]
        if trainer.max_epochs == -1:
            lengths[-1] = max(lengths[-1], trainer.max_steps - sum(lengths[:-1]))
        for scheduler in asking:
            scheduler.set_stages(lengths)

    def _log_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = self._sampler(trainer).stage
        if stage is None:
            return
        pl_module.log("curriculum/stage", float(stage), on_step=False, on_epoch=True, batch_size=1)
        if stage != self._announced:
            rank_zero_info(f"Curriculum: stage {stage} in epoch {trainer.current_epoch}.")
            self._announced = stage

    def _metric(self, trainer: Trainer, pl_module: LightningModule) -> float:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise RuntimeError(
                f"Curriculum watches {self.monitor!r}, which {type(pl_module).__name__} does not log in validation; "
                f"it logs {known}."
            )
        value = torch.as_tensor(trainer.callback_metrics[self.monitor], dtype=torch.float32, device=pl_module.device)
        return float(trainer.strategy.reduce(value.detach().clone(), reduce_op="mean"))
