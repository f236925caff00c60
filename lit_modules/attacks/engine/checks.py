"""Checks of input and output of the attacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_modules.attacks.engine.norms import lp_norm, per_sample

Radius = float | Tensor
Bounds = tuple[float | Tensor, float | Tensor]
ALLOWANCE = 1e-6  # of a radius, for rounding


def check_count(*, least: int = 1, **counts: int) -> None:
    """Refuse counts that are no integers of at least ``least``."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def check_positive(**values: float | Tensor) -> None:
    """Refuse values, single or in a tensor, that are not positive and finite."""
    for name, value in values.items():
        numbers = torch.as_tensor(value, dtype=torch.float64)
        if not bool((numbers > 0).all() & torch.isfinite(numbers).all()):
            raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def check_range(interval: str, **values: float) -> None:
    """Refuse numbers outside an interval, as in ``check_range("(0, 1]", share=share)``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        above = value > low or (value == low and interval[0] == "[")
        below = value < high or (value == high and interval[-1] == "]")
        if not (above and below):
            raise ValueError(f"{name} must lie in {interval}, got {value!r}.")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")


def check_eps(eps: Radius) -> Radius:
    """Return a radius; refuse one that is negative, not finite, empty, or of more than one dimension."""
    values = torch.as_tensor(eps, dtype=torch.float64)
    if values.ndim > 1 or not values.numel():
        raise ValueError(f"eps must be a number or hold one number per sample, got shape {tuple(values.shape)}.")
    if not bool((values >= 0).all() & torch.isfinite(values).all()):
        raise ValueError(f"eps must be finite and at least 0, got {eps!r}.")
    return eps


def check_radius(eps: Radius, x: Tensor) -> Tensor:
    """Return the radius of each sample, ``(batch, 1, ..., 1)``; refuse neither one nor one for each."""
    values = torch.as_tensor(eps, dtype=x.dtype, device=x.device).clone()
    if values.ndim and len(values) not in (1, len(x)):
        raise ValueError(f"eps has {len(values)} values for a batch of {len(x)}; give one number, or one per sample.")
    return per_sample(values.expand(len(x)), x)


def check_samples(x: Tensor) -> None:
    """Refuse samples that are no finite floating-point batch; it may be empty."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {got}; divide 8-bit images by 255.")
    if x.ndim < 2 or not all(x.shape[1:]):
        raise ValueError(f"x must be a batch of samples, shape (batch, ...), got {tuple(x.shape)}.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"x holds NaN or infinite values in {int((~torch.isfinite(x)).flatten(1).any(1).sum())} samples."
        )


def expand_bounds(bounds: Bounds, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds as tensors that broadcast against the samples, in their precision but at least float32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sides = []
    for side in (torch.as_tensor(b, dtype=dtype, device=x.device).clone() for b in bounds):
        if side.ndim == 1 and len(side) == len(x):
            side = per_sample(side, x)
        try:
            torch.broadcast_to(side, x.shape)
        except RuntimeError:
            raise ValueError(f"bounds of shape {tuple(side.shape)} do not broadcast to x, {tuple(x.shape)}.") from None
        sides.append(side if side.ndim in (0, x.ndim) else side.expand(1, *x.shape[1:]))
    return sides[0], sides[1]


def check_bounds(bounds: Bounds | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the bounds as tensors; refuse those that cross, do not broadcast, or leave a sample outside."""
    if bounds is None:
        return None, None
    lower, upper = expand_bounds(bounds, x)
    if bool((lower > upper).any()):
        raise ValueError(f"The lower bound must not be above the upper one, got {bounds!r}.")
    if bool(((x < lower) | (x > upper)).any()):
        raise ValueError(
            f"x has values from {float(x.min()):.6g} to {float(x.max()):.6g}, outside the bounds "
            f"{float(lower.min()):.6g} to {float(upper.max()):.6g}; normalise inside the model, or pass bounds=."
        )
    return lower, upper


def check_labels(y: Tensor, x: Tensor) -> Tensor:
    """Return the labels on the samples' device; refuse what is no integers of shape ``(batch,)``."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must hold one integer class per sample, shape ({len(x)},), got {got}.")
    return y.detach().to(x.device, torch.int64, copy=True)  # no tensor of an inference mode


def check_classes(y: Tensor, classes: int) -> None:
    """Refuse labels that are no class of the model."""
    if bool(((y < 0) | (y >= classes)).any()):
        raise ValueError(
            f"y must be from 0 to {classes - 1}, the model's classes, got {int(y.min())} to {int(y.max())}."
        )


def check_logits(logits: Tensor, batch: int) -> None:
    """Refuse a model's output that is no batch of logits."""
    if logits.ndim != 2 or len(logits) != batch or logits.shape[1] < 2:
        raise ValueError(
            f"The model must give logits of shape ({batch}, classes), at least 2 classes, got {tuple(logits.shape)}."
        )
    rounding = max(1e-4, torch.finfo(logits.dtype).eps / 2) if logits.is_floating_point() else 0.0
    if bool(((logits >= 0) & (logits <= 1)).all() & ((logits.double().sum(1) - 1).abs() <= rounding).all()):
        raise ValueError(
            "The model gives probabilities (each row is in [0, 1] and sums to 1); attacks need logits: leave out the "
            "softmax, or wrap the model to return its logarithm."
        )


def audit_perturbation(
    x: Tensor,
    adversarial: Tensor,
    *,
    norm: str | None = None,
    eps: Radius | None = None,
    bounds: Bounds | None = None,
    name: str = "The attack",
    samples: Sequence[int] | None = None,
) -> Tensor:
    """Return the norms of perturbations in float64, after a check of radius and bounds.

    Attacks compute in float32 (float64 for float64 samples). So a norm may pass the radius by a millionth of it, and by
    the norm of the rounding of the values that moved: for each the spacing of numbers of its size. The bounds, rounded
    to that precision, are held exactly.

    Args:
        x: Clean samples, ``(batch, *)``.
        adversarial: Adversarial samples, ``(batch, *)``.
        norm: Norm of the radius and of the result; ``None`` takes L2 and checks no radius.
        eps: Radius, a number or one per sample; ``None`` for none.
        bounds: Least and largest value; ``None`` for no bounds.
        name: Subject of the error message.
        samples: Number of each sample in an error message; ``None`` takes its position in the batch.

    Returns:
        The norms, ``(batch,)``.

    Raises:
        RuntimeError: If a sample is outside, has another shape, or is not finite; with the amount and the sample.

    Example:
        >>> x = torch.tensor([[0.5, 0.5]])
        >>> audit_perturbation(x, x + 0.1, norm="linf", eps=0.1).round(decimals=4)
        tensor([0.1000], dtype=torch.float64)
    """
    if adversarial.shape != x.shape:
        raise RuntimeError(f"{name} gave samples of shape {tuple(adversarial.shape)} for {tuple(x.shape)}.")
    numbers = range(len(x)) if samples is None else samples
    clean, moved = x.detach().double(), adversarial.detach().double()
    delta = moved - clean
    finite = delta.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        worst = int((~finite).nonzero()[0])
        raise RuntimeError(f"{name} gave values that are not finite, for sample {numbers[worst]}.")
    distance = lp_norm(delta, norm or "l2")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    if eps is not None and norm is not None:
        radius = check_radius(eps, clean).flatten()
        spacing = torch.finfo(work).eps * torch.maximum(clean.abs(), moved.abs()).where(delta != 0, 0.0)
        rounding = torch.zeros_like(distance) if norm == "l0" else lp_norm(spacing, norm)
        over = distance - radius * (1 + ALLOWANCE) - rounding
        if bool((over > 0).any()):
            worst = int(over.argmax())
            raise RuntimeError(
                f"{name} broke its radius: {norm} distance {float(distance[worst]):.8g} of sample {numbers[worst]}, "
                f"allowed {float(radius[worst]):.8g}."
            )
    if bounds is not None:
        lower, upper = (side.double() for side in expand_bounds(bounds, x.to(work)))
        outside = torch.maximum(lower - moved, moved - upper).flatten(1).amax(1)
        if bool((outside > 0).any()):
            worst = int(outside.argmax())
            raise RuntimeError(
                f"{name} left the bounds by {float(outside[worst]):.8g} on sample {numbers[worst]}, with "
                f"values from {float(moved[worst].min()):.8g} to {float(moved[worst].max()):.8g}."
            )
    return distance
