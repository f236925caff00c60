"""Minimum-norm attacks: their loop, restarts and last search, and linear models of the boundary."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import check_count, check_positive
from lit_modules.attacks.engine.losses import logit_gap
from lit_modules.attacks.engine.norms import check_norm, lp_norm, per_sample, random_in_ball
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome, check_differentiable
from lit_modules.utils.arguments import Unpack

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
START = {"linf": 0.3, "l2": 1.0, "l1": 5.0, "l0": 0.3}
_BEYOND = 1.001  # the last search aims this much beyond the boundary, so that rounding does not decide


class Iterate(NamedTuple):
    """Iterates of a minimum-norm attack and the model's answer to them.

    Attributes:
        x: Iterates, ``(active, *)``.
        move: Iterates less the samples, ``(active, *)``.
        distance: Norm of the move, ``(active,)``.
        fooled: Which iterates fool the model, ``(active,)``.
        nearest: Distance of the nearest iterate that did, this one included, infinite before, ``(active,)``.
        value: Objective, ``(active,)``.
        gradient: Gradient of the objective, ``(active, *)``.
    """

    x: Tensor
    move: Tensor
    distance: Tensor
    fooled: Tensor
    nearest: Tensor
    value: Tensor
    gradient: Tensor


class MinimumNormArguments(AttackArguments, total=False):
    """Arguments that the minimum-norm attacks by gradient steps share; see :class:`MinimumNormAttack`."""

    start_radius: float | None
    stop_radius: float | None


class MinimumNormAttack(Attack):
    """Base of attacks that look for the smallest perturbation by steps with one pass each.

    The pass that gives the gradient also says whether the iterate fools the model; the nearest that does is kept.
    Restarts after the first begin at a random point. In an ensemble with a radius, a sample leaves as soon as its
    perturbation is within it.

    Args:
        norm: Norm of the perturbation to be small.
        steps: Number of steps.
        search_steps: Forward passes of a last search between the sample and the best iterate.
        start_radius: Restarts after the first begin within half the smaller of this and the best distance; ``None``
            takes 0.3 (Linf, and Linf for L0), 1 (L2) or 5 (L1).
        stop_radius: A sample leaves as soon as its perturbation is at most this; ``None`` looks for the smallest.
    """

    minimum_norm = True
    leaves_when_fooled = False

    def __init__(
        self,
        *,
        norm: str,
        steps: int,
        search_steps: int,
        start_radius: float | None = None,
        stop_radius: float | None = None,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count("steps", steps)
        check_count("search_steps", search_steps, least=0)
        for name, value in (("start_radius", start_radius), ("stop_radius", stop_radius)):
            if value is not None:
                check_positive(name, value)
        self.norm: str = norm
        self.steps = steps
        self.search_steps = search_steps
        self.start_radius = start_radius
        self.stop_radius = stop_radius

    @abstractmethod
    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and its gradient, from one pass."""

    @abstractmethod
    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Return the next iterates, within the bounds.

        Args:
            active: Samples that are still under attack.
            at: Their iterates.
            step: Number of the step, from 0.
            carry: Values of :meth:`initial_carry`, to be changed in place.
        """

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the values of each sample that the steps carry along."""
        return {}

    def attack(self, state: AttackState) -> Outcome:
        """Run once, from the samples themselves."""
        return self.search(state, None)

    def solve(self, state: AttackState, already: Tensor) -> Outcome:
        """Run once from the samples and then from random points, and keep the nearest."""
        adversarial, success = state.x.clone(), already.clone()
        distance, stop = _infinite(state), self.stop(state)
        radius = torch.full_like(distance, START[self.norm] if self.start_radius is None else self.start_radius)
        if self.start_radius is None and state.eps is not None and self.norm != "l0":
            radius = state.radius.flatten()
        for restart in range(self.restarts):
            index = (~already if stop is None else ~already & (distance > stop)).nonzero()[:, 0]
            if not len(index):
                break
            active = state.select(index)
            active.random = active.random.fork(restart)
            within = radius[index] / 2 if restart else None
            if within is not None and self.norm != "l0":
                within = torch.minimum(distance[index] / 2, within)
            outcome = self.search(active, within)
            better = -outcome.score < distance[index]
            chosen = index[better]
            adversarial[chosen] = outcome.adversarial[better]
            success[chosen] = True
            distance[chosen] = -outcome.score[better]
        return Outcome(adversarial, success, -distance)

    def stop(self, state: AttackState) -> Tensor | None:
        """Return the distance within which a sample leaves, ``(batch,)``: ``stop_radius`` or that of an ensemble."""
        if self.stop_radius is not None:
            return torch.full_like(state.x.flatten(1)[:, 0], self.stop_radius)
        return None if state.eps is None else state.eps.flatten()

    def search(self, state: AttackState, radius: Tensor | None) -> Outcome:
        """Take the steps and the last search.

        Args:
            state: Samples still classified as they should be.
            radius: Start at a random point within this of each sample, ``(batch,)``; ``None`` for the sample itself.
        """
        return self.refine(state, *self.descend(state, radius, self.initial_carry(state)))

    def descend(self, state: AttackState, radius: Tensor | None, carry: Carry) -> tuple[Tensor, Tensor]:
        """Take the steps; return the nearest samples that fool and their distances, infinite where there is none.

        Args:
            state: Samples under attack; a sample may come several times, and all its versions leave together.
            radius: Radius of the random start, ``(batch,)``, or ``None``.
            carry: Values that the steps carry along.
        """
        active, x, stop = state, state.x, self.stop(state)
        if radius is not None:
            ball = "linf" if self.norm == "l0" else self.norm
            x = state.clamp(x + random_in_ball(x, per_sample(radius, x), ball, state.random))
        best, nearest = state.x.clone(), _infinite(state)
        positions = state.positions()
        left = torch.zeros_like(state.num_queries, dtype=torch.bool)  # in the whole batch
        for step in range(self.steps + 1):
            if step < self.steps:
                logits, value, gradient = self.evaluate(active, x, carry)
            else:
                with torch.no_grad():
                    logits = active.logits(x)
            fooled = active.fooled(logits)
            move = x - active.x
            distance = lp_norm(move, self.norm)
            better = (fooled & (distance < nearest[positions])).nonzero()[:, 0]
            best[positions[better]] = x[better]
            nearest[positions[better]] = distance[better]
            if step == self.steps:
                break
            if step == 0:
                warn_zero_gradient(gradient)
            at = Iterate(x, move, distance, fooled, nearest[positions], value.to(x.dtype), gradient)
            if stop is not None or self.leaves_when_fooled:
                done = fooled if self.leaves_when_fooled or stop is None else fooled & (distance <= stop)
                left[active.index[done]] = True
                stay = (~left[active.index]).nonzero()[:, 0]
                if not len(stay):
                    break
                if len(stay) < len(positions):
                    positions, active, at = (
                        positions[stay],
                        active.select(stay),
                        Iterate(*(values[stay] for values in at)),
                    )
                    carry = {name: values[stay] for name, values in carry.items()}
                    stop = None if stop is None else stop[stay]
            x = self.step(active, at, step, carry)
        return best, nearest

    def refine(self, state: AttackState, best: Tensor, nearest: Tensor) -> Outcome:
        """Look between the samples and their adversarials for nearer ones, by false position on the logit gap."""
        success, stop = torch.isfinite(nearest), self.stop(state)
        index = (success if stop is None else success & (nearest > stop)).nonzero()[:, 0]
        if not self.search_steps or not len(index):
            return Outcome(best, success, -nearest)
        active = state.select(index)
        direction = best[index] - active.x
        with torch.no_grad():
            inner, outer = torch.zeros_like(nearest[index]), torch.ones_like(nearest[index])
            logits = active.logits(best[index])
            rival = active.clean_logits.argmax(1) if active.targeted else logits.argmax(1)
            ends = (rival, active.label) if active.targeted else (active.label, rival)
            inside = logit_gap(active.clean_logits, *ends).to(best.dtype)
            outside = logit_gap(logits, *ends).to(best.dtype)
            for _ in range(self.search_steps):
                share = (-inside / (outside - inside)).nan_to_num(0.5).clamp(0.05, 1)
                middle = torch.minimum((inner + (outer - inner) * share) * _BEYOND, outer)
                x = active.clamp(active.x + per_sample(middle, best) * direction)
                logits = active.logits(x)
                value = logit_gap(logits, *ends).to(best.dtype)
                fooled = active.fooled(logits)
                distance = lp_norm(x - active.x, self.norm)
                better = fooled & (distance < nearest[index])
                best[index[better]] = x[better]
                nearest[index[better]] = distance[better]
                inner, inside = torch.where(fooled, inner, middle), torch.where(fooled, inside, value)
                outer, outside = torch.where(fooled, middle, outer), torch.where(fooled, value, outside)
        return Outcome(best, success, -nearest)


def _infinite(state: AttackState) -> Tensor:
    """Return an infinite distance for each sample, ``(batch,)``."""
    return torch.full((len(state),), float("inf"), dtype=state.x.dtype, device=state.x.device)


def differences(state: AttackState, x: Tensor, classes: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, differences ``logit[class] - logit[reference]``, and their gradients with respect to the samples.

    One forward pass, and one backward pass for each row of classes.

    Args:
        state: Samples under attack.
        x: Where to evaluate, ``(batch, *)``.
        classes: Classes to compare, ``(rows, batch)``.
        reference: Class that they are compared with, ``(batch,)``.

    Returns:
        Logits ``(batch, classes)``, differences ``(rows, batch)`` and gradients ``(rows, batch, *)``, all detached.

    Raises:
        ValueError: If the answer does not depend on the samples in a way that has a gradient.
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
    """Return the most likely classes other than the label, most likely first, ``(batch, classes)``.

    Args:
        state: Samples with their clean logits.
        count: How many at most; ``None`` for all.
    """
    others = state.clean_logits.scatter(1, state.label[:, None], float("-inf"))
    most = others.shape[1] - 1
    return others.topk(most if count is None else min(count, most), dim=1).indices


def nearest_plane(state: AttackState, x: Tensor, others: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and value and gradient of the logit difference whose linear model has the nearest zero.

    Args:
        state: Samples under attack.
        x: Where to evaluate, ``(batch, *)``.
        others: Classes compared with the label, ``(batch, rows)``.
        norm: Norm of the distance.
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

    Args:
        points: Points within the bounds, ``(versions, batch, *)``.
        normal: Normals of the planes, ``(batch, *)``.
        value: Value of the linear function at each point, ``(versions, batch)``.
        norm: Norm of the move: ``linf``, ``l2`` or ``l1``.
        lower: Least allowed value, broadcastable against a batch, or ``None``.
        upper: Largest allowed value, broadcastable against a batch, or ``None``.

    Returns:
        Moves, shape of ``points``.

    References:
        Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv 1907.02044),
        section 2.2.
    """
    check_norm(norm, ("linf", "l2", "l1"))
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
    """Return the least ``t`` with ``sum weight min(kinks, t) = need``, or one beyond all kinks without one.

    Args:
        weight: Slopes, ``(rows, coordinates)``.
        kinks: Where each coordinate stops, ``(rows, coordinates)``.
        need: Value to be met, ``(rows, 1)``.
    """
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

    Args:
        weight: Gain of a unit move of each coordinate, ``(rows, coordinates)``.
        room: Longest move of each, ``(rows, coordinates)``.
        need: Gain to be met, ``(rows, 1)``.
        count: Coordinates looked at; rows for which they are too few are done again with more.
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
