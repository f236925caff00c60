"""SPSA: Adam on gradients estimated along random signs."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import (
    EstimatedGradientAttack,
    Offer,
    QueryArguments,
    project_into_ball,
    spsa_gradient,
)
from lit_modules.attacks.engine.state import AttackState, Carry
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
        steps: Number of steps.
        step_size: Learning rate of Adam in units of the samples, a number or one per sample.
        directions: Random directions of a step; each costs two forward passes.
        fd_step: Length of the differences in each coordinate, in units of the samples.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = SPSA(eps=0.1, steps=5, step_size=0.05, directions=8)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks" (arXiv 1802.05666).
    """

    fixed = ("norm",)

    def __init__(
        self,
        *,
        steps: int = 100,
        step_size: Radius = 0.01,
        directions: int = 128,
        fd_step: float = 0.01,
        **shared: Unpack[QueryArguments],
    ) -> None:
        super().__init__(norm="linf", steps=steps, **shared)
        check_positive("step_size", step_size)
        check_count("directions", directions)
        check_positive("fd_step", fd_step)
        self.step_size = step_size
        self.directions = directions
        self.fd_step = fd_step

    def initial_carry(self, state: AttackState) -> Carry:
        """Start Adam's two averages at zero."""
        return {"mean": torch.zeros_like(state.x), "square": torch.zeros_like(state.x)}

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Take differences along random signs."""
        return spsa_gradient(
            self.values(state),
            x,
            state.random,
            directions=self.directions,
            fd_step=self.fd_step,
            max_batch=self.max_batch,
        )

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move by Adam, clip to the ball and to the bounds."""
        mean = carry["mean"].lerp_(gradient, 1 - _BETA1)
        square = carry["square"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (square / (1 - _BETA2 ** (step + 1))).sqrt_().add_(_TINY)
        move = mean / (1 - _BETA1 ** (step + 1)) / scale
        return project_into_ball(state, x + move * state.broadcast(self.step_size), "linf")
