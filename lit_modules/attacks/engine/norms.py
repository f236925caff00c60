"""Lp norms, steps, projections and random starts on samples of any shape.

Arrays have shape ``(batch, *)``; a radius has one value per sample in a shape that broadcasts, ``(batch, 1, ..., 1)``.
Radii are met from below by a part in a million, so that rounding in float32 does not pass them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.random import SampleRandom

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
_WITHIN = 1 - 1e-6


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per sample, ``(batch,)``, to broadcast against ``like``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def lp_norm(delta: Tensor, norm: str) -> Tensor:
    """Return each sample's norm, ``(batch,)``."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l0":
        return (flat != 0).sum(1).to(delta.dtype)
    length: Tensor = torch.linalg.vector_norm(flat, 2 if norm == "l2" else 1, dim=1)
    return length


def normalise(gradient: Tensor, norm: str) -> Tensor:
    """Divide each sample by its norm; a zero sample stays zero."""
    tiny = torch.finfo(gradient.dtype).tiny
    if norm == "l2":  # squares of small values would vanish
        gradient = gradient / per_sample(lp_norm(gradient, "linf"), gradient).clamp_min(tiny)
    return gradient / per_sample(lp_norm(gradient, norm), gradient).clamp_min(tiny)


def steepest(gradient: Tensor, norm: str, sparsity: float = 0.95) -> Tensor:
    """Return the direction of unit norm that raises a linear loss most.

    For ``linf`` the sign, for ``l2`` the gradient over its norm. For ``l1`` the signs of the largest part of the
    coordinates, so that the step has L1 norm 1; the steepest step proper would move a single coordinate.

    Args:
        gradient: Gradient of the loss, ``(batch, *)``.
        norm: ``linf``, ``l2`` or ``l1``.
        sparsity: For ``l1``, the share of coordinates that stay.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        return normalise(gradient, "l2")
    flat = gradient.flatten(1)
    count = max(1, round((1 - sparsity) * flat.shape[1]))
    index = flat.abs().topk(count, dim=1).indices
    step = torch.zeros_like(flat).scatter_(1, index, flat.gather(1, index).sign())
    return normalise(step, "l1").view_as(gradient)


def few_steepest(gradient: Tensor, move: Tensor, movable: Tensor, largest: float = 1.0) -> Tensor:
    """Return directions of L1 norm 1 along the signs of few large gradients: a third as many as values have changed.

    So steps are dense at first and as sparse as the perturbation in the end. The share is measured; L1-APGD (arXiv
    2103.01208) takes two thirds of them now and then.

    Args:
        gradient: Gradient of the loss, ``(batch, *)``.
        move: Perturbation so far, ``(batch, *)``; where it is zero everywhere, a single value moves.
        movable: Values that have room in the direction of the gradient, ``(batch, *)``.
        largest: Largest share of all values that a direction has.
    """
    flat = gradient.flatten(1)
    most = max(1, int(largest * flat.shape[1]))
    count = ((move != 0).flatten(1).sum(1, keepdim=True) // 3).clamp(1, most)
    ranked = (flat.abs() * movable.flatten(1)).sort(dim=1, descending=True)
    chosen = (torch.arange(flat.shape[1], device=flat.device) < count) & (ranked.values > 0)
    direction = torch.zeros_like(flat).scatter_(1, ranked.indices, chosen.to(flat.dtype))
    return normalise((direction * flat.sign()).view_as(gradient), "l1")


def project(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Return the nearest point of the ball around 0.

    Args:
        delta: Perturbation, ``(batch, *)``.
        radius: Radius, broadcastable.
        norm: ``linf``, ``l2`` or ``l1``.
    """
    if norm == "linf":
        return delta.clamp(-radius, radius)
    if norm == "l2":
        length = per_sample(lp_norm(delta, "l2"), delta).clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * (radius * _WITHIN / length).clamp_max(1)
    return project_l1_box(delta, radius, None, None)


def project_l1_box(delta: Tensor, radius: Tensor, lower: Tensor | None, upper: Tensor | None) -> Tensor:
    """Return the nearest point of the L1 ball that also lies between two bounds, exactly.

    The solution is ``clip(soft(delta, t), lower, upper)``; its L1 norm is piecewise linear in the threshold ``t``, so
    sorting the kinks gives ``t`` in one pass.

    Args:
        delta: Perturbation, ``(batch, *)``.
        radius: Radius of the ball, broadcastable.
        lower: Least allowed perturbation, at most 0, shape of ``delta``; ``None`` for no bound.
        upper: Largest allowed perturbation, at least 0, shape of ``delta``; ``None`` for no bound.

    References:
        Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers" (arXiv 2103.01208),
        proposition 2.1.
    """
    flat = delta.flatten(1).double()
    size = flat.abs()
    limit = radius.reshape(-1, 1).to(flat.dtype).expand(len(flat), 1) * _WITHIN
    room = torch.full_like(flat, float("inf"))
    if upper is not None:
        room = torch.where(flat > 0, upper.flatten(1).expand_as(flat), room)
    if lower is not None:
        room = torch.where(flat < 0, -lower.flatten(1).expand_as(flat), room)
    inside = torch.minimum(size, room)
    if bool((inside.sum(1, keepdim=True) <= limit).all()):
        return (flat.sign() * inside).to(delta.dtype).view_as(delta)
    # norm(t) = sum (size - t)+ - sum (size - room - t)+: each kink, from the largest, adds or takes a unit of slope
    kinks, order = torch.cat([size, size - room], 1).sort(dim=1, descending=True)
    turn = torch.where(order < flat.shape[1], 1.0, -1.0).double()
    turn = torch.where(kinks.isinf(), 0.0, turn)
    kinks = torch.where(kinks.isinf(), 0.0, kinks).clamp_min(0)
    slope = turn.cumsum(1)
    value = (turn * kinks).cumsum(1) - slope * kinks  # the norm at each kink
    count = (value < limit).sum(1, keepdim=True)  # kinks above the threshold
    last = (count - 1).clamp_min(0)
    threshold = ((turn * kinks).cumsum(1).gather(1, last) - limit) / slope.gather(1, last).clamp_min(1)
    threshold = torch.where(inside.sum(1, keepdim=True) <= limit, 0.0, threshold.clamp_min(0))
    shrunk = torch.minimum((size - threshold).clamp_min(0), room)
    return (flat.sign() * shrunk).to(delta.dtype).view_as(delta)


def random_in_ball(like: Tensor, radius: Tensor, norm: str, random: SampleRandom) -> Tensor:
    """Draw a point of the ball around 0 for each sample, uniformly (``l1``: a Laplace direction of uniform length)."""
    shape = like.shape[1:]
    if norm == "linf":
        return ((random.uniform(*shape) * 2 - 1) * radius).to(like.dtype)
    direction = normalise(random.normal(*shape) if norm == "l2" else random.laplace(*shape), norm)
    power = 1 / shape.numel() if norm == "l2" else 1
    length = per_sample(random.uniform(1)[:, 0] ** power, like)
    return (direction * length * radius * _WITHIN).to(like.dtype)
