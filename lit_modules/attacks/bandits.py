"""Bandits: a running guess of the gradient, improved by two answers in each step."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import (
    BallArguments,
    EstimatedGradientAttack,
    Offer,
    project_into_ball,
    query,
)
from lit_modules.attacks.engine.norms import normalise, steepest
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack


class Bandits(EstimatedGradientAttack):
    """Bandit optimisation of a gradient prior, without gradients of the model.

    A guess ``v`` of the gradient is carried from step to step. Each step asks about ``x + fd_step q`` for the unit
    vectors ``q`` along ``v + exploration u`` and ``v - exploration u`` with ``u ~ N(0, I / d)``, and moves ``v`` along
    ``u`` by their difference: additively for L2, by exponentiated gradients within [-1, 1] for Linf. Then ``x`` moves
    by the sign of ``v`` (Linf) or along it (L2). So a step costs three forward passes: two for the difference, one to
    see whether the sample is fooled.

    AdverTorch (0.2, not in v0.1) asks for norm and eps, has no tiles, and has the other defaults that stand here. They
    ask little: 40 steps are 121 passes, where the paper spends up to 10000 answers on an image. For Linf a larger
    ``exploration``, from 0.1 to 1, learns faster.

    Args:
        step_size: Length of a step in the norm, in units of the samples, a number or one per sample.
        prior_step: Learning rate of the guess (the paper's ``h_g``).
        exploration: Length of the exploration (the paper's ``delta``).
        fd_step: L2 length of the differences, in units of the samples.
        tile: Side in pixels of the squares on which the guess is constant, for images; ``None`` for one value per
            coordinate. With tiles there are fewer numbers to guess, and neighbouring pixels have similar gradients.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = Bandits(norm="l2", eps=0.1, steps=5)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).norm(dim=1).max() <= 0.1 + 1e-6)
        True

    References:
        Ilyas, Engstrom, Madry, "Prior convictions: black-box adversarial attacks with bandits and priors" (arXiv
        1807.07978), algorithms 1 to 3.
    """

    def __init__(
        self,
        *,
        step_size: Radius = 0.01,
        prior_step: float = 0.1,
        exploration: float = 0.01,
        fd_step: float = 0.01,
        tile: int | None = None,
        **shared: Unpack[BallArguments],
    ) -> None:
        super().__init__(**shared)
        check_positive("step_size", step_size)
        check_positive("prior_step", prior_step)
        check_positive("exploration", exploration)
        check_positive("fd_step", fd_step)
        if tile is not None:
            check_count("tile", tile)
        self.step_size = step_size
        self.prior_step = prior_step
        self.exploration = exploration
        self.fd_step = fd_step
        self.tile = tile

    def initial_carry(self, state: AttackState) -> Carry:
        """Start with no guess, one value for each tile."""
        shape = state.x.shape
        if self.tile is not None:
            if len(shape) != 4:
                raise ValueError(
                    "Tiles are squares of an image, so x must be (batch, channel, height, width), got "
                    f"{tuple(shape)}; pass tile=None."
                )
            shape = torch.Size([*shape[:2], -(-shape[2] // self.tile), -(-shape[3] // self.tile)])
        return {"prior": state.x.new_zeros(shape)}

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Improve the guess by two answers and return it."""
        prior = carry["prior"]
        shape = prior.shape[1:]
        u = state.random.normal(*shape).to(x.dtype) / shape.numel() ** 0.5
        sides = [normalise(self.spread(prior + way * self.exploration * u, x), "l2") for way in (1, -1)]
        points = state.clamp(x + self.fd_step * torch.stack(sides))
        if 2 * len(x) <= self.max_batch:
            ahead, behind = query(state, points, self._loss)[0]
        else:
            ahead, behind = (query(state, point[None], self._loss)[0][0] for point in points)
        slope = ((ahead - behind) / self.fd_step).reshape(-1, *(1,) * len(shape))
        move = self.prior_step * slope * u
        if self.norm == "linf":  # exponentiated gradients of (prior + 1) / 2, a probability
            carry["prior"] = torch.tanh(torch.atanh(prior.clamp(-1 + 1e-6, 1 - 1e-6)) + move)
        else:
            carry["prior"] = prior + move
        return self.spread(carry["prior"], x)

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move in the steepest direction of the norm, project into ball and bounds."""
        return project_into_ball(state, x + state.broadcast(self.step_size) * steepest(gradient, self.norm), self.norm)

    def spread(self, prior: Tensor, x: Tensor) -> Tensor:
        """Return the guess with one value for each coordinate of ``x``."""
        if self.tile is None:
            return prior
        rows, columns = (torch.arange(side, device=x.device) // self.tile for side in x.shape[2:])
        return prior[:, :, rows][:, :, :, columns]
