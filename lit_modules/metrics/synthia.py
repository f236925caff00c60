"""Metrics of generated designs: affordances shown, distance to existing concepts, diversity, a single object."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.wrappers.abstract import WrapperMetric

from lit_modules.metrics.affordances import BINS, BinnedMean, BinnedMetric, nearest_concept
from lit_modules.metrics.concept_images import ConceptImages, read_concept_images
from lit_modules.metrics.image_text import (
    ImageTextEncoder,
    affordance_alignment,
    pairwise_distance,
    positive_negative_gap,
    recall_at_k,
    single_object_probability,
)
from lit_modules.utils.ontology import Level, Ontology
from lit_modules.utils.ontology_files import normalise
from lit_modules.utils.suggestions import did_you_mean

PROMPT = "an object used to {}"
ONE, SEVERAL = "a photo of one object", "a photo of several objects"
Batch = Mapping[str, Any]


class EncodedMetric(BinnedMetric):
    """A mean of numbers that are computed from the vectors of images; base of the metrics below.

    A batch has ``affordances``, a sequence of names for each image, and perhaps ``stage`` (the distance bin from 0, or
    -1, ``(n,)``). The encoder is frozen and stays out of the state.
    """

    higher_is_better = True

    def __init__(self, encoder: str | ImageTextEncoder, quantities: Sequence[str], bins: Sequence[str]) -> None:
        super().__init__(quantities, bins)
        self.encoder = _encoder(encoder)

    def update(self, images: Tensor, batch: Batch, vectors: Tensor | None = None) -> None:
        """Add generated images.

        Args:
            images: Floats in [0, 1], ``(n, 3, height, width)``.
            batch: What was asked for, a row for each image.
            vectors: The encoder's vectors of the images, if they are known already, ``(n, features)``.
        """
        vectors = self.encoder.images(images.to(self.device)) if vectors is None else vectors
        self._add(self.values(vectors, batch), batch.get("stage"))

    @abstractmethod
    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return each quantity of each image, ``(n,)``, NaN where there is none."""


class AffordanceCLIPScore(EncodedMetric):
    """Cosine of an image with ``"an object used to {a}"``, for the affordances that were asked for.

    ``clip_mean`` is the mean over the affordances and ``clip_min`` the minimum, which tells a dropped one.

    Args:
        encoder: CLIP or SigLIP model, or its name or folder.
        bins: Names of the distance bins.
    """

    def __init__(self, encoder: str | ImageTextEncoder, bins: Sequence[str] = BINS) -> None:
        super().__init__(encoder, ("clip_mean", "clip_min"), bins)

    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return mean and minimum."""
        rows = _affordances(batch, len(vectors))
        names = list(dict.fromkeys(name for row in rows for name in row))
        texts = self.encoder.texts([_prompt(name) for name in names])
        return list(affordance_alignment(vectors, texts, _table(rows, names)))


class AffordanceRecall(EncodedMetric):
    """Share of the requested affordances among the ``k`` of the ontology that are most like the image.

    Affordances are compared by ``"an object used to {a}"``. The number's name is ``recall_at_{k}``.

    Args:
        encoder: CLIP or SigLIP model, or its name or folder.
        ontology: File or name of an ontology, or the ontology.
        k: How many of the ontology's affordances count.
        bins: Names of the distance bins.

    Raises:
        ValueError: If ``k`` is out of its range, or a batch asks for an affordance that the ontology does not have.
    """

    def __init__(
        self,
        encoder: str | ImageTextEncoder,
        ontology: str | Ontology = "household",
        k: int = 5,
        bins: Sequence[str] = BINS,
    ) -> None:
        super().__init__(encoder, (f"recall_at_{k}",), bins)
        self.names = _ontology(ontology).affordances()
        if not 1 <= k <= len(self.names):
            raise ValueError(f"k must be from 1 to the {len(self.names)} affordances of the ontology, got {k}.")
        self.k = k

    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return the recall."""
        rows = _affordances(batch, len(vectors))
        for name in {name for row in rows for name in row}:
            if name not in self.names:
                raise ValueError(f"There is no affordance {name!r} in the ontology{did_you_mean(name, self.names)}")
        texts = self.encoder.texts([_prompt(name) for name in self.names])
        return [recall_at_k(vectors @ texts.T, _table(rows, self.names), self.k)]


class NoveltyDistance(EncodedMetric):
    """Distance of an image to the images of all existing concepts that have a requested affordance.

    ``novelty`` is ``1 - max cos`` and ``mean_novelty`` is ``1 - mean cos`` over the images of these concepts. An image
    without such a concept does not count; the first time, a warning says which affordances have none.

    Args:
        encoder: Any vision model, such as CLIP or DINOv2, or its name or folder.
        ontology: File or name of an ontology, or the ontology.
        images: Folder with a folder of images for each concept, or the images by the concepts' names; see
            :func:`~lit_modules.metrics.concept_images.read_concept_images`.
        level: Whether a concept must have the affordance as a whole, by a part, or either.
        bins: Names of the distance bins.

    Raises:
        ValueError: If an image is of a concept that the ontology does not have, or there is none.
        FileNotFoundError: If there is no such folder.
    """

    def __init__(
        self,
        encoder: str | ImageTextEncoder,
        ontology: str | Ontology,
        images: str | ConceptImages,
        level: Level = "concept",
        bins: Sequence[str] = BINS,
    ) -> None:
        super().__init__(encoder, ("novelty", "mean_novelty"), bins)
        self.ontology, self.level = _ontology(ontology), level
        self.ontology.affordances(level)  # refuses a level that is none
        by_concept = read_concept_images(images, [concept.name for concept in self.ontology.concepts])
        self._images = [image for concept in by_concept.values() for image in concept]
        self._owner = [name for name, concept in by_concept.items() for _ in concept]
        self._vectors: Tensor | None = None
        self._warned = False

    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return novelty and mean novelty."""
        allowed, references = self._compared(vectors, batch)
        comparable = allowed.any(1)
        values = torch.full((2, len(vectors)), torch.nan, device=vectors.device)
        if bool(comparable.any()):
            vectors, allowed = vectors[comparable], allowed[comparable]
            values[0, comparable] = 1 - nearest_concept(vectors, references, allowed)[0]
            values[1, comparable] = 1 - (vectors @ references.T * allowed).sum(1) / allowed.sum(1)
        return list(values)

    def nearest(self, images: Tensor, batch: Batch) -> list[tuple[str, float]]:
        """Return the nearest existing concept of each image and the cosine with it; counts nothing.

        Args:
            images: Floats in [0, 1], ``(n, 3, height, width)``.
            batch: As for :meth:`update`.

        Returns:
            Name and cosine; an empty name and NaN where no concept with images has a requested affordance.
        """
        vectors = self.encoder.images(images.to(self.device))
        allowed, references = self._compared(vectors, batch)
        cosine = (vectors @ references.T).masked_fill(~allowed, -torch.inf).max(1)
        rows = zip(cosine.values.tolist(), cosine.indices.tolist(), allowed.any(1).tolist(), strict=True)
        return [(self._owner[index], value) if known else ("", math.nan) for value, index, known in rows]

    def _compared(self, vectors: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which reference images each image is compared with, and their vectors."""
        if self._vectors is None:
            self._vectors = self.encoder.images(self._images)
        rows = _affordances(batch, len(vectors))
        names = {name for row in rows for name in row}
        owners = {
            name: {self.ontology.concept(path).name for path in self.ontology.concepts_with(name, self.level)}
            for name in names
        }
        bare = sorted(name for name in names if not owners[name].intersection(self._owner))
        if bare and not self._warned:
            self._warned = True
            rank_zero_warn(f"No concept with images has {', '.join(bare)}; novelty passes it over.", UserWarning)
        allowed = [[any(owner in owners[name] for name in row) for owner in self._owner] for row in rows]
        return torch.tensor(allowed, device=vectors.device), self._vectors.to(vectors.device)


class PositiveNegativeGap(EncodedMetric):
    """Cosine of an image with the image of a new design, less the largest one with images of existing concepts.

    A batch has also ``pos`` (floats in [-1, 1], ``(n, 3, height, width)``), ``neg`` (``(n, negatives, 3, height,
    width)``) and ``neg_mask`` (bool, ``(n, negatives)``); images of a batch without them do not count.

    Args:
        encoder: Any vision model, such as CLIP or DINOv2, or its name or folder.
        bins: Names of the distance bins.
    """

    def __init__(self, encoder: str | ImageTextEncoder, bins: Sequence[str] = BINS) -> None:
        super().__init__(encoder, ("gap",), bins)

    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return the gap."""
        if any(batch.get(key) is None for key in ("pos", "neg", "neg_mask")):
            return [torch.full((len(vectors),), torch.nan)]
        positive, negative = (
            self.encoder.images(batch[key].flatten(0, -4).to(vectors.device) / 2 + 0.5, remember=True)
            for key in ("pos", "neg")
        )
        negatives = negative.reshape(*batch["neg_mask"].shape, -1)
        return [positive_negative_gap(vectors, positive[:, None], negatives, batch["neg_mask"])]


class SingleObject(EncodedMetric):
    """Probability of "a photo of one object" against "a photo of several objects", as ``single``.

    Args:
        encoder: CLIP or SigLIP model, or its name or folder.
        bins: Names of the distance bins.
    """

    def __init__(self, encoder: str | ImageTextEncoder, bins: Sequence[str] = BINS) -> None:
        super().__init__(encoder, ("single",), bins)

    def values(self, vectors: Tensor, batch: Batch) -> list[Tensor]:
        """Return the probability."""
        one, several = self.encoder.texts([ONE, SEVERAL])
        return [single_object_probability(vectors, one, several, self.encoder.scale)]


class Diversity(Metric):
    """Mean distance, ``1 - cos``, between the images of one prompt that come from different seeds, as ``diversity``.

    A batch has ``pair_id`` (int64, ``(n,)``), which tells the images of one prompt apart from others, over all
    batches, and perhaps ``stage``. Images of a prompt that came once do not count.

    Args:
        encoder: Any vision model, such as DINOv2 or CLIP, or its name or folder.
        bins: Names of the distance bins.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    pairs: list[Tensor] | Tensor
    stages: list[Tensor] | Tensor
    vectors: list[Tensor] | Tensor

    def __init__(self, encoder: str | ImageTextEncoder, bins: Sequence[str] = BINS) -> None:
        super().__init__()
        self.encoder = _encoder(encoder)
        self.bins = tuple(bins)
        for name in ("pairs", "stages", "vectors"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, batch: Batch, vectors: Tensor | None = None) -> None:
        """Add generated images; see :meth:`EncodedMetric.update`."""
        vectors = self.encoder.images(images.to(self.device)) if vectors is None else vectors
        if "pair_id" not in batch or len(batch["pair_id"]) != len(vectors):
            raise ValueError(
                f"A batch must have a pair_id for each of the {len(vectors)} images; got none or another number."
            )
        pairs = batch["pair_id"].to(self.device, torch.int64)
        stages = batch.get("stage")
        stages = torch.full_like(pairs, -1) if stages is None else stages.to(self.device, torch.int64)
        for name, value in (("pairs", pairs), ("stages", stages), ("vectors", vectors.to(self.device))):
            getattr(self, name).append(value)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the vectors of all processes; called by :meth:`compute`."""
        if isinstance(self.pairs, list) and not self.pairs:  # torchmetrics needs the shape from a rank without images
            empty = torch.empty(0, dtype=torch.int64, device=self.device)
            vectors = torch.empty(0, self.encoder.num_features, device=self.device)
            for name, value in (("pairs", empty), ("stages", empty), ("vectors", vectors)):
                getattr(self, name).append(value)
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return ``diversity`` and ``diversity/bin``, means over the prompts; float64 scalars."""
        mean = BinnedMean("diversity", self.bins).to(self.device)
        if len(self.pairs):
            pairs, stages = dim_zero_cat(self.pairs), dim_zero_cat(self.stages)
            names, distance = pairwise_distance(dim_zero_cat(self.vectors), pairs)
            stage = torch.empty_like(names)
            stage[torch.searchsorted(names, pairs)] = stages  # a pair has one stage
            mean.update(distance, stage)
        return BinnedMean.compute(mean)  # not the instance's, which would gather once more


class SynthiaScore(WrapperMetric):
    """All of these numbers, with each generated image encoded once: affordances, novelty, gap, diversity, one object.

    A batch has ``affordances`` (a sequence of names for each image) and ``pair_id``, and perhaps ``stage``, ``pos``,
    ``neg`` and ``neg_mask``, as those of ``datamodules.AffordancePairs``. Read the numbers together: an image that
    shows nothing is novel, and one of an existing concept may show an affordance well.

    Args:
        encoder: CLIP or SigLIP model, or its name or folder.
        ontology: File or name of an ontology, or the ontology.
        images: Images of the existing concepts, see :class:`NoveltyDistance`; ``None`` leaves novelty out.
        novelty_encoder: Vision model of novelty, gap and diversity, such as ``"facebook/dinov2-base"``; ``None`` takes
            ``encoder``.
        k: How many of the ontology's affordances count for the recall.
        level: Whether a concept must have the affordance as a whole, by a part, or either.
        bins: Names of the distance bins.

    Raises:
        FileNotFoundError: If there is no such file or folder.

    References:
        Numbers of the offline evaluation; the paper's own are those of a judge, see
        :mod:`lit_modules.synthia.judge.asking`. Ha et al., arXiv 2502.17793.
    """

    def __init__(
        self,
        encoder: str | ImageTextEncoder,
        ontology: str | Ontology = "household",
        images: str | ConceptImages | None = None,
        novelty_encoder: str | ImageTextEncoder | None = None,
        k: int = 5,
        level: Level = "concept",
        bins: Sequence[str] = BINS,
    ) -> None:
        super().__init__()
        read = _ontology(ontology)
        self.encoder = _encoder(encoder)
        self.novelty_encoder = self.encoder if novelty_encoder is None else _encoder(novelty_encoder)
        made: list[EncodedMetric | Diversity] = [
            AffordanceCLIPScore(self.encoder, bins),
            AffordanceRecall(self.encoder, read, k, bins),
            SingleObject(self.encoder, bins),
            PositiveNegativeGap(self.novelty_encoder, bins),
            Diversity(self.novelty_encoder, bins),
        ]
        if images is not None:
            made.append(NoveltyDistance(self.novelty_encoder, read, images, level, bins))
        self.metrics: Any = nn.ModuleList(made)

    def update(self, images: Tensor, batch: Batch) -> None:
        """Add generated images; see :meth:`EncodedMetric.update`."""
        images = images.to(self.device)
        vectors = {id(self.encoder): self.encoder.images(images)}
        if self.novelty_encoder is not self.encoder:
            vectors[id(self.novelty_encoder)] = self.novelty_encoder.images(images)
        for metric in self.metrics:
            metric.update(images, batch, vectors[id(metric.encoder)])

    def compute(self) -> dict[str, Tensor]:
        """Return all numbers by name, and by ``name/bin``; float64 scalars, NaN where nothing counts."""
        return {name: value for metric in self.metrics for name, value in metric.compute().items()}

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        for metric in self.metrics:
            metric.reset()


def _encoder(encoder: str | ImageTextEncoder) -> ImageTextEncoder:
    return ImageTextEncoder(encoder) if isinstance(encoder, str) else encoder


def _ontology(ontology: str | Ontology) -> Ontology:
    return Ontology.from_file(ontology) if isinstance(ontology, str) else ontology


def _prompt(affordance: str) -> str:
    return PROMPT.format(affordance.replace("_", " "))


def _affordances(batch: Batch, number: int) -> list[list[str]]:
    """Return the names that each image was asked for."""
    rows = batch.get("affordances")
    if rows is None or len(rows) != number or any(isinstance(row, str) or not row for row in rows):
        raise ValueError(
            f"A batch must have affordances, a sequence of names for each of the {number} images; got {rows!r}."
        )
    return [[normalise(name) for name in row] for row in rows]


def _table(rows: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    return torch.tensor([[name in row for name in names] for row in rows], dtype=torch.bool)
