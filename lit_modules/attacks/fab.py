"""Fast adaptive boundary attack: FAB over all classes, and FAB-T towards the most likely ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_count
from lit_modules.attacks.engine.losses import logit_gap, margin
from lit_modules.attacks.engine.minimum_norm import (
    Iterate,
    MinimumNormArguments,
    MinimumNormAttack,
    likely_others,
    nearest_plane,
    project_on_plane,
)
from lit_modules.attacks.engine.norms import check_norm, lp_norm, per_sample
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome
from lit_modules.utils.arguments import Unpack


class FABArguments(MinimumNormArguments, total=False):
    """Arguments that FAB and FAB-T share; see :class:`FAB`."""

    norm: Literal["linf", "l2", "l1"]
    steps: int
    alpha_max: float
    eta: float
    beta: float
    search_steps: int


class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack: the smallest perturbation, by steps onto the linearised boundary.

    Each step linearises the boundary with the nearest class, projects the iterate and the sample onto it within the
    bounds, exactly, and moves to a mix of both a little beyond the boundary. An iterate that fools the model is kept if
    it is the nearest so far, and the next step starts closer to the sample. One pass per step gives both the gradient
    and the answer: after an iterate that fools, the plane found there serves for the point closer to the sample. The
    cost is one forward and ``classes - 1`` backward passes per step; :class:`FABT` takes one backward pass per class
    that it tries.

    FAB came after AdverTorch v0.1; the 0.2 releases have these defaults, bounds of [0, 1] only, and ignore
    ``targeted``. Here a targeted attack goes to the boundary between the target and the largest other logit.

    Args:
        norm: Norm of the perturbation to be small: ``linf``, ``l2`` or ``l1``.
        steps: Number of steps.
        alpha_max: Largest weight of the sample's own projection, from 0 to 1.
        eta: Overshoot of the projections, at least 1.
        beta: Share of the perturbation kept after an iterate that fools, between 0 and 1.
        search_steps: Forward passes of a last search between the sample and the best iterate.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> result = FAB(norm="l2", steps=10, bounds=None).run(model, torch.rand(2, 4))
        >>> bool(result.success.all())
        True

    References:
        Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv 1907.02044),
        algorithm 1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2", "l1"] = "linf",
        steps: int = 100,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_norm(norm, ("linf", "l2", "l1"))
        if not 0 <= alpha_max <= 1:
            raise ValueError(f"alpha_max must be from 0 to 1, got {alpha_max!r}.")
        if not eta >= 1:
            raise ValueError(f"eta must be at least 1, got {eta!r}.")
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {beta!r}.")
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the classes to compare with."""
        return {} if state.targeted else {"others": likely_others(state, None)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the linear function whose zeros are the boundary; it is positive beyond it."""
        if active.targeted:
            return active.gradient(x, margin)
        return nearest_plane(active, x, carry["others"], self.norm)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Project the iterate, drawn back if it fools, and the sample; move to a mix of both."""
        slope = (at.gradient * at.move).flatten(1).sum(1)
        keep = torch.where(at.fooled, self.beta, 1.0).to(at.x.dtype)
        points = torch.stack([active.x + per_sample(keep, at.x) * at.move, active.x])
        values = torch.stack([at.value - (1 - keep) * slope, at.value - slope])
        moves = project_on_plane(points, at.gradient, values, self.norm, active.lower, active.upper)
        length = lp_norm(moves.flatten(0, 1), self.norm).view(2, -1)
        weight = length[0] / length.sum(0).clamp_min(torch.finfo(length.dtype).tiny)
        weight = per_sample(weight.clamp_max(self.alpha_max), at.x)
        reached = points.add_(moves, alpha=self.eta)
        return active.clamp(torch.lerp(reached[0], reached[1], weight))


class FABT(FAB):
    """FAB towards each of the most likely other classes, all in one batch; the nearest result of a sample is kept.

    A step costs one forward and one backward pass for each target. With a ``stop_radius`` all targets of a sample leave
    with the first that comes within it. AutoAttack has 9 targets. With ``targeted=True`` the class given is the only
    target.

    Args:
        n_targets: How many classes are tried, in the order of the clean logits; fewer if the model has fewer.
        max_batch: Largest number of points in one pass.

    References:
        Croce, Hein (arXiv 1907.02044), algorithm 1; Croce, Hein, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks" (arXiv 2003.01690), section 5, for the targets.
    """

    def __init__(self, *, n_targets: int = 9, max_batch: int = 4096, **shared: Unpack[FABArguments]) -> None:
        super().__init__(**shared)
        check_count("n_targets", n_targets)
        check_count("max_batch", max_batch)
        self.n_targets = n_targets
        self.max_batch = max_batch

    def targets(self, state: AttackState) -> Tensor:
        """Return the classes to try, ``(batch, targets)``."""
        return state.label[:, None] if state.targeted else likely_others(state, self.n_targets)

    def search(self, state: AttackState, radius: Tensor | None) -> Outcome:
        """Take the steps towards all targets, then the last search from the nearest result."""
        targets = self.targets(state)
        count = targets.shape[1]
        best, nearest = [], []
        for index in torch.split(torch.arange(len(state), device=targets.device), max(1, self.max_batch // count)):
            several = index.repeat(count)
            found, distance = self.descend(
                state.select(several),
                None if radius is None else radius[several],
                {"target": targets[index].T.flatten()},
            )
            closest = distance.view(count, -1).min(0)
            nearest.append(closest.values)
            best.append(found[closest.indices * len(index) + torch.arange(len(index), device=index.device)])
        return self.refine(state, torch.cat(best), torch.cat(nearest))

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the linear function that is zero at the boundary with the target, positive beyond."""
        if active.targeted:
            return active.gradient(x, margin)
        return active.gradient(x, lambda logits, label: logit_gap(logits, label, carry["target"]))
