"""Metrics of requested affordances and of distance to existing concepts, from a recogniser's scores of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

BINS = ("easy", "medium", "hard")


def affordance_scores(part_scores: Tensor, seen_by: Tensor) -> Tensor:
    """Return how surely an image shows each affordance: the score of the surest part that it is seen by.

    Args:
        part_scores: Probability of each part, in [0, 1], ``(n, parts)``.
        seen_by: Which parts show which affordance, bool, ``(affordances, parts)``; each is shown by at least one.

    Returns:
        ``(n, affordances)``, in [0, 1].

    Example:
        >>> seen_by = torch.tensor([[True, True, False], [False, False, True]])
        >>> affordance_scores(torch.tensor([[0.5, 0.75, 0.25]]), seen_by)
        tensor([[0.7500, 0.2500]])
    """
    if part_scores.ndim != 2 or seen_by.ndim != 2 or part_scores.shape[1] != seen_by.shape[1]:
        raise ValueError(
            f"part_scores must be (n, parts) and seen_by (affordances, parts), got {tuple(part_scores.shape)} and "
            f"{tuple(seen_by.shape)}."
        )
    if not bool(seen_by.any(1).all()):
        index = int((~seen_by.any(1)).nonzero()[0])
        raise ValueError(f"seen_by must name at least one part for each affordance, got none for number {index}.")
    return part_scores[:, None].masked_fill(~seen_by.bool().to(part_scores.device), 0).amax(2)


def nearest_concept(part_scores: Tensor, references: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the existing concept whose parts are most like an image's.

    Args:
        part_scores: Score of each part, not negative, ``(n, parts)``; embeddings of any kind do as well.
        references: The same of the concepts, ``(concepts, parts)``.
        allowed: Which concepts to compare with, bool, ``(n, concepts)``; at least one each.

    Returns:
        The cosine ``(n,)``, 0 for an image without parts, and the concept's number ``(n,)``.

    Example:
        >>> nearest_concept(torch.tensor([[1.0, 1.0]]), torch.eye(2), torch.tensor([[False, True]]))
        (tensor([0.7071]), tensor([1]))
    """
    cosine = concept_cosines(part_scores, references, allowed)
    best = cosine.masked_fill(~allowed.bool(), -torch.inf).max(1)
    return best.values, best.indices


class BinnedMetric(Metric):
    """Means of some quantities over all samples, and over those of each bin."""

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    counts: Tensor

    def __init__(self, quantities: Sequence[str], bins: Sequence[str]) -> None:
        super().__init__()
        if len(set(bins)) < len(bins):
            raise ValueError(f"bins must have different names, got {', '.join(bins)}.")
        self.quantities, self.bins = tuple(quantities), tuple(bins)
        # one column more for all samples together
        size = len(quantities), len(bins) + 1
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Sequence[Tensor], bins: Tensor | None, counted: Tensor | None = None) -> None:
        """Add values ``(n,)`` of each quantity; those that are NaN do not count."""
        stacked = torch.stack([value.detach().to(self.sums.device, torch.float64) for value in values])
        number = stacked.shape[1]
        for name, values_of_rows in (("bin", bins), ("counted", counted)):
            if values_of_rows is not None and tuple(values_of_rows.shape) != (number,):
                raise ValueError(f"{name} must be of shape ({number},), got {tuple(values_of_rows.shape)}.")
        member = torch.zeros(number, len(self.bins) + 1, dtype=torch.float64, device=self.sums.device)
        member[:, -1] = 1
        if bins is not None:
            bins = bins.to(self.sums.device)
            if bool(((bins < -1) | (bins >= len(self.bins))).any()):
                raise ValueError(f"bin must be from 0 to {len(self.bins) - 1}, or -1 for none, got {bins.tolist()}.")
            inside = bins >= 0
            member[inside, bins[inside].long()] = 1
        if counted is not None:
            member = member * counted.to(self.sums.device, torch.float64)[:, None]
        finite = stacked.isfinite()
        self.sums += torch.where(finite, stacked, 0) @ member
        self.counts += finite.double() @ member

    def compute(self) -> dict[str, Tensor]:
        """Return each quantity's mean by name, and by ``name/bin``; float64 scalars, NaN where nothing counts."""
        means = self.sums / self.counts
        columns = [("", -1), *((f"/{name}", index) for index, name in enumerate(self.bins))]
        return {
            f"{quantity}{suffix}": means[row, column]
            for row, quantity in enumerate(self.quantities)
            for suffix, column in columns
        }


class BinnedMean(BinnedMetric):
    """Mean of a number, such as the score of a single object, over all samples and per distance bin.

    Args:
        name: Name of the number.
        bins: Names of the bins.

    Example:
        >>> mean = BinnedMean("single", bins=("easy", "hard"))
        >>> mean.update(torch.tensor([1.0, 0.5]), torch.tensor([0, 1]))
        >>> {name: float(value) for name, value in mean.compute().items()}
        {'single': 0.75, 'single/easy': 1.0, 'single/hard': 0.5}
    """

    def __init__(self, name: str, bins: Sequence[str] = BINS) -> None:
        super().__init__((name,), bins)

    def update(self, value: Tensor, bin: Tensor | None = None) -> None:
        """Add numbers ``(n,)``, of which NaN do not count, and the bin of each from 0, -1 for none, ``(n,)``."""
        if value.ndim != 1:
            raise ValueError(f"value must be of shape (n,), got {tuple(value.shape)}.")
        self._add([value], bin)


class PartAffordanceRecall(BinnedMetric):
    """Share of the requested affordances that an image shows, by a recogniser of parts.

    ``recall`` is the mean share of the requested affordances that are shown, ``all`` the share of images that show
    all of them, and ``min`` the mean score of the least shown one, which tells a dropped affordance. An affordance is
    shown if one of its parts scores over the threshold.

    Args:
        seen_by: Which parts show which affordance, bool, ``(affordances, parts)``, or nested lists.
        threshold: Least score of a part that is there, in (0, 1).
        bins: Names of the distance bins.

    Example:
        >>> recall = PartAffordanceRecall(torch.eye(3).bool(), bins=())
        >>> scores = torch.tensor([[0.75, 0.25, 0.0], [0.75, 1.0, 0.0]])
        >>> recall.update(scores, requested=torch.tensor([[True, True, False], [True, True, False]]))
        >>> {name: float(value) for name, value in recall.compute().items()}
        {'recall': 0.75, 'all': 0.5, 'min': 0.5}
    """

    higher_is_better = True

    seen_by: Tensor

    def __init__(
        self, seen_by: Tensor | Sequence[Sequence[bool]], threshold: float = 0.5, bins: Sequence[str] = BINS
    ) -> None:
        super().__init__(("recall", "all", "min"), bins)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}.")
        self.threshold = threshold
        table = torch.as_tensor(seen_by).bool()
        affordance_scores(torch.zeros(1, table.shape[-1]), table)  # refuses a table that is none
        self.register_buffer("seen_by", table, persistent=False)

    def update(self, part_scores: Tensor, requested: Tensor, bin: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            part_scores: Probability of each part, in [0, 1], ``(n, parts)``.
            requested: Which affordances were asked for, bool, ``(n, affordances)``; at least one each.
            bin: Bin of each from 0, -1 for none, ``(n,)``.
        """
        if not bool(((part_scores >= 0) & (part_scores <= 1)).all()):
            raise ValueError("part_scores must be probabilities in [0, 1]; apply a sigmoid to logits.")
        self._add(requested_shown(affordance_scores(part_scores, self.seen_by), requested, self.threshold), bin)


class PartNovelty(BinnedMetric):
    """Distance of an image to the existing concepts that have a requested affordance already.

    ``novelty`` is ``1 - max cos`` and ``mean_novelty`` is ``1 - mean cos`` between the scores of its parts and the
    parts of these concepts; ``shapeless`` is the share of images without any part, which are novel without merit.
    Read it beside the recall, or count only images that show what was requested.

    Args:
        references: Parts of each concept, ``(concepts, parts)``, or nested lists.
        threshold: Least score of a part that is there, in (0, 1).
        bins: Names of the distance bins.

    Example:
        >>> novelty = PartNovelty([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], bins=())
        >>> novelty.update(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), owners=torch.ones(2, 2))
        >>> {name: round(float(value), 3) for name, value in novelty.compute().items()}
        {'novelty': 0.146, 'mean_novelty': 0.448, 'shapeless': 0.0}
    """

    higher_is_better = True

    references: Tensor

    def __init__(
        self, references: Tensor | Sequence[Sequence[float]], threshold: float = 0.5, bins: Sequence[str] = BINS
    ) -> None:
        super().__init__(("novelty", "mean_novelty", "shapeless"), bins)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}.")
        self.threshold = threshold
        self.register_buffer("references", torch.as_tensor(references).float(), persistent=False)

    def update(
        self, part_scores: Tensor, owners: Tensor, bin: Tensor | None = None, counted: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            part_scores: Probability of each part, in [0, 1], ``(n, parts)``.
            owners: Concepts that have one of the requested affordances, bool, ``(n, concepts)``; at least one each.
            bin: Bin of each from 0, -1 for none, ``(n,)``.
            counted: Which images count, bool, ``(n,)``, such as those that show all that was requested.
        """
        novelties = part_novelty(part_scores, self.references, owners)
        self._add([*novelties, (part_scores <= self.threshold).all(1)], bin, counted)


def requested_shown(scores: Tensor, requested: Tensor, threshold: float) -> list[Tensor]:
    """Return the share of the requested affordances that are shown, whether all are, and the least score, ``(n,)``.

    ``scores`` are those of :func:`affordance_scores`; an affordance is shown over ``threshold``, and each image has at
    least one that was requested, bool ``(n, affordances)``.
    """
    requested = requested.bool().to(scores.device)
    if requested.shape != scores.shape:
        raise ValueError(f"requested must be of shape {tuple(scores.shape)}, got {tuple(requested.shape)}.")
    if not bool(requested.any(1).all()):
        raise ValueError("requested must name at least one affordance for each image.")
    share = ((scores > threshold) & requested).sum(1) / requested.sum(1)
    return [share, share == 1, scores.masked_fill(~requested, torch.inf).amin(1)]


def part_novelty(part_scores: Tensor, references: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 less the greatest and 1 less the mean cosine with the concepts to compare with, ``(n,)``."""
    cosine = concept_cosines(part_scores, references, owners)
    owners = owners.bool().to(cosine.device)
    return 1 - cosine.masked_fill(~owners, -torch.inf).amax(1), 1 - (cosine * owners).sum(1) / owners.sum(1)


def concept_cosines(scores: Tensor, references: Tensor, allowed: Tensor) -> Tensor:
    """Return the cosine of each row with each concept, ``(n, concepts)``."""
    if scores.ndim != 2 or references.ndim != 2 or scores.shape[1] != references.shape[1]:
        raise ValueError(
            f"part_scores must be (n, parts) and references (concepts, parts), got {tuple(scores.shape)} and "
            f"{tuple(references.shape)}."
        )
    shape: tuple[Any, ...] = (len(scores), len(references))
    if tuple(allowed.shape) != shape:
        raise ValueError(f"The concepts to compare with must be of shape {shape}, got {tuple(allowed.shape)}.")
    if not bool(allowed.bool().any(1).all()):
        raise ValueError("Each image must have at least one concept to be compared with.")
    references = references.to(scores.device, scores.dtype)
    return F.normalize(scores, dim=1) @ F.normalize(references, dim=1).T
