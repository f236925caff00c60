"""Drift of images of generic prompts in tuning."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities import dim_zero_cat

from lit_modules.metrics.concept_images import read_folder
from lit_modules.metrics.image_text import ImageTextEncoder
from lit_modules.utils.random_state import preserved_random_state


class Drift(Metric):
    """Distance of images of generic prompts to those of the untuned model, and how well they fit their prompts.

    ``fid`` and ``kid`` are torchmetrics' Frechet and kernel distance, with the features of the encoder in place of
    those of an Inception network, which need a download and know photographs of 1,000 classes. So the values cannot
    be compared with published ones, but with each other. ``kid`` has no bias and needs fewer images. ``clip`` is ``100
    max(cos, 0)`` of image and prompt, the mean of torchmetrics' CLIPScore, if the encoder reads texts.

    A batch has ``prompt`` (list of str). Prompts longer than the encoder reads are cut off, with a warning.

    Args:
        encoder: Vision model, such as CLIP or DINOv2, or its name or folder.
        reference: Folder of images of the untuned model, or the images (floats in [0, 1] or uint8, ``(n, 3, height,
            width)``); at least 2.
        subsets: Draws of the kernel distance.
        subset_size: Images in a draw; all if there are fewer.
        seed: Seed of the draws.

    Raises:
        FileNotFoundError: If there is no such folder.

    References:
        Heusel et al., arXiv 1706.08500 (FID). Binkowski et al., arXiv 1801.01401 (KID). Hessel et al., arXiv
        2104.08718 (CLIPScore).
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    features: list[Tensor] | Tensor
    fits: Tensor

    def __init__(
        self,
        encoder: str | ImageTextEncoder,
        reference: str | Tensor,
        subsets: int = 20,
        subset_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if subsets < 1 or subset_size < 2:
            raise ValueError(f"subsets must be at least 1 and subset_size 2, got {subsets} and {subset_size}.")
        self.encoder = ImageTextEncoder(encoder) if isinstance(encoder, str) else encoder
        images: Sequence[Tensor] = read_folder(Path(reference)) if isinstance(reference, str) else list(reference)
        if len(images) < 2:
            raise ValueError(f"reference must be at least 2 images, got {len(images)}.")
        self._images, self._reference = images, torch.empty(0)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("fits", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, batch: Mapping[str, Any]) -> None:
        """Add images of the tuned model, floats in [0, 1], ``(n, 3, height, width)``, and a ``prompt`` for each."""
        if len(batch.get("prompt", ())) != len(images):
            raise ValueError(f"A batch must have a prompt for each of the {len(images)} images; got another number.")
        features = self.encoder.features(images.to(self.device))
        self.features.append(features)  # type: ignore[union-attr]
        if self.encoder.takes_phrases:
            cosine = F.cosine_similarity(features, self.encoder.texts(batch["prompt"]).to(features.device))
            self.fits[0] += (100 * cosine.double()).clamp(min=0).sum()
            self.fits[1] += len(images)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the features of all processes; called by :meth:`compute`."""
        if isinstance(self.features, list) and not self.features:  # torchmetrics needs the shape from each rank
            self.features.append(torch.empty(0, self.encoder.num_features, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return ``fid``, ``kid`` and ``clip``, float64 scalars; NaN with fewer than 2 images, or without texts."""
        nothing = torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        numbers = {"fid": nothing, "kid": nothing, "clip": self.fits[0] / self.fits[1]}
        drawn = dim_zero_cat(self.features) if len(self.features) else torch.empty(0)
        if len(drawn) < 2:
            return numbers
        if not len(self._reference):
            self._reference = self.encoder.features([image.to(drawn.device) for image in self._images])
        reference, extractor = self._reference.to(drawn.device, torch.float64), _Given(drawn.shape[1])
        size = min(self.subset_size, len(drawn), len(reference))
        fid = FrechetInceptionDistance(extractor).to(drawn.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
            kid = KernelInceptionDistance(extractor, self.subsets, size).to(drawn.device)
        for features, real in ((reference, True), (drawn.double(), False)):
            fid.update(features, real=real)
            kid.update(features, real=real)
        numbers["fid"] = type(fid).compute(fid)  # not the instances', which would gather once more
        with preserved_random_state(seed=self.seed):
            numbers["kid"] = type(kid).compute(kid)[0]
        return numbers


class _Given(nn.Identity):
    """Takes features in the place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
