"""Losses that attacks raise: one value per sample, larger when the sample is closer to being misclassified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.attacks.engine.checks import check_choice

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "margin", "dlr", "soft_margin", "zero_one"]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of each sample in nats, ``(batch,)``."""
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the largest other logit less the label's, ``(batch,)``; positive where the sample is misclassified."""
    others = logits.scatter(1, label[:, None], float("-inf"))
    return others.amax(1) - logits.gather(1, label[:, None])[:, 0]


def soft_margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the logarithm of the summed exponentials of the other logits, less the label's logit, ``(batch,)``.

    It is at least the margin, and all other classes have a part in its gradient: ``log((1 - p) / p)`` with the
    probability ``p`` of the label. AdverTorch calls it ``SoftLogitMarginLoss``.
    """
    others = logits.scatter(1, label[:, None], float("-inf"))
    return others.logsumexp(1) - logits.gather(1, label[:, None])[:, 0]


class _ZeroOne(torch.autograd.Function):
    """1 where a sample is misclassified; its gradient is zero wherever it exists, and refused."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor) -> Tensor:
        return (logits.argmax(1) != label).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ValueError(
            "The loss zero_one has no useful gradient; take loss='margin', or an attack without gradients, as Square."
        )


def zero_one(logits: Tensor, label: Tensor) -> Tensor:
    """Return 1 for a misclassified sample and 0 for another, ``(batch,)``; for attacks without gradients.

    What AdverTorch calls ``ZeroOneLoss`` is the margin: take ``margin`` for its attacks with gradients.
    """
    values: Tensor = _ZeroOne.apply(logits, label)
    return values


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Return the difference of logits ratio, ``(batch,)``.

    The margin over the distance between the first and the third logit: no scaling or shift of the logits changes it.
    It needs 3 classes.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
        (arXiv 2003.01690), eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"The DLR loss needs at least 3 classes, got {logits.shape[1]}; use loss='margin'.")
    top = logits.topk(3, dim=1).values
    return margin(logits, label) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, ``(batch,)``; it needs 4 classes.

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


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "soft_margin": soft_margin,
    "zero_one": zero_one,
}


def resolve_loss(loss: LossName | Loss) -> Loss:
    """Return the loss of that name, or the callable itself; refuse an unknown name."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a callable of logits and labels, got {loss!r}.")
    return LOSSES[loss]


class SoftLogitMarginLoss(nn.Module):
    """The function :func:`soft_margin` as a module, for code written for AdverTorch.

    Args:
        reduction: ``none``, as attacks need it, ``mean`` or ``sum``.

    Raises:
        ValueError: If ``reduction`` is another.

    Example:
        >>> loss = SoftLogitMarginLoss()(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        >>> round(float(loss[0]), 4)  # log 2 - 2
        -1.3069
    """

    function: ClassVar[Loss] = staticmethod(soft_margin)

    def __init__(self, reduction: Literal["none", "mean", "sum"] = "none") -> None:
        super().__init__()
        check_choice("reduction", reduction, ("none", "mean", "sum"))
        self.reduction = reduction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of each sample, ``(batch,)``, or their mean or sum."""
        values = type(self).function(logits, label)
        return values if self.reduction == "none" else values.mean() if self.reduction == "mean" else values.sum()


class ZeroOneLoss(SoftLogitMarginLoss):
    """The function :func:`zero_one` as a module, the error rate under ``reduction="mean"``.

    AdverTorch's class of this name is the margin, whatever its name says: port it to ``loss="margin"``.

    Example:
        >>> float(ZeroOneLoss("mean")(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])))
        0.5
    """

    function: ClassVar[Loss] = staticmethod(zero_one)


def check_per_sample(values: Tensor, batch: int) -> Tensor:
    """Return the values; refuse another shape than one for each sample, as that of a loss already averaged."""
    if values.shape != torch.Size([batch]):
        raise ValueError(
            f"The loss must give a value per sample, shape ({batch},), got {tuple(values.shape)}; use reduction='none'."
        )
    return values
