"""Images and phrases as vectors of one space, and functions of their cosines."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.hashing import hash_tensors


class ImageTextEncoder:
    """Encode images and phrases with CLIP or SigLIP, or images alone with DINOv2 and other vision models.

    Images are seen as 8-bit pictures, in the way of the model's image processor. CLIP and SigLIP give their projected
    features, other models the pooled output (DINOv2: the class token). The model is loaded at the first call, frozen,
    in float32 and evaluation mode; it follows the images from device to device.

    Args:
        model: Name or folder of a model of transformers, such as ``"openai/clip-vit-base-patch32"``,
            ``"google/siglip-base-patch16-224"`` or ``"facebook/dinov2-base"``.
        batch_size: Images or phrases in one forward pass.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.
        Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", arXiv 2304.07193.
    """

    def __init__(self, model: str, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.model, self.batch_size = model, batch_size
        self._network: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None
        self._phrases: dict[str, Tensor] = {}
        self._pictures: dict[str, Tensor] = {}

    @property
    def scale(self) -> float:
        """Factor of cosines before a softmax or sigmoid; 100 for the released CLIP models."""
        return float(self._with_text().logit_scale.detach().exp())

    @property
    def takes_phrases(self) -> bool:
        """True if the model has a text tower."""
        return hasattr(self._load(), "get_text_features")

    def features(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the features of images as the model gives them, float32, ``(n, features)``.

        Args:
            images: Floats in [0, 1] or uint8, ``(n, 3, height, width)``, or a list of ``(3, height, width)`` of any
                sizes.
        """
        pictures = [as_bytes(image) for image in images]
        network = self._load()
        if len(pictures):
            network = network.to(pictures[0].device)
        features = [torch.empty(0, self.num_features, device=network.device)]
        for start in range(0, len(pictures), self.batch_size):
            pixels = self._processor(
                images=pictures[start : start + self.batch_size],
                input_data_format="channels_first",
                return_tensors="pt",
            )["pixel_values"].to(network.device)
            with torch.no_grad():
                both = hasattr(network, "get_image_features")
                output = network.get_image_features(pixel_values=pixels) if both else network(pixel_values=pixels)
            features.append(output.pooler_output.flatten(1))
        return torch.cat(features)

    def images(self, images: Tensor | Sequence[Tensor], remember: bool = False) -> Tensor:
        """Return images as unit vectors, ``(n, features)``.

        Args:
            images: As for :meth:`features`.
            remember: Whether to encode the same image once in the life of this object, as references want.
        """
        if not remember:
            return F.normalize(self.features(images), dim=1)
        pictures = [as_bytes(image) for image in images]
        keys = [hash_tensors({"image": picture}) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._pictures}
        if new:
            self._pictures.update(zip(new, self.images(list(new.values())).cpu(), strict=True))
        device = pictures[0].device if pictures else torch.device("cpu")
        return torch.stack([self._pictures[key] for key in keys]).to(device) if keys else self.images([])

    def texts(self, phrases: Sequence[str]) -> Tensor:
        """Return phrases as unit vectors, ``(phrases, features)``; each phrase is encoded once.

        A phrase that is longer than the model reads (77 tokens for CLIP, 64 for SigLIP) is cut off, with a warning.

        Raises:
            ValueError: If the model has no text tower.
        """
        network = self._with_text()
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._phrases]
        limit = int(network.config.text_config.max_position_embeddings)
        long = [phrase for phrase in new if len(self._tokenizer(phrase, verbose=False)["input_ids"]) > limit]
        if long:
            rank_zero_warn(
                f"{self.model} reads {limit} tokens and cuts off the rest of {len(long)} longer texts, such as "
                f"{long[0][:60]!r}; shorten them.",
                UserWarning,
            )
        siglip = network.config.model_type.startswith("siglip")  # was trained on padded phrases without a mask
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            padding = "max_length" if siglip else True
            tokens = self._tokenizer(part, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
            inputs = {key: tokens[key].to(network.device) for key in ("input_ids", "attention_mask") if key in tokens}
            if siglip:
                inputs.pop("attention_mask", None)
            with torch.no_grad():
                vectors = F.normalize(network.get_text_features(**inputs).pooler_output, dim=1)
            self._phrases.update(zip(part, vectors.cpu(), strict=True))
        if not phrases:
            return torch.empty(0, self.num_features, device=network.device)
        return torch.stack([self._phrases[phrase] for phrase in phrases]).to(network.device)

    @property
    def num_features(self) -> int:
        """Length of the vectors."""
        config = self._load().config
        for settings, name in (
            (config, "projection_dim"),
            (getattr(config, "vision_config", config), "hidden_size"),
            (config, "hidden_sizes"),
        ):
            size = getattr(settings, name, None)  # configurations of transformers differ
            if size is not None:
                return int(size if isinstance(size, int) else size[-1])
        raise ValueError(f"{self.model} ({config.model_type}) does not tell how many features it gives.")

    def _load(self) -> Any:
        if self._network is None:
            from transformers import AutoImageProcessor, AutoModel

            loader: Any = AutoImageProcessor
            with only_tensors(self.model):
                network: Any = AutoModel.from_pretrained(self.model, dtype=torch.float32)
            self._processor = loader.from_pretrained(self.model)
            self._network = network.requires_grad_(False).eval()
        return self._network

    def _with_text(self) -> Any:
        network = self._load()
        if not self.takes_phrases:
            raise ValueError(
                f"{self.model} ({network.config.model_type}) encodes images alone; this needs a model for images and "
                "texts, such as openai/clip-vit-base-patch32."
            )
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.model)
        return network


def as_bytes(image: Tensor) -> Tensor:
    """Return an image ``(3, height, width)``, floats in [0, 1] or uint8, as uint8.

    Example:
        >>> as_bytes(torch.full((3, 1, 1), 0.5)).flatten().tolist()
        [128, 128, 128]
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"An image must be of shape (3, height, width), got {tuple(image.shape)}.")
    if image.dtype == torch.uint8:
        return image
    if not bool(((image >= -1e-3) & (image <= 1 + 1e-3)).all()):
        raise ValueError(
            f"An image must be in [0, 1], got {float(image.min()):.4g} to {float(image.max()):.4g}; halve one of "
            "[-1, 1] and add 0.5."
        )
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def affordance_alignment(images: Tensor, texts: Tensor, requested: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the least cosine of images with the texts of their affordances, ``(n,)`` each.

    Images are vectors ``(n, features)``, texts ``(affordances, features)``; ``requested`` says which were asked for,
    bool ``(n, affordances)``, at least one each. The minimum tells a dropped affordance.

    Example:
        >>> mean, least = affordance_alignment(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.ones(1, 2).bool())
        >>> round(float(mean), 3), round(float(least), 3)
        (0.7, 0.6)
    """
    cosine = _checked(F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T, requested)
    requested = requested.bool().to(cosine.device)
    return (cosine * requested).sum(1) / requested.sum(1), cosine.masked_fill(~requested, torch.inf).amin(1)


def recall_at_k(similarity: Tensor, requested: Tensor, k: int) -> Tensor:
    """Return the share of the requested affordances among the ``k`` most similar of all, ``(n,)``.

    ``similarity`` is that of each image with each affordance, and ``requested`` says which were asked for, at least one
    each; both are ``(n, affordances)``.

    Example:
        >>> recall_at_k(torch.tensor([[0.9, 0.2, 0.5]]), torch.tensor([[True, True, False]]), k=2)
        tensor([0.5000])
    """
    similarity = _checked(similarity, requested)
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k must be from 1 to the {similarity.shape[1]} affordances, got {k}.")
    requested = requested.bool().to(similarity.device)
    return requested.gather(1, similarity.topk(k, 1).indices).sum(1) / requested.sum(1)


def positive_negative_gap(images: Tensor, positives: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Return ``mean cos(image, positive) - max cos(image, negative)``, ``(n,)``; NaN without a negative.

    Args:
        images: Vectors, ``(n, features)``.
        positives: Vectors of new designs, ``(n, positives, features)``.
        negatives: Vectors of existing concepts, ``(n, negatives, features)``.
        mask: Which negatives are there, bool, ``(n, negatives)``.

    Example:
        >>> image, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> positive_negative_gap(image, positive, torch.tensor([[[3.0, 4.0]]]), torch.tensor([[True]]))
        tensor([-0.1000])
    """
    near = F.cosine_similarity(images[:, None], positives, dim=2).mean(1)
    mask = mask.bool().to(images.device)
    far = F.cosine_similarity(images[:, None], negatives, dim=2).masked_fill(~mask, -torch.inf)
    return (near - far.amax(1)).masked_fill(~mask.any(1), torch.nan)


def pairwise_distance(vectors: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ``1 - cos`` over all pairs of different members of each group.

    Vectors are ``(n, features)`` and ``group`` int64 ``(n,)``; the result is the groups in order and their distances,
    both ``(groups,)``, NaN for a group of one.

    Example:
        >>> pairwise_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([7, 7, 7]))
        (tensor([7]), tensor([0.6667], dtype=torch.float64))
    """
    names, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
    unit = F.normalize(vectors.double(), dim=1)
    sums = torch.zeros(len(names), unit.shape[1], dtype=torch.float64, device=unit.device).index_add(0, index, unit)
    own = torch.zeros(len(names), dtype=torch.float64, device=unit.device).index_add(0, index, unit.square().sum(1))
    # the square of the sum holds each pair twice, and each vector with itself
    cosine = (sums.square().sum(1) - own) / (counts * (counts - 1))
    return names, (1 - cosine).masked_fill(counts < 2, torch.nan)


def single_object_probability(images: Tensor, one: Tensor, several: Tensor, scale: float) -> Tensor:
    """Return the softmax of the cosine with the text of one object, against that of several, ``(n,)``.

    Images are vectors ``(n, features)``, texts ``(features,)``; ``scale`` is what cosines are multiplied by, positive.

    Example:
        >>> single_object_probability(torch.eye(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), scale=1.0)
        tensor([0.7311, 0.2689])
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be positive, got {scale}.")
    texts = F.normalize(torch.stack([one, several]), dim=1)
    return (scale * F.normalize(images, dim=1) @ texts.T).softmax(1)[:, 0]


def _checked(cosine: Tensor, requested: Tensor) -> Tensor:
    if requested.shape != cosine.shape:
        raise ValueError(f"requested must be of shape {tuple(cosine.shape)}, got {tuple(requested.shape)}.")
    if not bool(requested.bool().any(1).all()):
        raise ValueError("requested must name at least one affordance for each image.")
    return cosine
