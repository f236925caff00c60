"""Early stopping of unlearning."""

import inspect
import json
import math
from collections import deque
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

_LOSS = "train/forget_loss"
_REFERENCE = "val/forget_loss"


class ForgetStopping(Callback):
    """Stop, or warn, when the forget loss reaches the level of a model that does not know the forget set.

    The forget loss has no upper bound. Raised past that level it makes the model avoid its forget set, which betrays it
    to a membership attack: over-unlearning. The mean over the last ``window`` optimizer steps is compared.

    Asks of the module that it logs ``train/forget_loss``, the mean token NLL in nats, at each optimizer step, and for
    the level ``"uniform"`` also ``vocab_size``, the number of tokens it knows. Processes compare the mean of their
    losses. The trainer's ``min_steps`` and ``min_epochs`` go first. State is kept in the checkpoint.

    Args:
        level: Forget loss in nats at which to act. ``"uniform"`` is the logarithm of the vocabulary size, the loss of a
            guess. A path names a JSON file with ``"val/forget_loss"``, as validation of a model trained on the retain
            set alone gives it.
        action: Whether to end training or only to say so.
        window: Optimizer steps to average the loss over.

    Raises:
        ValueError: If ``level`` is not positive and finite, its file does not hold the number, or ``action`` or
            ``window`` is out of range.
        FileNotFoundError: If ``level`` is a path without a file.

    Example:
        >>> ForgetStopping(level=4.5, action="warn").level
        4.5
    """

    def __init__(
        self, level: float | str = "uniform", action: Literal["stop", "warn"] = "stop", window: int = 5
    ) -> None:
        if action not in ("stop", "warn"):
            raise ValueError(f"action must be 'stop' or 'warn', got {action!r}.")
        if window < 1:
            raise ValueError(f"window must be at least 1 optimizer step, got {window}.")
        self.origin = "as given" if isinstance(level, int | float) else "the loss of a guess"
        if isinstance(level, str) and level != "uniform":
            self.origin = f"the reference in {level}"
            level = _read_reference(Path(level))
        if isinstance(level, int | float) and not 0 < level < math.inf:
            raise ValueError(f"level must be positive and finite, got {level}.")
        self.level = level
        self.action = action
        self.window = window
        self._losses: deque[float] = deque(maxlen=window)
        self._warned = False
        self._last_step = 0
        self._threshold = math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module knows its vocabulary if the level asks for it."""
        # static: a property may need the weights, which are loaded after this hook
        if stage == "fit" and self.level == "uniform" and inspect.getattr_static(pl_module, "vocab_size", None) is None:
            raise TypeError(
                f'ForgetStopping(level="uniform") asks for {type(pl_module).__name__}.vocab_size, which is missing; '
                "give a level in nats instead."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the level, now that the weights are there."""
        self._last_step = trainer.global_step
        if trainer.global_step == 0:  # not a resumed run, which takes up its window
            self._losses.clear()
        if trainer.global_step == 0 or self.action == "stop":  # a run that stops says so each time
            self._warned = False
        module: Any = pl_module
        self._threshold = math.log(module.vocab_size) if isinstance(self.level, str) else self.level

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the forget loss after each optimizer step."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if _LOSS not in trainer.callback_metrics:
            raise RuntimeError(f"ForgetStopping watches {_LOSS!r}, which {type(pl_module).__name__} does not log.")
        loss = torch.as_tensor(trainer.callback_metrics[_LOSS], dtype=torch.float32, device=pl_module.device)
        self._losses.append(float(trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")))
        mean = sum(self._losses) / len(self._losses)
        if len(self._losses) < self.window or not mean >= self._threshold:
            return
        if not self._warned:
            self._warned = True
            advice = "Training stops here; take" if self.action == "stop" else "Stop here or take"
            rank_zero_warn(
                f"Over-unlearning: the mean forget loss of the last {self.window} optimizer steps is {mean:.3f} nats "
                f"at step {trainer.global_step}, at or above the level {self._threshold:.3f} ({self.origin}). {advice} "
                "an earlier checkpoint, or train for fewer steps or at a lower learning rate.",
                category=UserWarning,
            )
        if self.action == "stop":
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the losses in the window and whether the warning was given."""
        return {"losses": list(self._losses), "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the window of an interrupted run."""
        self._losses = deque(state_dict["losses"], maxlen=self.window)
        self._warned = state_dict["warned"]


def _read_reference(path: Path) -> float:
    if not path.is_file():
        raise FileNotFoundError(f"level must be 'uniform', a loss in nats or a JSON file; there is no file {path}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[_REFERENCE]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f'{path} must be a JSON object with a number "{_REFERENCE}".') from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'"{_REFERENCE}" in {path} must be a number, got {value!r}.')
    return float(value)
