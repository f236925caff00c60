"""Losses that attacks raise: one value per sample, larger when the sample is closer to being misclassified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "margin", "dlr"]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of each sample in nats, ``(batch,)``."""
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the largest other logit less the label's, ``(batch,)``; positive where the sample is misclassified."""
    others = logits.scatter(1, label[:, None], float("-inf"))
    return others.amax(1) - logits.gather(1, label[:, None])[:, 0]


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Return the difference of logits ratio, ``(batch,)``.

    The margin over the distance between the first and the third logit: no scaling or shift of the logits changes it.

    Raises:
        ValueError: If there are fewer than 3 classes.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
        (arXiv 2003.01690), eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"The DLR loss needs at least 3 classes, got {logits.shape[1]}; use loss='margin'.")
    top = logits.topk(3, dim=1).values
    return margin(logits, label) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, ``(batch,)``.

    Raises:
        ValueError: If there are fewer than 4 classes.

    References:
        Croce, Hein (arXiv 2003.01690), eq. 7.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"The targeted DLR loss needs at least 4 classes, got {logits.shape[1]}.")
    top = logits.topk(4, dim=1).values
    gap = logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])
    return gap[:, 0] / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def logit_gap(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Return the target's logit less the label's, ``(batch,)``."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, label[:, None]))[:, 0]


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def resolve_loss(loss: LossName | Loss) -> Loss:
    """Return the loss of that name, or the callable itself.

    Raises:
        ValueError: If there is no loss of that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a callable of logits and labels, got {loss!r}.")
    return LOSSES[loss]


def check_per_sample(values: Tensor, batch: int) -> Tensor:
    """Return the values if there is one for each sample.

    Raises:
        ValueError: If the shape is another, as that of a loss already averaged.
    """
    if values.shape != torch.Size([batch]):
        raise ValueError(
            f"The loss must give a value per sample, shape ({batch},), got {tuple(values.shape)}; use reduction='none'."
        )
    return values
