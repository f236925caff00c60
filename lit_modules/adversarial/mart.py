"""MART, misclassification-aware adversarial training."""

from collections.abc import Iterable
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_modules.adversarial.core.base import INJECTED, AdversarialTraining, Batch
from lit_modules.adversarial.core.losses import mart_loss
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.pgd import LinfPGD


def mart_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD at a rate of 0.01 with momentum 0.9 and weight decay 3.5e-3."""
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=3.5e-3)


class MART(AdversarialTraining):
    """Train on ``BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))``.

    The boosted cross-entropy BCE also lowers the largest other probability, and the divergence counts most where the
    clean sample is not classified correctly; see :func:`lit_modules.adversarial.core.losses.mart_loss`. ``x'`` comes
    from PGD on the cross-entropy. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss``, ``train/accuracy``
    (clean) and ``train/robust_accuracy``.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        attack: Finds the adversarial samples, with ``keep="last"``; by default PGD in Linf with eps 0.031, 10 steps of
            0.007 and a random start.
        beta: Weight of the divergence; the authors' script has 5, their function 6.
        validation_attack: Attack of the validation; by default PGD of 20 steps of a quarter of the radius, in the norm
            and radius of ``attack``.
        test_attacks: Attacks of the test, by name or as a list; by default PGD of 100 steps in that norm and radius.
        evaluation_folder: Folder for the records of finished test samples; by default ``evaluation`` in the trainer's
            ``default_root_dir``.
        optimizer: Builds the optimizer from the trainable parameters; by default SGD at 0.01 with momentum 0.9 and
            weight decay 3.5e-3 (120 epochs).
        scheduler: Builds the learning-rate scheduler from the optimizer.
        scheduler_interval: Whether the scheduler moves after each optimizer step or after each epoch.
        seed: Seed of the attack's random numbers in training.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> module = MART(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> module.beta
        5.0

    References:
        Wang et al., "Improving adversarial robustness requires revisiting misclassified examples" (ICLR 2020).
    """

    def __init__(
        self,
        classifier: nn.Module,
        attack: Attack | None = None,
        beta: float = 5.0,
        validation_attack: Attack | None = None,
        test_attacks: dict[str, Attack] | list[Attack] | None = None,
        evaluation_folder: str | None = None,
        optimizer: OptimizerCallable = mart_optimizer,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        seed: int = 0,
    ) -> None:
        super().__init__(
            classifier,
            attack or LinfPGD(eps=0.031, steps=10, step_size=0.007, keep="last"),
            validation_attack,
            test_attacks,
            evaluation_folder,
            optimizer,
            scheduler,
            scheduler_interval,
            seed,
        )
        if not beta >= 0:
            raise ValueError(f"beta must not be negative, got {beta}.")
        self.save_hyperparameters(ignore=INJECTED)
        self.beta = beta

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of MART."""
        clean, adversarial = self(batch["image"]), self(batch["adversarial"])
        loss = mart_loss(clean, adversarial, batch["label"], self.beta)
        return loss, {"accuracy": clean, "robust_accuracy": adversarial}
