"""NAttack: the mean of a Gaussian of perturbations that raise the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import (
    EstimatedGradientAttack,
    Offer,
    ask,
    best_version,
    chunks,
    into_ball,
    weighted_sum,
)
from lit_modules.attacks.engine.losses import Loss, LossName
from lit_modules.attacks.engine.problem import Problem
from lit_modules.attacks.pgd import step_length
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
        norm: ``linf`` or ``l2``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Learning rate of the mean, a number or one per sample.
        samples: Draws of a step; each costs a forward pass, and the mean costs one more.
        sigma: Standard deviation of the draws.
        transform: ``identity``: the draws are samples, cut at the bounds. ``tanh``, as in the paper: the draws pass a
            hyperbolic tangent onto the bounds; coordinates at a bound then hardly move, so that on images with black
            and white parts, as digits, the attack finds far less.
        loss: ``margin``, ``cross_entropy``, ``dlr``, or a callable giving one value per sample.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.
        arguments: Arguments of :class:`Attack`, by name.

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
        norm: Literal["linf", "l2"] = "linf",
        eps: Radius = 0.3,
        steps: int = 40,
        step_size: Radius = 0.02,
        samples: int = 100,
        sigma: float = 0.1,
        transform: Literal["identity", "tanh"] = "identity",
        loss: LossName | Loss = "margin",
        max_batch: int = 256,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(norm=norm, eps=eps, steps=steps, loss=loss, max_batch=max_batch, **arguments)
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

    def state(self, problem: Problem) -> dict[str, Tensor]:
        """Start with the mean at the sample."""
        if self.transform == "identity":
            return {"mean": problem.x.clone()}
        middle, half = self.box(problem)
        place = (problem.x - middle) / half.clamp_min(torch.finfo(half.dtype).tiny)
        return {"mean": torch.atanh(place.clamp(-1, 1) * _INSIDE)}

    def estimate(self, problem: Problem, x: Tensor, state: dict[str, Tensor], offer: Offer) -> Tensor:
        """Return the sum of the draws, weighted by their standardised losses, over their number and ``sigma``."""
        mean = state["mean"]
        losses, weighted, total = [], torch.zeros_like(x), torch.zeros_like(x)
        for count in chunks(self.samples, self.max_batch, len(x)):
            u = problem.random.normal(count, *x.shape[1:]).to(x.dtype)
            points = self.points(problem, mean + self.sigma * u.transpose(0, 1))
            objective, fooled = ask(problem, points, self._loss)
            offer(*best_version(points, objective, fooled))
            losses.append(objective)
            weighted += weighted_sum(objective - losses[0][0], u)  # a constant less, for accuracy
            total += u.sum(1)
        every = torch.cat(losses) - losses[0][0]
        centre, spread = (m.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for m in (every.mean(0), every.std(0) + 1e-7))
        return (weighted - centre * total) / (spread * self.samples * self.sigma)

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move the mean and return the point that belongs to it."""
        state["mean"] = state["mean"] + step_length(self.step_size, problem) * gradient
        return self.points(problem, state["mean"])

    def points(self, problem: Problem, w: Tensor) -> Tensor:
        """Return the samples that belong to one or several draws, within radius and bounds."""
        assert self.norm is not None
        if self.transform == "tanh":
            middle, half = self.box(problem)
            w = torch.tanh(w) * half + middle
        return into_ball(problem, w, self.norm)

    def box(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Return the middle of the bounds and half their distance."""
        if problem.lower is None or problem.upper is None:
            raise ValueError("transform='tanh' maps onto the bounds, got bounds=None; pass transform='identity'.")
        return (problem.upper + problem.lower) / 2, (problem.upper - problem.lower) / 2
