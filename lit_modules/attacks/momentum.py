"""The momentum iterative method (MI-FGSM)."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.norms import normalise, steepest
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.attacks.pgd import GradientAttack, StepArguments
from lit_modules.utils.arguments import Unpack


class Momentum(GradientAttack):
    """Base of the momentum iterative methods: ``m <- decay m + gradient / ||gradient||_1``, then a step along m.

    Args:
        decay: Share of the momentum that stays, at least 0; at 0 the basic iterative method.
        random_start: Start uniformly in the ball.
    """

    def __init__(self, *, decay: float = 1.0, random_start: bool = False, **shared: Unpack[StepArguments]) -> None:
        super().__init__(random_start=random_start, **shared)
        if not 0 <= decay < float("inf"):
            raise ValueError(f"decay must be finite and at least 0, got {decay!r}.")
        self.decay = decay

    def initial_carry(self, state: AttackState) -> Carry:
        """Return a momentum of zero."""
        return {"momentum": torch.zeros_like(state.x)}

    def accumulate(self, gradient: Tensor, carry: Carry) -> Tensor:
        """Add a gradient to the momentum, in place, and return it."""
        return carry["momentum"].mul_(self.decay).add_(normalise(gradient, "l1"))


class LinfMomentum(Momentum):
    """Momentum iterative method in Linf (MI-FGSM): a step along the sign of the accumulated gradients.

    The defaults are those of AdverTorch v0.1, which returns the last iterate (``keep="last"``).

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = LinfMomentum(eps=0.1, steps=5, step_size=0.05)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Dong, Liao, Pang, Su, Zhu, Hu, Li, "Boosting adversarial attacks with momentum" (arXiv 1710.06081), algorithm 1.
    """

    norm = "linf"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move by the sign of the momentum, clip to the ball and to the bounds."""
        momentum = self.accumulate(gradient, carry)
        return state.project(momentum.sign().mul_(state.broadcast(self.step_size)).add_(x), "linf")


class L2Momentum(Momentum):
    """Momentum iterative method in L2: a step along the accumulated gradients over their norm.

    AdverTorch has it since 0.2, not in v0.1, with these defaults; it divides by the perturbation coordinate by
    coordinate, which gives NaN wherever one is 0. Here a perturbation outside the ball is divided by its norm.

    References:
        Dong et al. (arXiv 1710.06081), eq. 8.
    """

    norm = "l2"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move along the unit momentum, project into the ball, then into the bounds."""
        momentum = self.accumulate(gradient, carry)
        return state.project(x + state.broadcast(self.step_size) * steepest(momentum, "l2"), "l2")
