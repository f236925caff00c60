"""Interface of the contrastive objectives, and the distances that they compare."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.synthia.core.sampling import precise

Distance = Literal["squared", "cosine"]


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of each pair ``(batch, ...)``, in float32 at least, ``(batch,)``."""
    _same_shape(first, second)
    return (precise(first) - precise(second)).square().flatten(1).mean(1)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return one less the cosine of each pair ``(batch, ...)``, taken as flat vectors, in [0, 2], ``(batch,)``."""
    _same_shape(first, second)
    return 1 - F.cosine_similarity(precise(first).flatten(1), precise(second).flatten(1), dim=1)


def prediction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of a denoising network for each image, ``(batch,)`` or ``(batch, negatives)``.

    Latents are ``(batch, channel, height, width)``, or ``(batch, negatives, channel, height, width)``.
    """
    if prediction.ndim != 5:
        return squared_distance(prediction, target)
    _same_shape(prediction, target)
    return squared_distance(prediction.flatten(0, 1), target.flatten(0, 1)).reshape(prediction.shape[:2])


class Distances(NamedTuple):
    """Distances of a batch, or errors of the network, as :meth:`ContrastiveObjective.forward` takes them.

    Negatives are 0 where the mask is not set; ``reference`` holds both before tuning.
    """

    positive: Tensor
    negatives: Tensor
    mask: Tensor
    weights: Tensor | None
    reference: tuple[Tensor, Tensor] | None


class ContrastiveObjective(nn.Module, ABC):
    """Loss that draws a sample near to a positive and away from negatives; a subclass gives its formula as ``terms``.

    Args:
        denoising_weight: Weight of the denoising term, if one is given, not negative.
        metric: Distance of samples; ``"squared"`` is the mean squared difference.

    Raises:
        ValueError: If an argument is out of its range.
    """

    space: ClassVar[Literal["sample", "noise"]] = "sample"
    """Space of the distances: samples, or errors of the denoising network."""
    needs_reference: ClassVar[bool] = False
    """True if ``reference`` must hold the errors of the network before it was tuned."""

    def __init__(self, denoising_weight: float = 1.0, metric: Distance = "squared") -> None:
        super().__init__()
        if metric not in ("squared", "cosine"):
            raise ValueError(f"metric must be 'squared' or 'cosine', got {metric!r}.")
        self.denoising_weight, self.metric = not_negative("denoising_weight", denoising_weight), metric

    def distances(self, anchor: Tensor, positive: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Measure the distance of positives ``(batch, ...)`` and negatives ``(batch, negatives, ...)`` to anchors.

        Returns:
            Distances ``(batch,)`` and ``(batch, negatives)``, means over the elements.
        """
        measure = cosine_distance if self.metric == "cosine" else squared_distance
        if negatives.ndim != anchor.ndim + 1 or negatives.shape[:1] != anchor.shape[:1]:
            raise ValueError(
                f"negatives must be of shape (batch, negatives, ...) with images like the anchor's "
                f"{tuple(anchor.shape)}, got {tuple(negatives.shape)}."
            )
        count = negatives.shape[1]
        repeated = anchor.unsqueeze(1).expand(-1, count, *anchor.shape[1:])
        away = measure(repeated.flatten(0, 1), negatives.flatten(0, 1)).reshape(len(anchor), count)
        return measure(anchor, positive), away

    def forward(
        self,
        positive: Tensor,
        negatives: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        denoising: Tensor | None = None,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the named losses, scalars; ``loss`` is the one to lower, the others are its parts.

        Args:
            positive: Distance to the positive, or the error on it, ``(batch,)``.
            negatives: Distances to the negatives, or the errors on them, ``(batch, negatives)``.
            mask: Which negatives are there, ``(batch, negatives)``; ``None`` takes all. An item without negatives has
                its positive term alone.
            weights: Weight of each item's denoising term, such as :func:`min_snr_weights`, ``(batch,)``.
            denoising: Error of the network on the noised positive, ``(batch,)``; ``denoising_weight`` times its mean
                is added. Objectives in the space of the noise have it already, and refuse it.
            reference: Errors of the network before tuning, as ``positive`` and ``negatives``.

        Raises:
            ValueError: If the shapes do not fit, ``reference`` is missing or ``denoising`` is not asked for.
        """
        if positive.ndim != 1 or negatives.ndim != 2 or len(positive) != len(negatives):
            raise ValueError(
                f"positive must be of shape (batch,) and negatives (batch, negatives), got {tuple(positive.shape)} and "
                f"{tuple(negatives.shape)}."
            )
        mask = torch.ones_like(negatives, dtype=torch.bool) if mask is None else mask.bool()
        shapes = [("mask", mask, negatives), ("weights", weights, positive), ("denoising", denoising, positive)]
        if self.needs_reference:
            if reference is None:
                raise ValueError(
                    f"{type(self).__name__} needs the errors of the network before tuning; give them as reference."
                )
            shapes += [("reference[0]", reference[0], positive), ("reference[1]", reference[1], negatives)]
        for name, value, like in shapes:
            if value is not None and value.shape != like.shape:
                raise ValueError(f"{name} must be of shape {tuple(like.shape)}, got {tuple(value.shape)}.")
        if denoising is not None and self.space == "noise":
            raise ValueError(f"{type(self).__name__} holds a denoising term already; leave denoising out.")
        # padding may hold anything, and must reach neither the sums nor their gradients
        negatives = torch.where(mask, negatives, 0)
        terms = self.terms(Distances(positive, negatives, mask, weights, reference))
        means = {"positive": positive.mean(), "negative": masked_mean(negatives, mask).mean()}
        losses = {"loss": terms["loss"]} | means | terms
        if denoising is not None:
            losses["denoising"] = weighted_mean(denoising, weights)
            losses["loss"] = losses["loss"] + self.denoising_weight * losses["denoising"]
        return losses

    @abstractmethod
    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss`` and what is logged beside it and the means ``positive`` and ``negative``."""


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``values`` times ``weights``, both ``(batch,)``; ``None`` weighs each 1."""
    return (values if weights is None else values * weights).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row where the mask is set, 0 for a row without any."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


def not_negative(name: str, value: float) -> float:
    """Return a value that is at least 0, or raise ``ValueError``."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}.")
    return value


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"Both must be of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
