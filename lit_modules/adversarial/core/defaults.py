"""Default attacks, optimizer and schedule of the adversarial methods."""

import math
from collections.abc import Iterable

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.pgd import L1PGD, L2PGD, LinfPGD
from lit_modules.utils.resuming import stepping_batches


def default_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD at a rate of 0.1 with momentum 0.9 and weight decay 2e-4."""
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=2e-4)


def pgd_like(attack: Attack, steps: int, share: float, purpose: str) -> Attack:
    """Return PGD in the norm, the radius and the bounds of another attack.

    Args:
        attack: Attack of the training.
        steps: Number of steps.
        share: Length of a step as a share of the radius.
        purpose: Name of the argument that the result stands in for, for the error.

    Raises:
        ValueError: If the attack has no radius, or one for each sample.
    """
    classes: dict[str | None, type[LinfPGD] | type[L2PGD] | type[L1PGD]] = {"linf": LinfPGD, "l2": L2PGD, "l1": L1PGD}
    eps = attack.eps
    if attack.norm not in classes or eps is None or (isinstance(eps, Tensor) and eps.numel() > 1) or not float(eps) > 0:
        raise ValueError(
            f"The default of {purpose} is PGD in the norm and radius of the training attack, and {attack!r} has not "
            f"one positive radius in linf, l2 or l1; give {purpose}."
        )
    radius = float(eps)
    return classes[attack.norm](eps=radius, steps=steps, step_size=share * radius, bounds=attack.bounds)


def triangle(optimizer: Optimizer, trainer: Trainer, repeats: int = 1) -> LambdaLR:
    """Return a schedule that rises to the optimizer's rate at half of the training's steps, and falls back to 0.

    Args:
        optimizer: Optimizer, with the largest rate of the cycle.
        trainer: Trainer of the run that begins.
        repeats: Optimizer steps of a batch.

    Raises:
        ValueError: If the training has no end.
    """
    steps = stepping_batches(trainer) * repeats
    if math.isinf(steps):
        raise ValueError("The default schedule needs an end of the training; give max_epochs, max_steps or scheduler.")
    total = steps if trainer.max_steps == -1 else min(trainer.max_steps, steps)
    # half a step in, so that no step has the rate 0
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - abs(2 * (step + 0.5) / total - 1)))
