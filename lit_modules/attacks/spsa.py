"""SPSA: Adam on gradients estimated along random signs."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import EstimatedGradientAttack, Offer, into_ball, spsa_gradient
from lit_modules.attacks.engine.losses import Loss, LossName
from lit_modules.attacks.engine.problem import Problem
from lit_modules.attacks.pgd import step_length
from lit_modules.utils.arguments import Unpack

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


class SPSA(EstimatedGradientAttack):
    """Simultaneous perturbation stochastic approximation in the Linf ball, without gradients of the model.

    Each step estimates the gradient of the margin from ``2 directions`` answers and moves by Adam, then clips to ball
    and bounds. Every sample has its own directions. The points of the differences stay within the bounds: a coordinate
    at a bound counts half there.

    AdverTorch (0.2, not in v0.1) asks for eps and takes one step, which moves by 0.01 only; one direction is shared by
    its whole batch.

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Learning rate of Adam in units of the samples, a number or one per sample.
        directions: Random directions of a step; each costs two forward passes.
        fd_step: Length of the differences in each coordinate, in units of the samples.
        loss: ``margin``, ``cross_entropy``, ``dlr``, or a callable giving one value per sample.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.
        arguments: Arguments of :class:`Attack`, by name.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = SPSA(eps=0.1, steps=5, step_size=0.05, directions=8)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks" (arXiv 1802.05666).
    """

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 100,
        step_size: Radius = 0.01,
        directions: int = 128,
        fd_step: float = 0.01,
        loss: LossName | Loss = "margin",
        max_batch: int = 256,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(norm="linf", eps=eps, steps=steps, loss=loss, max_batch=max_batch, **arguments)
        check_positive("step_size", step_size)
        check_count("directions", directions)
        check_positive("fd_step", fd_step)
        self.step_size = step_size
        self.directions = directions
        self.fd_step = fd_step

    def state(self, problem: Problem) -> dict[str, Tensor]:
        """Start Adam's two averages at zero."""
        return {"mean": torch.zeros_like(problem.x), "square": torch.zeros_like(problem.x)}

    def estimate(self, problem: Problem, x: Tensor, state: dict[str, Tensor], offer: Offer) -> Tensor:
        """Take differences along random signs."""
        return spsa_gradient(
            self.values(problem),
            x,
            problem.random,
            directions=self.directions,
            fd_step=self.fd_step,
            max_batch=self.max_batch,
        )

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move by Adam, clip to the ball and to the bounds."""
        mean = state["mean"].lerp_(gradient, 1 - _BETA1)
        square = state["square"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (square / (1 - _BETA2 ** (step + 1))).sqrt_().add_(_TINY)
        move = mean / (1 - _BETA1 ** (step + 1)) / scale
        return into_ball(problem, x + move * step_length(self.step_size, problem), "linf")
