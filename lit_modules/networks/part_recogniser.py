"""Small network that recognises the parts of a drawn object, and whether it is one object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.utils.checkpoints import DamagedFile, load_plain
from lit_modules.utils.files import whole_file
from lit_modules.utils.model_modes import evaluation_mode

_GRID = 4
_FORMAT = 1


class Recognition(NamedTuple):
    """Logits of what a picture shows.

    Args:
        parts: Each part's, ``(batch, parts)``.
        single: Whether there is exactly one object, ``(batch,)``.
        features: Input of both heads, ``(batch, features)``.
    """

    parts: Tensor
    single: Tensor
    features: Tensor


class PartRecogniser(nn.Module):
    """Four convolutions with batch normalisation, their activations on a grid of 4 x 4, and two linear heads.

    About 0.18 million parameters (25 parts) at the default width, for pictures of about 32 x 32 pixels.

    Args:
        num_parts: Number of parts, at least 1.
        width: Channels of the first convolution; the next have twice, four times and four times as many.
        channels: Channels of the pictures.

    Raises:
        ValueError: If an argument is out of its range; in ``forward``, if pictures are of another shape.

    Example:
        >>> recogniser = PartRecogniser(num_parts=5).eval()
        >>> recogniser(torch.zeros(2, 3, 32, 32)).parts.shape
        torch.Size([2, 5])
    """

    def __init__(self, num_parts: int, width: int = 24, channels: int = 3) -> None:
        super().__init__()
        if num_parts < 1 or width < 1 or channels < 1:
            raise ValueError(
                f"num_parts, width and channels must be at least 1, got {num_parts}, {width} and {channels}."
            )
        self.width, self.channels = width, channels
        self.features = nn.Sequential(
            *_block(channels, width, kernel=5, stride=2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 4 * width),
            nn.AdaptiveMaxPool2d(_GRID),
            *_block(4 * width, 4 * width),
            nn.Flatten(),
        )
        self.parts = nn.Linear(4 * width * _GRID**2, num_parts)
        self.single = nn.Linear(4 * width * _GRID**2, 1)

    def forward(self, images: Tensor) -> Recognition:
        """Return the logits of pictures.

        Args:
            images: Floats in [-1, 1], ``(batch, channels, height, width)``, at least 8 x 8.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < 8:
            raise ValueError(
                f"PartRecogniser takes images of shape (batch, {self.channels}, height, width) of at least 8 x 8 "
                f"pixels, got {tuple(images.shape)}."
            )
        features = self.features(images)
        return Recognition(self.parts(features), self.single(features)[:, 0], features)

    @torch.no_grad()
    def scores(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Return the probability of each part ``(n, parts)`` and of a single object ``(n,)``, in evaluation mode.

        Args:
            images: Floats in [-1, 1], which a generator may leave, or uint8, ``(n, channels, height, width)``.
            batch_size: Pictures of one forward pass.
        """
        weight = self.parts.weight
        parts, single = [weight.new_empty(0, self.parts.out_features)], [weight.new_empty(0)]
        with evaluation_mode(self):
            for batch in torch.split(images, batch_size) if len(images) else ():
                recognition = self(as_pixels(batch.to(weight.device)))
                parts.append(recognition.parts)
                single.append(recognition.single)
        return torch.cat(parts).sigmoid(), torch.cat(single).sigmoid()


def train_recogniser(
    recogniser: PartRecogniser,
    images: Tensor,
    parts: Tensor,
    single: Tensor,
    num_steps: int = 1600,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    augment: bool = True,
    seed: int = 0,
) -> list[float]:
    """Train a recogniser on labelled pictures, with AdamW and a one-cycle schedule.

    Augmentation makes it useful on pictures that a generator draws less neatly: brightness, contrast, blur and noise.

    Args:
        recogniser: Changed in place, and left in evaluation mode.
        images: uint8, or floats in [-1, 1], ``(n, channels, height, width)``.
        parts: Parts that each shows, bool, ``(n, parts)``.
        single: Whether it shows exactly one object, bool, ``(n,)``.
        num_steps: Updates.
        batch_size: Pictures of an update.
        learning_rate: Greatest learning rate.
        augment: Whether to augment.
        seed: Seed of order and augmentation.

    Returns:
        The loss of each update: the mean binary cross-entropy of the parts, and that of the single object, added.

    Raises:
        ValueError: If the shapes do not fit or an argument is out of its range.

    Example:
        >>> images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
        >>> parts, single = torch.rand(16, 2) > 0.5, torch.ones(16)
        >>> len(train_recogniser(PartRecogniser(2, width=4), images, parts, single, num_steps=3, batch_size=8))
        3
    """
    wanted = (len(images), recogniser.parts.out_features)
    if tuple(parts.shape) != wanted or tuple(single.shape) != wanted[:1]:
        raise ValueError(
            f"parts must be of shape {wanted} and single of shape {wanted[:1]}, got {tuple(parts.shape)} and "
            f"{tuple(single.shape)}."
        )
    if num_steps < 1 or not 1 <= batch_size <= len(images) or not learning_rate > 0:
        raise ValueError(
            f"num_steps must be at least 1, batch_size from 1 to the {len(images)} images and learning_rate positive, "
            f"got {num_steps}, {batch_size} and {learning_rate}."
        )
    device = recogniser.parts.weight.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(recogniser.parameters(), learning_rate, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(num_steps, 2))
    losses = []
    recogniser.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        if len(order) < batch_size:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch_size], order[batch_size:]
        batch = as_pixels(images[chosen])
        logits = recogniser((_augmented(batch, generator) if augment else batch).to(device))
        loss = F.binary_cross_entropy_with_logits(logits.parts, parts[chosen].float().to(device))
        loss = loss + F.binary_cross_entropy_with_logits(logits.single, single[chosen].float().to(device))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    recogniser.eval()
    return losses


def recogniser_report(
    recogniser: PartRecogniser, images: Tensor, parts: Tensor, single: Tensor, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the accuracy of a recogniser, at a threshold of 0.5, on what :func:`train_recogniser` takes.

    Returns:
        ``parts``, the share of right answers on all parts; ``exact``, the share of pictures with all parts right;
        ``recall`` and ``precision`` of parts; ``single``, the share of right answers on it; and ``recall/<name>`` of
        each part if they have names.
    """
    part_scores, single_scores = recogniser.scores(images)
    predicted, parts = part_scores.cpu() > 0.5, parts.bool().cpu()
    hits = (predicted & parts).sum(0).double()
    report = {
        "parts": float((predicted == parts).double().mean()),
        "exact": float((predicted == parts).all(1).double().mean()),
        "recall": float(hits.sum() / parts.sum().clamp(min=1)),
        "precision": float(hits.sum() / predicted.sum().clamp(min=1)),
        "single": float(((single_scores.cpu() > 0.5) == single.bool().cpu()).double().mean()),
    }
    each = hits / parts.sum(0).clamp(min=1)
    return report | {f"recall/{name}": float(value) for name, value in zip(names or (), each, strict=False)}


@dataclass(frozen=True)
class SavedRecogniser:
    """A recogniser in evaluation mode, with the tables and names that :func:`save_recogniser` was given."""

    recogniser: PartRecogniser
    seen_by: Tensor
    concept_parts: Tensor
    affordances: tuple[str, ...]
    concepts: tuple[str, ...]


def save_recogniser(
    path: str | Path,
    recogniser: PartRecogniser,
    seen_by: Tensor,
    concept_parts: Tensor,
    affordances: Sequence[str],
    concepts: Sequence[str],
) -> None:
    """Write a recogniser with the tables of its parts to one file, whole or not at all.

    Args:
        path: File; its folder is made.
        recogniser: The network.
        seen_by: Parts that show each affordance, bool, ``(affordances, parts)``.
        concept_parts: Parts of each existing concept, bool, ``(concepts, parts)``.
        affordances: Their names.
        concepts: Their names.

    Raises:
        ValueError: If a table does not fit the recogniser or the names.
    """
    parts = recogniser.parts.out_features
    for table, named, of in ((seen_by, affordances, "seen_by"), (concept_parts, concepts, "concept_parts")):
        if tuple(table.shape) != (len(named), parts):
            raise ValueError(f"{of} must be of shape {(len(named), parts)}, (names, parts), got {tuple(table.shape)}.")
    content = {
        "format": _FORMAT,
        "settings": [parts, recogniser.width, recogniser.channels],
        "weights": {name: value.detach().cpu() for name, value in recogniser.state_dict().items()},
        "tables": [seen_by.bool().cpu(), concept_parts.bool().cpu()],
        "names": [list(affordances), list(concepts)],
    }
    with whole_file(path) as part:
        torch.save(content, part)


def load_recogniser(path: str | Path) -> SavedRecogniser:
    """Read a file of :func:`save_recogniser`; nothing in it is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of :func:`save_recogniser`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no recogniser {path}; save_recogniser writes one.")
    try:
        content = load_plain(path)
    except DamagedFile:
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a file of save_recogniser in format {_FORMAT}, or it is damaged.")
    recogniser = PartRecogniser(*content["settings"])
    recogniser.load_state_dict(content["weights"])
    return SavedRecogniser(recogniser.eval(), *content["tables"], *map(tuple, content["names"]))


def as_pixels(images: Tensor) -> Tensor:
    """Return pictures as floats in [-1, 1]: 8-bit ones scaled, others cut off at the ends."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float().clamp(-1, 1)


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness, blur half of the pictures, and add noise."""
    draws = torch.rand(len(images), 4, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    strength = (2 * draws[:, 0] - 1).clamp(min=0)
    images = images + strength * (blurred - images)
    images = images * (0.75 + 0.5 * draws[:, 1]) + 0.3 * (draws[:, 2] - 0.5)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.2 * draws[:, 3].square() * noise).clamp(-1, 1)
