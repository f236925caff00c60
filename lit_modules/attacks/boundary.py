"""Minimum-norm attacks on the linearised boundary: DeepFool, FAB and FAB-T."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import logit_gap, margin
from lit_modules.attacks.engine.norms import DUAL, lp_norm, per_sample, steepest
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome, check_differentiable
from lit_modules.attacks.minimum_norm import Iterate, MinimumNormArguments, MinimumNormAttack
from lit_modules.utils.arguments import Unpack


def differences(state: AttackState, x: Tensor, classes: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, differences ``logit[class] - logit[reference]``, and their gradients with respect to the samples.

    One forward pass, and one backward pass for each row of classes, ``(rows, batch)``. Logits are ``(batch, classes)``,
    differences ``(rows, batch)`` and gradients ``(rows, batch, *)``, all detached.
    """
    point = state.point(x)
    logits = state.logits(point)
    check_differentiable(logits)
    gaps = (logits.gather(1, classes.T) - logits.gather(1, reference[:, None])).T
    return logits.detach(), gaps.detach(), _row_gradients(gaps, point)


def _row_gradients(values: Tensor, point: Tensor) -> Tensor:
    """Return the gradient of each row's sum, ``(rows, batch, *)``.

    All rows share one backward pass if the model's operations allow it.
    """
    rows = len(values)
    if rows > 1:
        pick = torch.eye(rows, dtype=values.dtype, device=values.device)[..., None].expand(rows, *values.shape)
        try:
            (gradients,) = torch.autograd.grad(values, point, pick, retain_graph=True, is_grads_batched=True)
        except RuntimeError:  # an operation without a batched form, as a custom autograd function: row by row
            pass
        else:
            return gradients.contiguous()
    sums = values.sum(1)
    return torch.stack([torch.autograd.grad(sums[row], point, retain_graph=row < rows - 1)[0] for row in range(rows)])


def likely_others(state: AttackState, count: int | None) -> Tensor:
    """Return at most ``count`` classes other than the label, the most likely first, ``(batch, classes)``."""
    others = state.clean_logits.scatter(1, state.label[:, None], float("-inf"))
    most = others.shape[1] - 1
    return others.topk(most if count is None else min(count, most), dim=1).indices


def nearest_plane(state: AttackState, x: Tensor, others: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and value and gradient of the logit difference whose linear model has the nearest zero.

    The classes ``others``, ``(batch, rows)``, are compared with the label.
    """
    logits, values, normals = differences(state, x, others.T, state.label)
    length = lp_norm(normals.flatten(0, 1), DUAL[norm]).view_as(values)
    row = (values.abs() / length.clamp_min(torch.finfo(x.dtype).tiny)).argmin(0)
    column = torch.arange(len(x), device=x.device)
    return logits, values[row, column], normals[row, column]


def project_on_plane(
    points: Tensor, normal: Tensor, value: Tensor, norm: str, lower: Tensor | None, upper: Tensor | None
) -> Tensor:
    """Return the smallest moves within the bounds that bring points onto planes, exactly.

    A point is on its plane when ``value + <normal, move> = 0``. Where the bounds do not reach the plane, the move goes
    as close as they allow. Coordinates go the way of the normal's sign, each up to its bound: by a common length for
    ``linf``, in proportion to the normal for ``l2``, and the largest entries first for ``l1``. The common factor is a
    root of a concave piecewise linear function; Newton's method from zero meets it exactly, after as many steps as
    pieces lie before it.

    Takes points within the bounds, ``(versions, batch, *)``, the planes' normals, ``(batch, *)``, and the value of the
    linear function at each point, ``(versions, batch)``.

    References:
        Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv 1907.02044),
        section 2.2.
    """
    versions, tiny = len(points), torch.finfo(points.dtype).tiny
    flat = normal.flatten(1)
    scale = flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    weight = (flat.abs() / scale).repeat(versions, 1)
    need = (value.abs() / scale[:, 0]).clamp_max(1e30).view(-1, 1)
    sign = (flat.sign() * -value.sign()[..., None]).flatten(0, 1)
    if lower is None and upper is None:
        room = torch.full_like(sign, float("inf"))
    else:
        infinite = torch.full((), float("inf"), dtype=points.dtype, device=points.device)
        above = infinite if upper is None else (upper - points).flatten(2).flatten(0, 1)
        below = infinite if lower is None else (points - lower).flatten(2).flatten(0, 1)
        room = torch.where(sign > 0, above, below)
    if norm == "linf":
        move = torch.minimum(room, _meet(weight, room, need))
    elif norm == "l2":
        move = torch.minimum(room, weight * _meet(weight * weight, room / weight.clamp_min(tiny), need))
    else:
        move = _greedy(weight, room, need)
    return move.mul_(sign).view_as(points)


def _meet(weight: Tensor, kinks: Tensor, need: Tensor) -> Tensor:
    """Return the least ``t`` with ``sum weight min(kinks, t) = need``, or one beyond all kinks without one."""
    level = torch.zeros_like(need)
    rows = torch.arange(len(need), device=need.device)
    here = level
    while len(rows):
        rising = torch.gt(kinks, here, out=torch.empty_like(kinks))
        slope = torch.linalg.vecdot(weight, rising)[:, None]
        short = need - torch.linalg.vecdot(weight, torch.minimum(kinks, here))[:, None]
        step = torch.where(slope > 0, short / slope, 0.0).clamp_min_(0)
        here = here + step
        level[rows] = here
        going = (step > here * 1e-6).flatten()
        if int(going.sum()) <= len(rows) * 3 // 4:  # the rest goes on without the rows that are there
            rows, here, need = rows[going], here[going], need[going]
            weight, kinks = weight[going], kinks[going]
    return level


def _greedy(weight: Tensor, room: Tensor, need: Tensor, count: int = 32) -> Tensor:
    """Return moves that use up the room of the largest weights first until ``sum weight move = need``.

    ``count`` coordinates are looked at; rows for which they are too few are done again with more.
    """
    count = min(count, weight.shape[1])
    large, order = weight.topk(count, dim=1)
    space = room.gather(1, order)
    gain = torch.where(large > 0, large * space, 0.0).cumsum(1)
    before = torch.nn.functional.pad(gain[:, :-1], (1, 0))
    move = ((need - before) / large.clamp_min(torch.finfo(large.dtype).tiny)).clamp_min_(0)
    move = torch.where(large > 0, torch.minimum(move, space), 0.0)
    moves = torch.zeros_like(room).scatter_(1, order, move)
    few = (gain[:, -1:] < need).flatten().nonzero()[:, 0] if count < weight.shape[1] else gain.new_zeros(0)
    if len(few):
        moves[few] = _greedy(weight[few], room[few], need[few], count * 8)
    return moves


class BoundaryAttack(MinimumNormAttack):
    """Base of attacks that step to the nearest linearised boundary, or a targeted one to that of its target."""

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the linear function whose zeros are the boundary; it is positive beyond it."""
        if active.targeted:
            return active.gradient(x, margin)
        return nearest_plane(active, x, carry["others"], self.norm)


_FURTHER = 0.3  # of the distance so far
_GOOD, _POOR = 0.9, 0.5  # shares of the predicted rise from which on the trust radius grows, and below which it shrinks
_FIRST = 3  # over the steps, of the way to the linearised boundary: the first trust radius, and the least
_NARROW, _WIDE = 2, 5  # over the steps, of the distance so far: the least trust radius and the largest


class DeepFool(BoundaryAttack):
    """DeepFool: a small perturbation by steps to the nearest linearised boundary.

    One forward pass and one backward pass over all classes considered give a step; samples leave when they are fooled.
    A last search takes back most of the overshoot.

    A targeted attack goes to the boundary between the target and the largest other logit. AdverTorch 0.2 has Linf only,
    capped at eps 0.1, with all classes.

    Args:
        norm: Norm of the perturbation to be small: ``l2`` or ``linf``.
        steps: Largest number of steps.
        classes: How many of the most likely classes are considered, the sample's own included; ``None`` for all.
        overshoot: Part by which the perturbation passes the linearised boundary, at least 0.
        search_steps: Forward passes of a last search between the sample and the result; 0 leaves the overshoot in.

    References:
        Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (arXiv
        1511.04599), algorithm 2 and section 3.3.
    """

    leaves_when_fooled = True

    def __init__(
        self,
        *,
        norm: Literal["l2", "linf"] = "l2",
        steps: int = 50,
        classes: int | None = 10,
        overshoot: float = 0.02,
        search_steps: int = 4,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_choice("norm", norm, ("l2", "linf"))
        if classes is not None:
            check_count(least=2, classes=classes)
        check_range("[0, inf)", overshoot=overshoot)
        self.classes = classes
        self.overshoot = overshoot

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the classes considered."""
        count = None if self.classes is None else self.classes - 1
        return {} if state.targeted else {"others": likely_others(state, count)}

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Move to the plane, and pass it by the overshoot.

        As the bounds, or a plateau, may keep the result short of the boundary, each move is longer than the way to the
        plane, by three tenths of the distance so far, and the last search takes back what was too much. With a
        hundredth, fewer samples are fooled and the perturbations are no smaller.
        """
        length = lp_norm(at.gradient, DUAL[self.norm]).clamp_min(torch.finfo(at.x.dtype).tiny)
        way = (1 + self.overshoot) * (at.value.abs() / length).clamp_max(1e30) + _FURTHER * at.distance
        return active.clamp(at.x + per_sample(way, at.x) * steepest(at.gradient, self.norm))


class TrustRegion(BoundaryAttack):
    """Trust region attack: steps of a radius that follows how well the linear model of the boundary predicts.

    Each step raises the gap between one other class and the label by the steepest move of the trust radius. The class
    is the one whose linearised boundary at the sample is nearest, or with ``worst_case`` the farthest, among the most
    likely ``classes``. Where the gap has risen by more than 0.9 of the prediction the radius grows by ``growth``; by
    less than half, it shrinks by it. A step costs one forward and one backward pass. Samples leave when they are
    fooled, and a last search takes back the overshoot.

    From the paper are the choice of the class, the step and the rule of the radius. Of this implementation are: values
    that the bounds hold take no part in the step and the prediction; limits of the radius that follow the distance so
    far instead of fixed ones, so that no scale of the samples is presumed and a sample whose linear model says little
    gets away all the same; and the last search.

    A targeted attack raises the gap between the target and the largest other logit.

    Args:
        norm: Norm of the perturbation to be small: ``l2`` or ``linf``.
        steps: Largest number of steps.
        radius: First trust radius and the least, in units of the samples; ``None`` takes the distance of the
            linearised boundary times ``3 / steps``, and holds the later ones between ``2 / steps`` and ``5 / steps`` of
            the distance so far where that is more.
        adaptive: Whether the radius changes; without, it is the first one throughout.
        growth: Factor by which the radius changes, above 1.
        classes: How many of the most likely classes are considered, the sample's own included; ``None`` for all.
        worst_case: Take the class whose boundary is farthest.
        search_steps: Forward passes of a last search between the sample and the result.

    References:
        Yao, Gholami, Xu, Keutzer, Mahoney, "Trust region based adversarial attack on neural networks" (arXiv
        1812.06371), sections 3 and 4.
    """

    leaves_when_fooled = True

    def __init__(
        self,
        *,
        norm: Literal["l2", "linf"] = "l2",
        steps: int = 100,
        radius: float | None = None,
        adaptive: bool = True,
        growth: float = 1.5,
        classes: int | None = 10,
        worst_case: bool = False,
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_choice("norm", norm, ("l2", "linf"))
        if radius is not None:
            check_positive(radius=radius)
        check_range("(1, inf)", growth=growth)
        if classes is not None:
            check_count(least=2, classes=classes)
        self.radius = radius
        self.adaptive = adaptive
        self.growth = growth
        self.classes = classes
        self.worst_case = worst_case

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the classes considered; radius, last gap and predicted rise are not known before the first pass."""
        unknown = torch.full_like(state.x.flatten(1)[:, 0], float("nan"))
        carry = {name: unknown.clone() for name in ("radius", "least", "before", "predicted")}
        if state.targeted:
            return carry
        others = likely_others(state, None if self.classes is None else self.classes - 1)
        return carry | {"others": others, "class": others[:, 0].clone(), "chosen": torch.zeros_like(state.label)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the gap to the class that is sought, with its gradient."""
        if active.targeted:
            return active.gradient(x, margin)
        if bool(carry["chosen"].all()):
            return active.gradient(x, lambda logits, label: logit_gap(logits, label, carry["class"]))
        carry["chosen"].fill_(1)
        logits, values, normals = differences(active, x, carry["others"].T, active.label)
        length = lp_norm(normals.flatten(0, 1), DUAL[self.norm]).view_as(values)
        way = values.abs() / length.clamp_min(torch.finfo(x.dtype).tiny)
        row = way.argmax(0) if self.worst_case else way.argmin(0)
        column = torch.arange(len(x), device=x.device)
        carry["class"].copy_(carry["others"][column, row])
        return logits, values[row, column], normals[row, column]

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Set the trust radius by the last prediction, and take the steepest move of that length."""
        gradient = at.gradient * active.movable(at.x, at.gradient)
        radius, least = carry["radius"], carry["least"]
        if step == 0:
            slope = lp_norm(gradient, DUAL[self.norm]).clamp_min(torch.finfo(at.x.dtype).tiny)
            way = (at.value.abs() / slope).clamp_max(1e30)
            radius.copy_(
                min(1.0, _FIRST / self.steps) * way if self.radius is None else torch.full_like(way, self.radius)
            )
            least.copy_(radius)
        elif self.adaptive:
            rise = at.value - carry["before"]
            factor = torch.where(rise > _GOOD * carry["predicted"], self.growth, 1.0)
            radius *= torch.where(rise < _POOR * carry["predicted"], 1 / self.growth, factor)
            if self.radius is None:
                narrow, wide = (torch.maximum(least, part / self.steps * at.distance) for part in (_NARROW, _WIDE))
                radius.copy_(torch.minimum(torch.maximum(radius, narrow), wide))
            else:
                radius.copy_(torch.maximum(radius, least))
        x = active.clamp(at.x + per_sample(radius, at.x) * steepest(gradient, self.norm))
        carry["before"].copy_(at.value)
        carry["predicted"].copy_((gradient * (x - at.x)).flatten(1).sum(1))
        return x


class FABArguments(MinimumNormArguments, total=False):
    """Arguments that FAB and FAB-T share; see :class:`FAB`."""

    norm: Literal["linf", "l2", "l1"]
    steps: int
    alpha_max: float
    eta: float
    beta: float
    search_steps: int


class FAB(BoundaryAttack):
    """Fast adaptive boundary attack: the smallest perturbation, by steps onto the linearised boundary.

    Each step linearises the boundary with the nearest class, projects the iterate and the sample onto it within the
    bounds, exactly, and moves to a mix of both a little beyond the boundary. An iterate that fools the model is kept if
    it is the nearest so far, and the next step starts closer to the sample. One pass per step gives both the gradient
    and the answer: after an iterate that fools, the plane found there serves for the point closer to the sample. The
    cost is one forward and ``classes - 1`` backward passes per step; :class:`FABT` takes one backward pass per class
    that it tries.

    A targeted attack goes to the boundary between the target and the largest other logit. The defaults are those of
    AdverTorch 0.2.

    Args:
        norm: Norm of the perturbation to be small: ``linf``, ``l2`` or ``l1``.
        steps: Number of steps.
        alpha_max: Largest weight of the sample's own projection, from 0 to 1.
        eta: Overshoot of the projections, at least 1.
        beta: Share of the perturbation kept after an iterate that fools, between 0 and 1.
        search_steps: Forward passes of a last search between the sample and the best iterate.

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
        check_choice("norm", norm, ("linf", "l2", "l1"))
        check_range("[0, 1]", alpha_max=alpha_max)
        check_range("[1, inf)", eta=eta)
        check_range("(0, 1)", beta=beta)
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the classes to compare with."""
        return {} if state.targeted else {"others": likely_others(state, None)}

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
        check_count(n_targets=n_targets, max_batch=max_batch)
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
            adversarial, distance = self.descend(
                state.select(several),
                None if radius is None else radius[several],
                {"target": targets[index].T.flatten()},
            )
            closest = distance.view(count, -1).min(0)
            nearest.append(closest.values)
            best.append(adversarial[closest.indices * len(index) + torch.arange(len(index), device=index.device)])
        return self.refine(state, torch.cat(best), torch.cat(nearest))

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the linear function that is zero at the boundary with the target, positive beyond."""
        if active.targeted:
            return active.gradient(x, margin)
        return active.gradient(x, lambda logits, label: logit_gap(logits, label, carry["target"]))
