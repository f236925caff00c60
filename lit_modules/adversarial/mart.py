"""MART, misclassification-aware adversarial training."""

from collections.abc import Iterable

import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_modules.adversarial.core.base import AdversarialArguments, Batch, LossTraining
from lit_modules.adversarial.core.losses import kl_divergence
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.utils.arguments import Unpack


def mart_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD at a rate of 0.01 with momentum 0.9 and weight decay 3.5e-3."""
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=3.5e-3)


def mart_loss(clean_logits: Tensor, adversarial_logits: Tensor, label: Tensor, beta: float = 5.0) -> Tensor:
    """Return the mean of ``BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))``, a scalar.

    The boosted cross-entropy is ``BCE = CE(f(x'), y) - log(1.0001 - max_{j != y} p_j(x'))``; the constant keeps the
    logarithm finite.

    Args:
        clean_logits: Logits of the clean samples, ``(batch, classes)``.
        adversarial_logits: Logits of the adversarial samples, ``(batch, classes)``.
        label: Classes, ``(batch,)``.
        beta: Weight of the divergence (``lambda`` in the paper).

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> round(float(mart_loss(logits, logits, torch.tensor([0]))), 3)  # log 2 - log 0.5001
        1.386

    References:
        Wang et al., "Improving adversarial robustness requires revisiting misclassified examples" (ICLR 2020), eq. 11.
    """
    chosen = label[:, None]
    other = F.softmax(adversarial_logits, 1).scatter(1, chosen, 0.0).amax(1)
    boosted = F.cross_entropy(adversarial_logits, label, reduction="none") - (1.0001 - other).log()
    doubt = 1 - F.softmax(clean_logits, 1).gather(1, chosen)[:, 0]
    return (boosted + beta * kl_divergence(clean_logits, adversarial_logits) * doubt).mean()


class MART(LossTraining):
    """Train on ``BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))``.

    The boosted cross-entropy BCE also lowers the largest other probability, and the divergence counts most where the
    clean sample is not classified correctly; see :func:`mart_loss`. ``x'`` comes
    from PGD on the cross-entropy. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss``, ``train/accuracy``
    (clean) and ``train/robust_accuracy``.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        attack: Finds the adversarial samples, with ``keep="last"``; by default PGD in Linf with eps 0.031, 10 steps of
            0.007 and a random start.
        beta: Weight of the divergence; the authors' script has 5, their function 6.
        optimizer: Builds the optimizer from the trainable parameters; by default SGD at 0.01 with momentum 0.9 and
            weight decay 3.5e-3 (120 epochs).
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

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
        optimizer: OptimizerCallable = mart_optimizer,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        attack = attack or LinfPGD(eps=0.031, steps=10, step_size=0.007, keep="last")
        super().__init__(classifier, attack, optimizer, **shared)
        if not beta >= 0:
            raise ValueError(f"beta must not be negative, got {beta}.")
        self.beta = beta

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of MART."""
        clean, adversarial = self(batch["image"]), self(batch["adversarial"])
        loss = mart_loss(clean, adversarial, batch["label"], self.beta)
        return loss, {"accuracy": clean, "robust_accuracy": adversarial}
