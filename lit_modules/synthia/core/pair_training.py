"""Base of modules that train on pairs: an image to draw near, and images to leave."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.base import Batch, TextToImage, TextToImageArguments
from lit_modules.synthia.core.objective import masked_mean
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.utils.arguments import Unpack

_KEYS = ("prompt", "pos", "neg", "neg_mask")


class ErrorMonitor:
    """Warn, once, when an error has risen over its start.

    The start is the mean of the first ``window`` values, the present a moving average over about as many.

    Args:
        window: Number of values, at least 1.
        factor: Ratio of present to start that counts as risen, above 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> monitor = ErrorMonitor(window=2, factor=1.5)
        >>> [monitor.update(value) for value in (1.0, 1.0, 1.1, 3.0)]
        [False, False, False, True]
    """

    def __init__(self, window: int = 50, factor: float = 1.2) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}.")
        self.window, self.factor = window, factor
        self.count, self.start, self.present = 0, 0.0, 0.0
        self.warned = False

    def update(self, error: float) -> bool:
        """Take the error of a step, and return whether it has risen; warn the first time."""
        self.count += 1
        if self.count <= self.window:
            self.start += (error - self.start) / self.count
            self.present = self.start
            return False
        self.present += (error - self.present) / self.window
        risen = self.present > self.factor * self.start
        if risen and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"The error on the positives has risen to {self.present:.4g} from {self.start:.4g} at the start (after "
                f"{self.count} steps): the loss is lowered by spoiling the images. Lower the learning rate or the "
                "weight of the negatives, or stop earlier."
            )
        return risen

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"count": self.count, "start": self.start, "present": self.present, "warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.count, self.start, self.present = int(state["count"]), state["start"], state["present"]
        self.warned = bool(state["warned"])


class PairTrainingArguments(TextToImageArguments, total=False):
    """Shared arguments of modules that train on pairs; see :class:`PairTraining`."""

    validation_images: int


class PairTraining(TextToImage):
    """Train on images of new designs and of existing concepts; a subclass gives :meth:`losses`.

    A batch has ``prompt`` (list of str), ``pos`` (floats in [-1, 1], ``(batch, 3, height, width)``), ``neg`` (``(batch,
    negatives, 3, height, width)``), ``neg_mask`` (bool, ``(batch, negatives)``) and perhaps ``pair_id`` and ``draw``,
    which numbers the choice of images (``(batch,)``). Noise and timestep belong to the row, by both: a positive and its
    negatives share them, another row of the same pair has its own.

    Logs ``train/loss`` and its parts, ``train/positive`` and ``train/negative`` among them, and in validation, at fixed
    noise and timesteps, the errors ``val/positive`` and ``val/negative``, and ``val/gap``, the second less the first.
    Warns when the error on the positives rises over its start.

    Args:
        backbone: Text-to-image model.
        validation_images: Images that a validation generates for each row, for the metric; 0 for none.

    Raises:
        ValueError: If an argument is out of its range.
    """

    watched = "positive"
    """Loss that the monitor of rising errors watches, if there is one of the name."""

    def __init__(self, backbone: Backbone, validation_images: int = 0, **shared: Unpack[TextToImageArguments]) -> None:
        super().__init__(backbone, **shared)
        if validation_images < 0:
            raise ValueError(f"validation_images must not be negative, got {validation_images}.")
        self.validation_images = validation_images
        self.monitor = ErrorMonitor()

    @abstractmethod
    def losses(
        self,
        batch: Mapping[str, Any],
        generators: Sequence[torch.Generator],
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss``, the means ``positive`` and ``negative``, and other parts; scalars.

        Each row has its generator; ``generator`` is the source of what is drawn for the whole batch.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        missing = [key for key in _KEYS if key not in batch]
        if missing:
            raise ValueError(
                f"{type(self).__name__} trains on batches with {', '.join(_KEYS)}, got one without {missing[0]}."
            )
        generators = self.row_generators(batch, "train", self.global_step, batch_idx)
        once = generator_of(self.seed, self.global_step, batch_idx)
        losses = self.with_prior(self.losses(batch, generators, self.conditions(batch), once), generators)
        self.check(losses, batch)
        if self.watched in losses:
            self.monitor.update(float(losses[self.watched].detach()))
        size = len(batch["prompt"])
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in losses.items() if name != "loss"}, batch_size=size)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the errors of a batch, at the same noise and timesteps in every validation, if it has images."""
        if {"pos", "neg", "neg_mask"} <= batch.keys():
            generators = self.row_generators(batch, "val")
            positive, negatives = (self.latents(batch, key, generators) for key in ("pos", "neg"))
            both = torch.cat([positive[:, None], negatives], 1)
            errors = self.noise_errors(both, *self.draw_noise(positive, generators), self.conditions(batch))
            mask = batch["neg_mask"].bool()
            with_negatives = mask.any(1)
            count = int(with_negatives.sum())  # a process without any logs the same names, with weight 0
            away = masked_mean(errors[:, 1:], mask)
            self.log("val/positive", errors[:, 0].mean(), sync_dist=True, batch_size=len(mask))
            for name, values in {"val/negative": away, "val/gap": away - errors[:, 0]}.items():
                mean = values[with_negatives].sum() / max(count, 1)
                self.log(name, mean, prog_bar=name == "val/gap", sync_dist=True, batch_size=count)
        if self.metric is not None and self.validation_images and not self.trainer.sanity_checking:
            self.score(batch, self.validation_images)

    def on_validation_epoch_end(self) -> None:
        """Log the metric's numbers."""
        if self.metric is not None and self.validation_images and not self.trainer.sanity_checking:
            self.log_metric("val")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and the state of the monitor."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["synthia"] = {"monitor": self.monitor.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the adapter, and the state of the monitor."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("synthia", {})
        if "monitor" in state:
            self.monitor.load_state_dict(state["monitor"])
        elif state:  # of a checkpoint from before the monitor had its name
            self.monitor.load_state_dict(state["rising"] | {"warned": state["warned"]})
