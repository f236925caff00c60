"""Fast minimum-norm attack, for the L0, L1, L2 and Linf norms."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_positive
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.minimum_norm import (
    DUAL,
    Iterate,
    MinimumNormArguments,
    MinimumNormAttack,
)
from lit_modules.attacks.engine.norms import check_norm, lp_norm, normalise, per_sample, project, project_l1_box
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack


class FMN(MinimumNormAttack):
    """Fast minimum-norm attack: the smallest perturbation by projected steps in a ball that follows success.

    Each step raises the margin along the gradient of unit L2 norm and projects into a ball. Before a sample is first
    fooled, the radius grows by the distance of the linearised boundary; then it shrinks by ``gamma`` after an iterate
    that fools, at least to the nearest so far, and grows by it otherwise. Step and ``gamma`` fall along a cosine. A
    step costs one forward and one backward pass.

    In the paper the first radius is the iterate's own norm plus the linearised distance. Where the bounds cut the
    iterate short of its ball, that stays below the boundary for ever; here the distance is added to the ball's radius,
    and half of ``gamma`` goes on top. Not in AdverTorch.

    Args:
        norm: Norm of the perturbation to be small: ``l0``, ``l1``, ``l2`` or ``linf``; ``l0`` counts values of the
            sample.
        steps: Number of steps.
        step_size: L2 length of the first step, in units of the samples.
        final_step_size: L2 length of the last; ``None`` takes a hundredth of the first.
        gamma: First share by which the radius changes, between 0 and 1.
        final_gamma: Last share.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> bool(FMN(norm="l1", bounds=None).run(model, torch.rand(2, 4)).success.all())
        True

    References:
        Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints" (arXiv 2102.12827),
        algorithm 1.
    """

    def __init__(
        self,
        *,
        norm: Literal["l0", "l1", "l2", "linf"] = "l2",
        steps: int = 100,
        step_size: float = 1.0,
        final_step_size: float | None = None,
        gamma: float = 0.05,
        final_gamma: float = 0.001,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=0, **shared)
        check_norm(norm, ("l0", "l1", "l2", "linf"))
        check_positive("step_size", step_size)
        if final_step_size is not None:
            check_positive("final_step_size", final_step_size)
        for name, value in (("gamma", gamma), ("final_gamma", final_gamma)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")
        self.step_size = step_size
        self.final_step_size = final_step_size
        self.gamma = gamma
        self.final_gamma = final_gamma

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the radius of each sample's ball: one coordinate for L0, none yet for the other norms."""
        start = 1.0 if self.norm == "l0" else float("inf")
        return {"radius": torch.full((len(state),), start, dtype=state.x.dtype, device=state.x.device)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, margin and its gradient."""
        return active.gradient(x, margin)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Set the radius, move along the unit gradient, project into the ball and the bounds."""
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2
        gamma = self.final_gamma + (self.gamma - self.final_gamma) * fall
        final = self.step_size / 100 if self.final_step_size is None else self.final_step_size
        rate = final + (self.step_size - final) * fall
        radius = self._radius(at, carry["radius"], gamma)
        carry["radius"].copy_(radius)
        moved = normalise(at.gradient, "l2").mul_(rate).add_(at.move)
        return active.clamp(active.x + self._project(active, moved, radius))

    def _radius(self, at: Iterate, radius: Tensor, gamma: float) -> Tensor:
        """Return the new radius of each sample."""
        smaller, larger = radius * (1 - gamma), radius * (1 + gamma)
        if self.norm == "l0":
            smaller = torch.minimum(smaller.floor(), radius - 1).clamp_min(0)
            larger = torch.maximum(larger.floor(), radius + 1)
        else:
            slope = lp_norm(at.gradient, DUAL[self.norm]).clamp_min(torch.finfo(radius.dtype).tiny)
            here = torch.where(torch.isfinite(radius), torch.maximum(radius, at.distance), at.distance)
            linear = (here + at.value.abs() / slope) * (1 + gamma / 2)
            larger = torch.where(torch.isfinite(at.nearest), larger, linear)
        return torch.where(at.fooled, torch.minimum(smaller, at.nearest), larger)

    def _project(self, active: AttackState, move: Tensor, radius: Tensor) -> Tensor:
        """Return the nearest point of the balls."""
        if self.norm == "l0":
            flat = move.flatten(1)
            order = flat.abs().argsort(dim=1, descending=True)
            kept = torch.arange(flat.shape[1], device=move.device) < radius[:, None]
            return torch.zeros_like(flat).scatter_(1, order, flat.gather(1, order) * kept).view_as(move)
        limit = per_sample(radius.clamp_max(1e30), move)
        if self.norm != "l1":
            return project(move, limit, self.norm)
        return project_l1_box(move, limit, *active.room())
