"""NES: projected gradient descent on gradients estimated along Gaussian directions."""

from __future__ import annotations

from torch import Tensor

from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import (
    BallArguments,
    EstimatedGradientAttack,
    Offer,
    nes_gradient,
    project_into_ball,
)
from lit_modules.attacks.engine.norms import steepest
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack


class NES(EstimatedGradientAttack):
    """Projected gradient descent on natural-evolution-strategy estimates, without gradients of the model.

    Each step estimates the gradient of the margin from ``2 directions`` answers along Gaussian directions, and moves by
    its sign (Linf) or along it (L2). Every sample has its own directions. The points of the differences are moved into
    the bounds.

    AdverTorch (0.2, not in v0.1) has Linf only, asks for eps, and has the other defaults that stand here.

    Args:
        step_size: Length of a step in the norm, in units of the samples, a number or one per sample.
        directions: Random directions of a step; each costs two forward passes.
        fd_step: Standard deviation of the differences, in units of the samples.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = NES(norm="l2", eps=0.1, steps=5, step_size=0.05, directions=8)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).norm(dim=1).max() <= 0.1 + 1e-6)
        True

    References:
        Ilyas et al., "Black-box adversarial attacks with limited queries and information" (arXiv 1804.08598), algorithm
        1.
    """

    def __init__(
        self,
        *,
        step_size: Radius = 0.01,
        directions: int = 100,
        fd_step: float = 0.01,
        **shared: Unpack[BallArguments],
    ) -> None:
        super().__init__(**shared)
        check_positive("step_size", step_size)
        check_count("directions", directions)
        check_positive("fd_step", fd_step)
        self.step_size = step_size
        self.directions = directions
        self.fd_step = fd_step

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Take differences along Gaussian directions."""
        return nes_gradient(
            self.values(state),
            x,
            state.random,
            directions=self.directions,
            fd_step=self.fd_step,
            max_batch=self.max_batch,
        )

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move in the steepest direction of the norm, project into ball and bounds."""
        return project_into_ball(state, x + state.broadcast(self.step_size) * steepest(gradient, self.norm), self.norm)
