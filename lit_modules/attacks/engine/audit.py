"""The one audit of adversarial samples: radius and bounds, in float64, with one allowance for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import Bounds, Radius, check_radius, place_bounds
from lit_modules.attacks.engine.norms import lp_norm

ALLOWANCE = 1e-6


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
    """Return the norms of perturbations in float64, after holding them against radius and bounds.

    Attacks compute in float32 (float64 for float64 samples). So a norm may pass the radius by a part in a million of
    it, and by the norm of what storing the values that moved rounds off: for each the spacing of numbers of its size.
    The bounds, rounded to that precision, are held exactly.

    Args:
        x: Clean samples, ``(batch, *)``.
        adversarial: Adversarial samples, ``(batch, *)``.
        norm: Norm of the radius and of what is returned; ``None`` takes L2 and looks at no radius.
        eps: Radius, a number or one per sample; ``None`` for none.
        bounds: Least and largest value; ``None`` for no bounds.
        name: Who made the samples, the subject of the sentence of an error.
        samples: What to call each sample in an error; ``None`` takes its place in the batch.

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
    clean, moved = x.detach().double(), adversarial.detach().double()
    delta = moved - clean
    finite = delta.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        raise RuntimeError(f"{name} gave values that are not finite, for sample {_title(samples, place)}.")
    distance = lp_norm(delta, norm or "l2")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    if eps is not None and norm is not None:
        radius = check_radius(eps, clean).flatten()
        spacing = torch.finfo(work).eps * torch.maximum(clean.abs(), moved.abs()).where(delta != 0, 0.0)
        rounding = torch.zeros_like(distance) if norm == "l0" else lp_norm(spacing, norm)
        over = distance - radius * (1 + ALLOWANCE) - rounding
        if bool((over > 0).any()):
            place = int(over.argmax())
            raise RuntimeError(
                f"{name} broke its radius: {norm} distance {float(distance[place]):.8g} of sample "
                f"{_title(samples, place)}, allowed {float(radius[place]):.8g}."
            )
    if bounds is not None:
        lower, upper = (side.double() for side in place_bounds(bounds, x.to(work)))
        outside = torch.maximum(lower - moved, moved - upper).flatten(1).amax(1)
        if bool((outside > 0).any()):
            place = int(outside.argmax())
            raise RuntimeError(
                f"{name} left the bounds by {float(outside[place]):.8g} on sample {_title(samples, place)}, with "
                f"values from {float(moved[place].min()):.8g} to {float(moved[place].max()):.8g}."
            )
    return distance


def _title(samples: Sequence[int] | None, place: int) -> int:
    return place if samples is None else samples[place]
