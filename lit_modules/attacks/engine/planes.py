"""Linear models of a classifier's boundaries, and the exact projection on one of them within bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.norms import check_norm, lp_norm
from lit_modules.attacks.engine.problem import Problem

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def differences(problem: Problem, x: Tensor, classes: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, differences ``logit[class] - logit[reference]``, and their gradients with respect to the samples.

    One forward pass, and one backward pass for each row of classes.

    Args:
        problem: Samples under attack.
        x: Where to evaluate, ``(batch, *)``.
        classes: Classes to compare, ``(rows, batch)``.
        reference: Class that they are compared with, ``(batch,)``.

    Returns:
        Logits ``(batch, classes)``, differences ``(rows, batch)`` and gradients ``(rows, batch, *)``, all detached.

    Raises:
        ValueError: If the answer does not depend on the samples in a way that has a gradient.
    """
    point = problem.point(x)
    logits = problem.logits(point)
    if not logits.requires_grad:
        raise ValueError(
            "The model's output has no gradient with respect to its input; wrap the part without one in "
            "lit_modules.defenses.BPDA, or take an attack that needs none, as Square."
        )
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


def likely_others(problem: Problem, count: int | None) -> Tensor:
    """Return the most likely classes other than the label, most likely first, ``(batch, classes)``.

    Args:
        problem: Samples with their clean logits.
        count: How many at most; ``None`` for all.
    """
    assert problem.clean_logits is not None
    others = problem.clean_logits.scatter(1, problem.label[:, None], float("-inf"))
    most = others.shape[1] - 1
    return others.topk(most if count is None else min(count, most), dim=1).indices


def nearest_plane(problem: Problem, x: Tensor, others: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, and value and gradient of the logit difference whose linear model has the nearest zero.

    Args:
        problem: Samples under attack.
        x: Where to evaluate, ``(batch, *)``.
        others: Classes compared with the label, ``(batch, rows)``.
        norm: Norm of the distance.
    """
    logits, values, normals = differences(problem, x, others.T, problem.label)
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
