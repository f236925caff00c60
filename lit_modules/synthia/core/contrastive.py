"""What contrastive objectives share: distances, and the interface they stand behind."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Space = Literal["sample", "noise"]


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of each pair, in float32 at least, ``(batch,)``.

    Args:
        first: ``(batch, ...)``.
        second: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> squared_distance(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
        tensor([3., 0.])
    """
    _same_shape(first, second)
    return (_precise(first) - _precise(second)).square().flatten(1).mean(1)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return one less the cosine of each pair, taken as flat vectors, in [0, 2], ``(batch,)``.

    Args:
        first: ``(batch, ...)``.
        second: Of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    _same_shape(first, second)
    return 1 - F.cosine_similarity(_precise(first).flatten(1), _precise(second).flatten(1), dim=1)


def prediction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of a denoising network for each image.

    Args:
        prediction: ``(batch, ...)``, or ``(batch, negatives, ...)`` with ``target`` of the same shape.
        target: What the network should have predicted: the noise, the velocity or the flow.

    Returns:
        ``(batch,)`` for latents ``(batch, channel, height, width)``, ``(batch, negatives)`` for five dimensions.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.ndim != 5:
        return squared_distance(prediction, target)
    _same_shape(prediction, target)
    return squared_distance(prediction.flatten(0, 1), target.flatten(0, 1)).reshape(prediction.shape[:2])


class ContrastiveObjective(nn.Module, ABC):
    """What the objectives share: checks, distances and the mean over a batch.

    A subclass gives ``space`` and ``terms``.
    """

    space: ClassVar[Space] = "sample"
    needs_reference: ClassVar[bool] = False
    """Whether ``reference`` must hold the errors of the network before it was tuned."""

    metric: Literal["squared", "cosine"] = "squared"
    denoising_weight: float = 1.0

    def distances(self, anchor: Tensor, positive: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Measure how far the positive and the negatives are from the anchor.

        Args:
            anchor: Sampled images, their latents or their embeddings, ``(batch, ...)``.
            positive: The same of the positive images, ``(batch, ...)``.
            negatives: The same of the negative images, ``(batch, negatives, ...)``.

        Returns:
            Distances ``(batch,)`` and ``(batch, negatives)``, means over the elements.

        Raises:
            ValueError: If the shapes do not fit.
        """
        measure = cosine_distance if self.metric == "cosine" else squared_distance
        if negatives.ndim != anchor.ndim + 1 or negatives.shape[:1] != anchor.shape[:1]:
            raise ValueError(
                f"negatives must be of shape (batch, negatives, ...) with images like the anchor's "
                f"{tuple(anchor.shape)}, got {tuple(negatives.shape)}."
            )
        number = negatives.shape[1]
        repeated = anchor.unsqueeze(1).expand(-1, number, *anchor.shape[1:])
        away = measure(repeated.flatten(0, 1), negatives.flatten(0, 1)).reshape(len(anchor), number)
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
        _fits("mask", mask, negatives)
        if weights is not None:
            _fits("weights", weights, positive)
        if self.needs_reference:
            if reference is None:
                raise ValueError(
                    f"{type(self).__name__} needs the errors of the network before tuning; give them as reference."
                )
            for name, value, wanted in zip(
                ("reference[0]", "reference[1]"), reference, (positive, negatives), strict=True
            ):
                _fits(name, value, wanted)
        # what padding holds may be anything, and must reach neither the sums nor their gradients
        negatives = torch.where(mask, negatives, 0)
        losses = self.terms(positive, negatives, mask, weights, reference)
        if denoising is not None:
            if self.space == "noise":
                raise ValueError(f"{type(self).__name__} holds a denoising term already; leave denoising out.")
            _fits("denoising", denoising, positive)
            losses["denoising"] = weighted_mean(denoising, weights)
            losses["loss"] = losses["loss"] + self.denoising_weight * losses["denoising"]
        return losses

    @abstractmethod
    def terms(
        self,
        positive: Tensor,
        negatives: Tensor,
        mask: Tensor,
        weights: Tensor | None,
        reference: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Return ``loss`` and its parts; the arguments are those of ``forward``, checked, 0 where no negative is."""


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``values`` times ``weights``, both ``(batch,)``; ``None`` weighs each 1."""
    return (values if weights is None else values * weights).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row over the places of the mask, 0 for a row without one."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"Both must be of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}.")


def _fits(name: str, value: Tensor, wanted: Tensor) -> None:
    if value.shape != wanted.shape:
        raise ValueError(f"{name} must be of shape {tuple(wanted.shape)}, got {tuple(value.shape)}.")
