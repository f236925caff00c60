"""Adversarial training with projected gradient descent, or with any other attack."""

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lit_modules.adversarial.core.base import AdversarialArguments, Batch, LossTraining
from lit_modules.adversarial.core.defaults import default_sgd
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.utils.arguments import Unpack


class PGDTraining(LossTraining):
    """Train on what an attack finds: ``min E[max CE(f(x + delta), y)]``.

    Each batch is replaced by its adversarial samples, found in evaluation mode, and the mean cross-entropy on these
    alone is lowered in training mode. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss`` and
    ``train/robust_accuracy``, both on the adversarial samples; a clean accuracy would cost a further pass.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        attack: Finds the adversarial samples, with ``keep="last"``; by default PGD in Linf with eps 8/255, 10 steps of
            2/255 and a random start, the paper's for CIFAR10. For MNIST it has eps 0.3 and 40 steps of 0.01.
        optimizer: Builds the optimizer from the trainable parameters; by default the paper's for CIFAR10, SGD at 0.1
            with momentum 0.9 and weight decay 2e-4. For MNIST it has Adam at 1e-4.
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> module = PGDTraining(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> module.attack.steps
        10

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks" (arXiv 1706.06083), section 2.
    """

    def __init__(
        self,
        classifier: nn.Module,
        attack: Attack | None = None,
        optimizer: OptimizerCallable = default_sgd,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        attack = attack or LinfPGD(eps=8 / 255, steps=10, step_size=2 / 255, keep="last")
        super().__init__(classifier, attack, optimizer, **shared)

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy on the adversarial samples."""
        logits = self(batch["adversarial"])
        return F.cross_entropy(logits, batch["label"]), {"robust_accuracy": logits}
