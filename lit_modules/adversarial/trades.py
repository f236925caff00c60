"""TRADES, the trade-off between accuracy and robustness."""

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_modules.adversarial.core.base import AdversarialArguments, Batch, LossTraining
from lit_modules.adversarial.core.defaults import default_sgd
from lit_modules.adversarial.core.losses import kl_divergence
from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_positive
from lit_modules.attacks.engine.state import AttackState
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.utils.arguments import Unpack


def trades_loss(clean_logits: Tensor, adversarial_logits: Tensor, label: Tensor, beta: float = 6.0) -> Tensor:
    """Return the mean of ``CE(f(x), y) + beta KL(p(x) || p(x'))``, a scalar.

    Args:
        clean_logits: Logits of the clean samples, ``(batch, classes)``.
        adversarial_logits: Logits of the adversarial samples, ``(batch, classes)``.
        label: Classes, ``(batch,)``.
        beta: Weight of the divergence (``1 / lambda`` in the paper).

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> round(float(trades_loss(logits, logits, torch.tensor([0]))), 4)  # log 2, and no divergence
        0.6931

    References:
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (arXiv 1901.08573), eq. 5.
    """
    return F.cross_entropy(clean_logits, label) + beta * kl_divergence(clean_logits, adversarial_logits).mean()


class KLPGD(LinfPGD):
    """Projected gradient descent on ``KL(p(x) || p(x'))``, from ``x + noise N(0, I)``, in the Linf ball.

    The labels play no part in the steps. The divergence has no gradient at the sample itself, hence the noise. Returns
    the last iterate of each sample (``keep="last"``).

    Args:
        eps: Linf radius in units of the samples.
        steps: Number of steps.
        step_size: Step in units of the samples.
        noise: Standard deviation of the start, in units of the samples.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Zhang et al. (arXiv 1901.08573), algorithm 1.
    """

    fixed = ("random_start", "loss", "keep")

    def __init__(
        self,
        *,
        eps: Radius = 0.031,
        steps: int = 10,
        step_size: Radius = 0.007,
        noise: float = 0.001,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, step_size=step_size, random_start=True, loss="cross_entropy", keep="last", **shared
        )
        check_positive(noise=noise)
        self.noise = noise

    def start(self, state: AttackState) -> Tensor:
        """Return the samples with a little noise, within radius and bounds."""
        noise = state.random.normal(*state.x.shape[1:]).to(state.x.dtype) * self.noise
        return state.clamp(state.x + torch.minimum(torch.maximum(noise, -state.radius), state.radius))

    def iterate(self, state: AttackState) -> Tensor:
        """Take all steps up the divergence from the answers to the clean samples."""
        clean = state.clean
        if clean is None:
            with torch.no_grad():
                clean = state.logits(state.x)

        def divergence(logits: Tensor, label: Tensor) -> Tensor:
            return kl_divergence(clean, logits)

        x = self.start(state)
        for _ in range(self.steps):
            _, _, gradient = state.gradient(x, divergence, self.eot_samples)
            x = self.step(state, x, gradient, {})
        return x


class TRADES(LossTraining):
    """Train on ``CE(f(x), y) + beta KL(p(x) || p(x'))``.

    ``x'`` maximises the divergence; see :class:`KLPGD`. Clean and adversarial samples pass the classifier one after the
    other, in training mode. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs ``train/loss``, ``train/accuracy``
    (clean) and ``train/robust_accuracy``.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        attack: Finds the adversarial samples; by default ``KLPGD(eps=0.031, steps=10, step_size=0.007)``, the paper's
            for CIFAR10. For MNIST it has eps 0.3 and 40 steps of 0.01. An attack that raises the cross-entropy is
            taken as well, and is another method.
        beta: Weight of the divergence; 6 for CIFAR10, 1 for MNIST.
        optimizer: Builds the optimizer from the trainable parameters; by default the paper's for CIFAR10, SGD at 0.1
            with momentum 0.9 and weight decay 2e-4 (76 epochs, the rate a tenth from epoch 75). For MNIST it has 0.01.
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> module = TRADES(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> module.beta
        6.0

    References:
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (arXiv 1901.08573).
    """

    def __init__(
        self,
        classifier: nn.Module,
        attack: Attack | None = None,
        beta: float = 6.0,
        optimizer: OptimizerCallable = default_sgd,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        super().__init__(classifier, attack or KLPGD(), optimizer, **shared)
        if not beta >= 0:
            raise ValueError(f"beta must not be negative, got {beta}.")
        self.beta = beta

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of TRADES."""
        clean, adversarial = self(batch["image"]), self(batch["adversarial"])
        loss = trades_loss(clean, adversarial, batch["label"], self.beta)
        return loss, {"accuracy": clean, "robust_accuracy": adversarial}
