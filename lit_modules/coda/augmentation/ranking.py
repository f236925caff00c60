"""Similarities of images and texts, and the choice of a class's reference images by them."""

from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.backends.protocols import Embedder

TEMPERATURE = 100.0
"""Factor of cosines (tau) of CLIP."""


def unit_rows(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """Return the rows as float64 of unit length, on the CPU.

    Raises:
        ValueError: If they are no matrix, or a row is zero or not finite.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"{name} must be of shape (n, d), got {tuple(embeddings.shape)}.")
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
    """Return the cosine ``s(x, a)`` of each image with each text, float64 ``(images, texts)``.

    Args:
        images: Embeddings ``(images, d)``, of any length.
        texts: Embeddings ``(texts, d)``, of any length.

    Raises:
        ValueError: If the shapes do not fit, or a row is zero or not finite.
    """
    if images.ndim == 2 and texts.ndim == 2 and images.shape[1] != texts.shape[1]:
        raise ValueError(f"Images and texts must share a space, got {images.shape[1]} and {texts.shape[1]} numbers.")
    return unit_rows(images, "image embeddings") @ unit_rows(texts, "text embeddings").T


def reference_scores(generic: Tensor, named: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the score of each image: the product of its shares under two softmaxes over all images of the class.

    Args:
        generic: Cosine with the generic text, such as "photo of an animal", ``(n,)``.
        named: Cosine with the class's own text, ``(n,)``.
        temperature: Factor of the cosines (tau), positive.

    Returns:
        float64 ``(n,)``, in (0, 1].

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.

    Example:
        >>> reference_scores(torch.tensor([0.2, 0.2]), torch.tensor([0.3, 0.3]))
        tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    if generic.ndim != 1 or generic.shape != named.shape:
        raise ValueError(f"Cosines must be of one shape (n,), got {tuple(generic.shape)} and {tuple(named.shape)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    logs = [(temperature * cosine.double()).log_softmax(0) for cosine in (generic, named)]
    return (logs[0] + logs[1]).exp()


def rank_references(
    generic: Tensor,
    named: Tensor,
    file_names: Sequence[str],
    num_references: int = 5,
    temperature: float = TEMPERATURE,
) -> list[int]:
    """Return the indices of the best images of a class, the best first.

    The order is that of :func:`reference_scores`. Ties go to the file name that sorts first, so the order in which a
    folder was listed changes nothing. With fewer images all are taken. Give the support images only: ranking all
    training images would use more of them than a few-shot protocol says.

    Args:
        generic: Cosine with the generic text, ``(n,)``.
        named: Cosine with the class's own text, ``(n,)``.
        file_names: File name of each image.
        num_references: Number of images to take, at least 1; 5 for scoring, 100 for cleaning a subset.
        temperature: Factor of the cosines (tau), positive.

    Raises:
        ValueError: If numbers do not fit, there are no images, or file names repeat.

    Example:
        >>> cosines = torch.tensor([0.2, 0.3, 0.2])
        >>> rank_references(cosines, cosines, ["b.jpg", "c.jpg", "a.jpg"], 2)
        [1, 2]
    """
    if num_references < 1:
        raise ValueError(f"num_references must be at least 1, got {num_references}.")
    if not file_names or len(file_names) != len(generic):
        raise ValueError(f"There must be a file name for each of {len(generic)} images, at least 1, got {file_names}.")
    if len(set(file_names)) < len(file_names):
        raise ValueError("File names must differ, as ties are broken by them.")
    reference_scores(generic, named, temperature)  # refuses what does not fit
    # the product's order is that of the cosines' sum; it does not underflow
    total = (generic.double() + named.double()).tolist()
    if any(value != value for value in total):
        raise ValueError("Cosines must be numbers, got NaN.")
    order = sorted(range(len(total)), key=lambda index: (-round(total[index], 12), file_names[index]))
    return order[:num_references]


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
