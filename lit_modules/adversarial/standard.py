"""Training on clean samples, the companion of the adversarial methods."""

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lit_modules.adversarial.core.base import AdversarialArguments, Batch, LossTraining
from lit_modules.adversarial.core.defaults import default_sgd
from lit_modules.attacks.engine.checks import check_classes
from lit_modules.utils.arguments import Unpack


class StandardTraining(LossTraining):
    """Train a classifier on clean samples: the mean cross-entropy, without an attack.

    Validation and test are those of the adversarial methods, so that a standard and a robust model are compared with
    the same numbers. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss`` and
    ``train/accuracy``.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        optimizer: Builds the optimizer from the trainable parameters.
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

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
        optimizer: OptimizerCallable = default_sgd,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        super().__init__(classifier, None, optimizer, **shared)

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy on the clean samples."""
        logits = self(batch["image"])
        check_classes(batch["label"], logits.shape[1])
        return F.cross_entropy(logits, batch["label"]), {"accuracy": logits}
