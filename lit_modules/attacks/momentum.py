"""The momentum iterative method."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_positive
from lit_modules.attacks.engine.fixed_radius import FixedRadiusAttack, Keep
from lit_modules.attacks.engine.losses import Loss, LossName
from lit_modules.attacks.engine.norms import normalise, project, steepest
from lit_modules.attacks.engine.problem import Problem
from lit_modules.attacks.pgd import step_length
from lit_modules.utils.arguments import Unpack


class Momentum(FixedRadiusAttack):
    """Base of the momentum iterative methods: ``m <- decay m + gradient / ||gradient||_1``, then a step along m.

    Args:
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Length of a step in the attack's norm, a number or one per sample.
        decay: Share of the momentum that stays, at least 0; at 0 the basic iterative method.
        random_start: Start uniformly in the ball.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.
    """

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 40,
        step_size: Radius = 0.01,
        decay: float = 1.0,
        random_start: bool = False,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, random_start=random_start, loss=loss, keep=keep, passes=passes, **arguments
        )
        check_positive("step_size", step_size)
        if not 0 <= decay < float("inf"):
            raise ValueError(f"decay must be finite and at least 0, got {decay!r}.")
        self.step_size = step_size
        self.decay = decay

    def state(self, problem: Problem) -> dict[str, Tensor]:
        """Return an empty momentum."""
        return {"momentum": torch.zeros_like(problem.x)}

    def gather(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Add a gradient to the momentum, in place, and return it."""
        return state["momentum"].mul_(self.decay).add_(normalise(gradient, "l1"))


class LinfMomentum(Momentum):
    """Momentum iterative method in Linf (MI-FGSM): a step along the sign of the gathered gradients.

    The defaults are those of AdverTorch v0.1, which returns the last iterate (``keep="last"``).

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Step in units of the samples, a number or one per sample.
        decay: Share of the momentum that stays, at least 0.
        random_start: Start uniformly in the ball.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = LinfMomentum(eps=0.1, steps=5, step_size=0.05)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Dong, Liao, Pang, Su, Zhu, Hu, Li, "Boosting adversarial attacks with momentum" (arXiv 1710.06081), algorithm 1.
    """

    norm = "linf"

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move by the sign of the momentum, clip to the ball and to the bounds."""
        assert problem.radius is not None
        moved = self.gather(gradient, state).sign().mul_(step_length(self.step_size, problem)).add_(x)
        moved = torch.minimum(torch.maximum(moved, problem.x - problem.radius), problem.x + problem.radius)
        return problem.clamp(moved)


class L2Momentum(Momentum):
    """Momentum iterative method in L2: a step along the gathered gradients over their norm.

    AdverTorch has it since 0.2, not in v0.1, with these defaults; it divides by the perturbation coordinate by
    coordinate, which gives NaN wherever one is 0. Here a perturbation outside the ball is divided by its norm.

    Args:
        eps: L2 radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: L2 length of a step, a number or one per sample.
        decay: Share of the momentum that stays, at least 0.
        random_start: Start uniformly in the ball.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Dong et al. (arXiv 1710.06081), eq. 8.
    """

    norm = "l2"

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move along the unit momentum, project into the ball, then into the bounds."""
        assert problem.radius is not None
        moved = x + step_length(self.step_size, problem) * steepest(self.gather(gradient, state), "l2")
        return problem.clamp(problem.x + project(moved - problem.x, problem.radius, "l2"))
