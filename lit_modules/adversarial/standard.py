"""Training on clean samples, the companion of the adversarial methods."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lit_modules.adversarial.core.base import INJECTED, AdversarialTraining, Batch
from lit_modules.adversarial.core.defaults import default_optimizer
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import check_classes


class StandardTraining(AdversarialTraining):
    """Train a classifier on clean samples: the mean cross-entropy, without an attack.

    Validation and test are those of the adversarial methods, so that a standard and a robust model are compared with
    the same numbers. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss`` and
    ``train/accuracy``.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        validation_attack: Attack of the validation; by default PGD in Linf, eps 8/255, 20 steps of a quarter of it.
        test_attacks: Attacks of the test, by name or as a list; by default PGD of 100 steps with the same radius.
        evaluation_folder: Folder for the records of finished test samples; by default ``evaluation`` in the trainer's
            ``default_root_dir``.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer.
        scheduler_interval: Whether the scheduler moves after each optimizer step or after each epoch.
        seed: Kept for the same signature as the adversarial methods; nothing here is random.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> module = StandardTraining(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> module.attack is None
        True
    """

    def __init__(
        self,
        classifier: nn.Module,
        validation_attack: Attack | None = None,
        test_attacks: dict[str, Attack] | list[Attack] | None = None,
        evaluation_folder: str | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        seed: int = 0,
    ) -> None:
        super().__init__(
            classifier,
            None,
            validation_attack,
            test_attacks,
            evaluation_folder,
            optimizer,
            scheduler,
            scheduler_interval,
            seed,
        )
        self.save_hyperparameters(ignore=INJECTED)

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy on the clean samples."""
        logits = self(batch["image"])
        check_classes(batch["label"], logits.shape[1])
        return F.cross_entropy(logits, batch["label"]), {"accuracy": logits}
