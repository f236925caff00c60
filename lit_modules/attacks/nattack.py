"""NAttack: the mean of a Gaussian of perturbations that raise the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import (
    BallArguments,
    EstimatedGradientAttack,
    Offer,
    best_version,
    chunks,
    project_into_ball,
    query,
    weighted_sum,
)
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack

_INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at the bounds


class NAttack(EstimatedGradientAttack):
    """Learn a Gaussian whose draws are adversarial, without gradients of the model.

    Each step draws ``samples`` points ``w = mean + sigma u``, takes them through the transform and into ball and
    bounds, asks the model about them, and moves the mean by ``step_size / (samples sigma) sum z u``, where ``z`` are
    the losses less their mean over their standard deviation. Every draw lies within radius and bounds, so the first
    step in which one fools the model ends the search for its sample.

    AdverTorch (0.2, not in v0.1) asks for eps and for a model that gives probabilities, and has the other numbers that
    stand here.

    Args:
        step_size: Learning rate of the mean, a number or one per sample.
        samples: Draws of a step; each costs a forward pass, and the mean costs one more.
        sigma: Standard deviation of the draws.
        transform: ``identity``: the draws are samples, cut at the bounds. ``tanh``, as in the paper: the draws pass a
            hyperbolic tangent onto the bounds; coordinates at a bound then hardly move, so that on images with black
            and white parts, as digits, the attack finds far less.

    Raises:
        ValueError: If ``transform`` is ``tanh`` and there are no bounds.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = NAttack(norm="l2", eps=0.1, steps=5, samples=8)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).norm(dim=1).max() <= 0.1 + 1e-6)
        True

    References:
        Li et al., "NATTACK: learning the distributions of adversarial examples for an improved black-box attack on deep
        neural networks" (arXiv 1905.00441), algorithm 1.
    """

    def __init__(
        self,
        *,
        step_size: Radius = 0.02,
        samples: int = 100,
        sigma: float = 0.1,
        transform: Literal["identity", "tanh"] = "identity",
        **shared: Unpack[BallArguments],
    ) -> None:
        super().__init__(**shared)
        check_positive("step_size", step_size)
        check_count("samples", samples, least=2)
        check_positive("sigma", sigma)
        if transform not in ("identity", "tanh"):
            raise ValueError(f"transform must be 'identity' or 'tanh', got {transform!r}.")
        if transform == "tanh" and self.bounds is None:
            raise ValueError("transform='tanh' maps onto the bounds, got bounds=None; pass transform='identity'.")
        self.step_size = step_size
        self.samples = samples
        self.sigma = sigma
        self.transform = transform

    def initial_carry(self, state: AttackState) -> Carry:
        """Start with the mean at the sample."""
        if self.transform == "identity":
            return {"mean": state.x.clone()}
        middle, half = self.box(state)
        share = (state.x - middle) / half.clamp_min(torch.finfo(half.dtype).tiny)
        return {"mean": torch.atanh(share.clamp(-1, 1) * _INSIDE)}

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Return the sum of the draws, weighted by their standardised losses, over their number and ``sigma``."""
        mean = carry["mean"]
        losses, weighted, total = [], torch.zeros_like(x), torch.zeros_like(x)
        for count in chunks(self.samples, self.max_batch, len(x)):
            u = state.random.normal(count, *x.shape[1:]).to(x.dtype)
            points = self.points(state, mean + self.sigma * u.transpose(0, 1))
            objective, fooled = query(state, points, self._loss)
            offer(*best_version(points, objective, fooled))
            losses.append(objective)
            weighted += weighted_sum(objective - losses[0][0], u)  # a constant less, for accuracy
            total += u.sum(1)
        every = torch.cat(losses) - losses[0][0]
        centre, spread = (m.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for m in (every.mean(0), every.std(0) + 1e-7))
        return (weighted - centre * total) / (spread * self.samples * self.sigma)

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move the mean and return the point that belongs to it."""
        carry["mean"] = carry["mean"] + state.broadcast(self.step_size) * gradient
        return self.points(state, carry["mean"])

    def points(self, state: AttackState, w: Tensor) -> Tensor:
        """Return the samples that belong to one or several draws, within radius and bounds."""
        if self.transform == "tanh":
            middle, half = self.box(state)
            w = torch.tanh(w) * half + middle
        return project_into_ball(state, w, self.norm)

    def box(self, state: AttackState) -> tuple[Tensor, Tensor]:
        """Return the middle of the bounds and half their distance."""
        if state.lower is None or state.upper is None:
            raise ValueError("transform='tanh' maps onto the bounds, got bounds=None; pass transform='identity'.")
        return (state.upper + state.lower) / 2, (state.upper - state.lower) / 2
