"""Scores of a concept's images and attributes: references, discriminability (D), generability (G), and choices by them.

G of an attribute is its D with trial images of the generator in the place of the target's real ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.backends.protocols import Embedder

TEMPERATURE = 100.0
"""Factor of cosines (tau) of CLIP."""
_BLOCK = 120_000
"""Pairs at a time, as float64 less than 1 MB: a block stays in the cache of a core from its first pass to its last."""
_CHUNK = 4_000_000
"""Numbers at a time of a bootstrap, as float64 32 MB."""
_SAFE = {torch.float64: 600.0, torch.float32: 150.0}
"""Largest difference of two scores whose exponentials, taken from their middle, neither overflow nor vanish."""


class EmbeddingCache:
    """Embeddings of images and texts, each computed once in a run.

    Args:
        embedder: The model.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._images: dict[str, Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    def images(self, digests: Sequence[str], load: Callable[[int], Image]) -> Tensor:
        """Return embeddings ``(n, d)`` of images, given by their hashes and a function that opens one by its index."""
        missing = {digest: index for index, digest in enumerate(digests) if digest not in self._images}
        if missing:
            rows = self.embedder.embed_images([load(index) for index in missing.values()])
            self._images |= _by_name(list(missing), rows, "images")
        return torch.stack([self._images[digest] for digest in digests])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings ``(n, d)`` of texts."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            self._texts |= _by_name(missing, self.embedder.embed_texts(missing), "texts")
        return torch.stack([self._texts[text] for text in texts])


def _by_name(names: list[str], rows: Tensor, noun: str) -> dict[str, Tensor]:
    if rows.ndim != 2 or len(rows) != len(names):
        raise ValueError(f"The embedder must return {len(names)} rows for as many {noun}, got {tuple(rows.shape)}.")
    return dict(zip(names, rows.detach().to("cpu", torch.float32, copy=True), strict=True))


def unit_rows(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """Return the rows ``(n, d)`` as float64 of unit length, on the CPU; zero and not finite ones are refused."""
    rows = embeddings.detach().to("cpu", torch.float64)
    lengths = rows.norm(dim=1, keepdim=True)
    bad = ~(lengths.isfinite() & (lengths > 0))
    if bool(bad.any()):
        raise ValueError(
            f"{name} must be finite and not zero, and row {int(bad.nonzero()[0, 0])} is not; the model may run in half "
            "precision."
        )
    return torch.div(rows, lengths)


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosine ``s(x, a)`` of images ``(images, d)`` and texts ``(texts, d)``, float64 ``(images, texts)``.

    Raises:
        ValueError: If the shapes do not fit, or a row is zero or not finite.
    """
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"Images and texts must share a space, got {images.shape[1]} and {texts.shape[1]} numbers.")
    return unit_rows(images, "image embeddings") @ unit_rows(texts, "text embeddings").T


def rank_references(generic: Tensor, named: Tensor, file_names: Sequence[str], num_references: int = 5) -> list[int]:
    """Return the indices of the best ``num_references`` images of a class, the best first.

    An image scores the product of its shares under two softmaxes over all images of the class, of its cosines ``(n,)``
    with a generic text, such as "photo of an animal", and with the class's own. Ties go to the file name that sorts
    first, so the order in which a folder was listed changes nothing. With fewer images all are taken. Give the support
    images only: ranking all training images would use more of them than a few-shot protocol says.

    Raises:
        ValueError: If numbers do not fit, there are no images, or file names repeat.

    Example:
        >>> cosines = torch.tensor([0.2, 0.3, 0.2])
        >>> rank_references(cosines, cosines, ["b.jpg", "c.jpg", "a.jpg"], num_references=2)
        [1, 2]
    """
    if num_references < 1:
        raise ValueError(f"num_references must be at least 1, got {num_references}.")
    if not file_names or not len(file_names) == len(generic) == len(named):
        raise ValueError(f"There must be a file name for each of {len(generic)} images, at least 1, got {file_names}.")
    if len(set(file_names)) < len(file_names):
        raise ValueError("File names must differ, as ties are broken by them.")
    # the product's order is that of the cosines' sum; it does not underflow
    total = (generic.double() + named.double()).tolist()
    if any(value != value for value in total):
        raise ValueError("Cosines must be numbers, got NaN.")
    order = sorted(range(len(total)), key=lambda index: (-round(total[index], 12), file_names[index]))
    return order[:num_references]


@dataclass(frozen=True)
class AttributeScores:
    """Scores of attributes with their intervals.

    Args:
        values: Score of each attribute, in [0, 1].
        lower: Lower ends of the bootstrap intervals.
        upper: Upper ends of the bootstrap intervals.
        num_pairs: Number of image pairs behind each score.
    """

    values: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    num_pairs: int


def discriminability_values(target: Tensor, confusable: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the discriminability (D) of attributes.

    ``D(a)`` is the mean over target images ``x`` and confusable images ``y`` of
    ``exp(tau s(x, a)) / (exp(tau s(x, a)) + exp(tau s(y, a)))``, which is the mean of
    ``sigmoid(tau (s(x, a) - s(y, a)))``. It is 0.5 if the attribute tells nothing, and both directions sum to 1.

    An exponential is taken of each image, in float64, rather than of each pair, of which one division is left: in
    float64 if the cosines are, else in float32, whose rounding is far below that of the cosines. Pairs are gone through
    in blocks that fit a core's cache.

    Args:
        target: Cosine of each target image with each attribute, ``(images, attributes)``.
        confusable: The same of the confusable's images, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.

    Returns:
        float64 ``(attributes,)``, in [0, 1].

    Raises:
        ValueError: If the shapes do not fit, a side has no images, or the numbers are not finite.

    Example:
        >>> discriminability_values(torch.tensor([[0.3, 0.2]]), torch.tensor([[0.2959454, 0.2]]))
        tensor([0.6000, 0.5000], dtype=torch.float64)

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", ICML 2025, arXiv 2502.17709.
    """
    dtype = torch.float64 if torch.float64 in (target.dtype, confusable.dtype) else torch.float32
    target, confusable = _checked(target, confusable)
    own, other, shares = _prepared(target, confusable, temperature, dtype=dtype)
    rows = max(1, _BLOCK // len(confusable))
    total = own.new_zeros(len(own), dtype=torch.float64)
    for images in torch.split(own, rows, 1):
        for part in _slices(len(own), _BLOCK // (images.shape[1] * len(confusable))):
            total[part] += shares(images[part], other[part]).sum(2).double().sum(1)
    return total / (len(target) * len(confusable))


def discriminability_scores(
    target: Tensor,
    confusable: Tensor,
    temperature: float = TEMPERATURE,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AttributeScores:
    """Return the discriminability of attributes with bootstrap intervals over the images of both sides.

    Each resample draws as many images with replacement from either side. With one image on each side the interval is
    the value itself and says nothing.

    Args:
        target: Cosine of each target image with each attribute, ``(images, attributes)``.
        confusable: The same of the confusable's images, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.
        resamples: Number of resamples, at least 1.
        confidence: Share of resamples inside the interval, in (0, 1).
        seed: Seed of the resamples.

    Raises:
        ValueError: As :func:`discriminability_values`.

    Example:
        >>> scores = discriminability_scores(torch.tensor([[0.3]]), torch.tensor([[0.3]]))
        >>> scores.values, scores.num_pairs
        ((0.5,), 1)
    """
    target, confusable = _checked(target, confusable)
    generator = torch.Generator().manual_seed(seed)
    own_weights, other_weights = (_weights(len(side), resamples, generator) for side in (target, confusable))
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    values: list[float] = []
    intervals: list[Tensor] = []
    own, other, shares_of = _prepared(target, confusable, temperature, dtype=torch.float64)
    for part in _slices(len(own), _CHUNK // (max(len(target), resamples) * len(confusable))):
        shares = shares_of(own[part], other[part])
        values += shares.mean((1, 2)).tolist()
        resampled = ((own_weights @ shares) * other_weights).sum(2)
        intervals.append(resampled.quantile(ends, dim=1))
    lower, upper = torch.cat(intervals, 1).tolist() if intervals else ([], [])
    return AttributeScores(tuple(values), tuple(lower), tuple(upper), num_pairs=len(target) * len(confusable))


def _checked(target: Tensor, confusable: Tensor) -> tuple[Tensor, Tensor]:
    if target.ndim != 2 or confusable.ndim != 2 or target.shape[1] != confusable.shape[1]:
        raise ValueError(
            "target and confusable must be of shape (images, attributes) with the same attributes, got "
            f"{tuple(target.shape)} and {tuple(confusable.shape)}."
        )
    if not len(target) or not len(confusable):
        raise ValueError(f"Both sides must have images, got {len(target)} and {len(confusable)}.")
    if not bool(target.isfinite().all() and confusable.isfinite().all()):
        raise ValueError("Cosines must be finite numbers; the model may run in half precision.")
    return target.detach().double(), confusable.detach().double()


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))


def _prepared(
    target: Tensor, confusable: Tensor, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Return what the shares of all pairs are computed from, ``(attributes, images)`` of either side, and how."""
    own, other = ((temperature * side).T.contiguous() for side in (target, confusable))
    if not len(own):
        return own, other, _shares_of_scores
    low, high = torch.minimum(own.amin(1), other.amin(1)), torch.maximum(own.amax(1), other.amax(1))
    if float((high - low).max()) > _SAFE[dtype]:
        return own, other, _shares_of_scores
    middle = ((low + high) / 2)[:, None]
    return (own - middle).exp_().to(dtype), (other - middle).exp_().to(dtype), _shares_of_exponentials


def _shares_of_scores(own: Tensor, other: Tensor) -> Tensor:
    """Return ``sigmoid(x - y)`` of all pairs, ``(attributes, target images, confusable images)``."""
    return (own[:, :, None] - other[:, None, :]).sigmoid_()


def _shares_of_exponentials(own: Tensor, other: Tensor) -> Tensor:
    """Return ``e^x / (e^x + e^y)`` of all pairs, from ``e^x`` and ``e^y``, in the same shape."""
    both = own[:, :, None] + other[:, None, :]
    return torch.div(own[:, :, None], both, out=both)


def _weights(images: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return how often each image is drawn, over the number of images, ``(resamples, images)``."""
    drawn = torch.randint(images, (resamples, images), generator=generator)
    counts = torch.zeros(resamples, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / images


def attribute_groups(
    num_attributes: int, group_size: int = 4, shuffle_seed: int | None = None
) -> list[tuple[int, ...]]:
    """Return groups of at most ``group_size`` attributes whose trial images are made together.

    An attribute's score depends on its neighbours; ``shuffle_seed`` draws another order.

    Example:
        >>> attribute_groups(6)
        [(0, 1, 2, 3), (4, 5)]
    """
    order = list(range(num_attributes))
    if shuffle_seed is not None:
        order = torch.randperm(num_attributes, generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
    return [tuple(order[start : start + group_size]) for start in range(0, num_attributes, group_size)]


def trial_count(num_attributes: int, group_size: int = 4, trials_per_group: int = 5) -> int:
    """Return the number of trial images that attributes need.

    Example:
        >>> trial_count(8), trial_count(16)
        (10, 20)
    """
    return trials_per_group * math.ceil(num_attributes / group_size)


def generability_scores(
    trials: Sequence[Tensor],
    groups: Sequence[Sequence[int]],
    confusable: Tensor,
    temperature: float = TEMPERATURE,
    resamples: int = 1000,
    seed: int = 0,
) -> AttributeScores:
    """Return the generability (G) of attributes: their discriminability with trial images for the target's real ones.

    Args:
        trials: For each group, the cosine of its trial images with all attributes, ``(trials, attributes)``.
        groups: Attributes of each group; together each attribute once.
        confusable: Cosine of the confusable's real images with each attribute, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: If the groups do not hold each attribute once, or as :func:`discriminability_values`.

    Example:
        >>> trials = [torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.1]])]
        >>> generability_scores(trials, [(0,), (1,)], torch.tensor([[0.1, 0.1]])).values
        (1.0, 0.5)
    """
    flat = sorted(number for group in groups for number in group)
    if flat != list(range(confusable.shape[-1])):
        raise ValueError(f"The groups must hold each of the {confusable.shape[-1]} attributes once, got {flat}.")
    rows: dict[int, tuple[float, float, float]] = {}
    num_pairs = 0
    for cosines, group in zip(trials, groups, strict=True):
        columns = list(group)
        scores = discriminability_scores(
            cosines[:, columns], confusable[:, columns], temperature, resamples=resamples, seed=seed
        )
        num_pairs = scores.num_pairs
        rows |= dict(zip(columns, zip(scores.values, scores.lower, scores.upper, strict=True), strict=True))
    values, lower, upper = zip(*(rows[number] for number in flat), strict=True) if rows else ((), (), ())
    return AttributeScores(values, lower, upper, num_pairs=num_pairs)


@dataclass(frozen=True)
class Selection:
    """Selected attributes.

    Args:
        kept: Their indices.
        reasons: For each attribute why it is kept or dropped.
        fallback: Whether none passed and the best ones were taken all the same; to be shown.
    """

    kept: tuple[int, ...]
    reasons: tuple[str, ...]
    fallback: bool = False


def select_discriminative(values: Sequence[float], threshold: float = 0.6, min_features: int = 3) -> Selection:
    """Keep the attributes whose discriminability is over the threshold; if there is none, the best ones, flagged.

    Scores and threshold are in [0, 1]; 0.6 is what a cosine gap of 0.0041 reaches. The kept ones stay in order.

    Raises:
        ValueError: If a score or the threshold is not in [0, 1].

    Example:
        >>> select_discriminative([0.45, 0.98, 0.6]).kept
        (1,)
    """
    _check_shares(values, "threshold", threshold)
    kept = [index for index, value in enumerate(values) if value > threshold]
    fallback = bool(values) and not kept
    if fallback:
        kept = sorted(_best_first(values)[:min_features])
    reasons = [
        f"best of none over {threshold:g}" if fallback and index in kept else _compared(value, threshold)
        for index, value in enumerate(values)
    ]
    return Selection(tuple(kept), tuple(reasons), fallback)


def select_generable(values: Sequence[float], top_k: int = 5, min_generability: float | None = 0.5) -> Selection:
    """Keep the ``top_k`` attributes of greatest generability; if none is good enough, the best one, flagged.

    Scores are in [0, 1] and must be over ``min_generability``; 0.5 is chance, ``None`` sets no bound. The best comes
    first; ties stay in order.

    Raises:
        ValueError: If a score or ``min_generability`` is not in [0, 1].

    Example:
        >>> select_generable([0.86, 0.14, 0.93], top_k=5).kept
        (2, 0)
    """
    threshold = 0.0 if min_generability is None else min_generability
    _check_shares(values, "min_generability", threshold)
    order = _best_first(values)
    good = [index for index in order if min_generability is None or values[index] > threshold]
    fallback = bool(values) and not good
    kept = order[:1] if fallback else good[:top_k]
    reasons: list[str] = []
    for index, value in enumerate(values):
        if index in kept:
            reasons.append(f"best of none over {threshold:g}" if fallback else f"among the best {top_k}")
        elif index in good:
            reasons.append(f"not among the best {top_k}")
        else:
            reasons.append(_compared(value, threshold))
    return Selection(tuple(kept), tuple(reasons), fallback)


def _best_first(values: Sequence[float]) -> list[int]:
    """Return the indices of values, the greatest first; ties in the given order."""
    return sorted(range(len(values)), key=lambda index: -values[index])


def _compared(value: float, threshold: float) -> str:
    return f"{value:.4g} is {'over' if value > threshold else 'not over'} {threshold:g}"


def _check_shares(values: Sequence[float], name: str, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {threshold}.")
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"Scores must be numbers in [0, 1], got {list(values)}.")
