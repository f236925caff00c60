"""Statistics of image data that may explain how robust a classifier of it can be.

Images are floats of shape ``(n, ...)``, at least one, whose dimensions behind the first are flattened, for volumes and
edges in [0, 1]; labels are classes, ``(n,)``. A distance needs another image to compare each with.

References:
    Ding et al., "On the Sensitivity of Adversarial Robustness to Input Data Distributions", ICLR 2019,
    arXiv 1902.08336.

References:
    Ding et al., "On the Sensitivity of Adversarial Robustness to Input Data Distributions", ICLR 2019,
    arXiv 1902.08336.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from lit_modules.utils.arguments import Unpack

__all__ = [
    "edge_fraction",
    "inter_class_distance",
    "intra_class_distance",
    "log_volume",
    "nearest_other_class_distance",
    "volume_fraction",
]


def log_volume(images: Tensor, eps: float) -> Tensor:
    """Return the logarithm of the volume that an adversary of the Linf norm has around each image, float64 ``(n,)``.

    The sum over pixels of ``log(min(x + eps, 1) - max(x - eps, 0))``; the volume itself would underflow. The radius
    ``eps`` is positive, in units of the pixel range [0, 1].

    Example:
        >>> log_volume(torch.tensor([[0.0, 0.5]]), eps=0.25).exp()
        tensor([0.1250], dtype=torch.float64)
    """
    return _log_widths(images, eps).sum(1)


def volume_fraction(images: Tensor, eps: float) -> float:
    """Return the share of the Linf ball that lies within [0, 1], as a geometric mean over all pixels of all images.

    ``exp(mean log(width / (2 eps)))`` with the width ``min(x + eps, 1) - max(x - eps, 0)``: 1/2 for images of black and
    white, 1 if all pixels are at least ``eps`` from black and white. The radius ``eps`` is in (0, 1/2].

    Example:
        >>> volume_fraction(torch.tensor([[0.0, 1.0]]), eps=0.25), volume_fraction(torch.tensor([[0.5]]), eps=0.25)
        (0.5, 1.0)
    """
    if eps > 0.5:
        raise ValueError(f"eps must be at most 0.5, as a wider ball has no place in [0, 1], got {eps}.")
    return float((_log_widths(images, eps).mean() - torch.tensor(2 * eps, dtype=torch.float64).log()).exp())


def edge_fraction(images: Tensor, margin: float) -> float:
    """Return the share of pixels that are within ``margin``, not negative, of 0 or 1; the border counts.

    Example:
        >>> edge_fraction(torch.tensor([[0.0, 0.25, 0.5, 1.0]]), margin=0.25)
        0.75
    """
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}.")
    _check_images(images)
    return float(((images <= margin) | (images >= 1 - margin)).double().mean())


class NeighbourArguments(TypedDict, total=False):
    """Arguments of all distances.

    Args:
        queries: Images whose distance is measured, the first ones; ``None``, the default, takes all.
        references: Images to measure it to, drawn with ``seed``; ``None``, the default, takes all.
        seed: Seed of the references, by default 0.
        chunk_size: Queries at a time, by default 256.
    """

    queries: int | None
    references: int | None
    seed: int
    chunk_size: int


def inter_class_distance(
    images: Tensor, labels: Tensor, share: float = 0.1, **neighbours: Unpack[NeighbourArguments]
) -> float:
    """Return the mean L2 distance of images to the nearest share of the images of other classes.

    ``share``, in (0, 1], is rounded down to whole images but at least one; see also :class:`NeighbourArguments`.

    Example:
        >>> images, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
        >>> inter_class_distance(images, labels, share=1.0)
        4.5
    """
    return _nearest(images, labels, share, own=False, **neighbours)


def intra_class_distance(
    images: Tensor, labels: Tensor, share: float = 0.1, **neighbours: Unpack[NeighbourArguments]
) -> float:
    """Return the mean L2 distance of images to the nearest share of the other images of their own class.

    ``share``, in (0, 1], is rounded down to whole images but at least one; see also :class:`NeighbourArguments`.

    Example:
        >>> images, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
        >>> intra_class_distance(images, labels)
        2.5
    """
    return _nearest(images, labels, share, own=True, **neighbours)


def nearest_other_class_distance(images: Tensor, labels: Tensor, **neighbours: Unpack[NeighbourArguments]) -> float:
    """Return the mean L2 distance of images to the nearest image of another class, see :class:`NeighbourArguments`.

    Example:
        >>> images, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
        >>> nearest_other_class_distance(images, labels)
        3.25
    """
    return _nearest(images, labels, share=None, own=False, **neighbours)


def _nearest(
    images: Tensor,
    labels: Tensor,
    share: float | None,
    *,
    own: bool,
    queries: int | None = None,
    references: int | None = None,
    seed: int = 0,
    chunk_size: int = 256,
) -> float:
    """Return the mean distance to a share of the images of the own class or of others; to one without a share."""
    if labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"There must be a label for each image and at least one, got images of shape {tuple(images.shape)} and "
            f"labels of shape {tuple(labels.shape)}."
        )
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}.")
    for name, number in (("queries", queries), ("references", references), ("chunk_size", chunk_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    flat = images.flatten(1).double()  # the distance of two like images is a small difference of large numbers
    candidates = torch.arange(len(flat))
    if references is not None and references < len(flat):
        candidates = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:references].sort().values
    candidates = candidates.to(flat.device)
    total, count = flat.new_zeros(()), 0
    for label in torch.unique(labels[:queries]):
        asking = (labels[:queries] == label).nonzero().flatten()
        neighbours = candidates[(labels[candidates] == label) == own]
        # an image is not its own neighbour, whether or not it is among the references
        for chunk in asking.split(chunk_size):
            distances = torch.cdist(flat[chunk], flat[neighbours])
            itself = chunk[:, None] == neighbours
            others = len(neighbours) - itself.sum(1)
            if not bool((others > 0).all()):
                kind = "of its own class" if own else "of other classes"
                raise ValueError(f"Each image must have others {kind} to compare it to, label {int(label)} has none.")
            # a query that is no reference has one neighbour more than one that is
            for size in others.unique().tolist():
                rows = others == size
                nearest = 1 if share is None else max(1, int(share * size))
                others_only = distances[rows].masked_fill(itself[rows], torch.inf)
                total = total + others_only.topk(nearest, largest=False).values.mean(1).sum()
        count += len(asking)
    return float(total / count)


def _log_widths(images: Tensor, eps: float) -> Tensor:
    """Return the logarithm of the width that an adversary has at each pixel, float64 ``(n, pixels)``."""
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}.")
    _check_images(images)
    flat = images.flatten(1).double()
    return ((flat + eps).clamp(max=1) - (flat - eps).clamp(min=0)).log()


def _check_images(images: Tensor) -> None:
    if images.ndim < 2 or not images.numel():
        raise ValueError(f"There must be at least one image, of shape (n, ...), got the shape {tuple(images.shape)}.")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"The images must be within [0, 1], got values from {float(low):.6g} to {float(high):.6g}.")
