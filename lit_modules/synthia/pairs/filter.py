"""Choose the best of several images of a new design, by CLIP."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.utils.checkpoints import only_tensors


class ClipFilter:
    """Score images of new designs by CLIP: near to their affordances, far from the existing concepts.

    The score is the mean cosine of the image and a prompt for each affordance, less the greatest cosine of the image
    and the name of an existing concept.

    Args:
        model: Name or folder of a CLIP model.
        device: Where to compute, as torch names it.
        prompt: Prompt of an affordance, with the place ``{affordance}``.
    """

    def __init__(self, model: str, device: str = "cpu", prompt: str = "an object used to {affordance}") -> None:
        self.model, self.device, self.prompt = model, device, prompt
        self._loaded: tuple[Any, Any] | None = None
        self._texts: dict[str, Tensor] = {}

    def scores(self, images: Sequence[Image], affordances: Sequence[str], negatives: Sequence[str]) -> list[float]:
        """Return the score of each image of one pair, in [-2, 2]; without negatives nothing is taken off."""
        if not images:
            return []
        network, processor = self._load()
        with torch.no_grad():
            pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt").to(self.device)
            vectors = _unit(network.get_image_features(**pixels))
        prompts = [self.prompt.replace("{affordance}", name.replace("_", " ")) for name in affordances]
        score = (vectors @ self._encoded(prompts).T).mean(1)
        if negatives:
            score = score - (vectors @ self._encoded([name.replace("_", " ") for name in negatives]).T).amax(1)
        scores: list[float] = score.tolist()
        return scores

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        network, processor = self._load()
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            with torch.no_grad():
                tokens = processor(text=new, padding=True, truncation=True, return_tensors="pt").to(self.device)
                self._texts |= dict(zip(new, _unit(network.get_text_features(**tokens)), strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import CLIPModel, CLIPProcessor

            with only_tensors(self.model):
                network: Any = CLIPModel.from_pretrained(self.model, dtype=torch.float32)
            self._loaded = network.to(self.device).eval(), CLIPProcessor.from_pretrained(self.model)
        return self._loaded


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Return the places of the greatest scores, in rising order of the places; of equal scores the first ones.

    Example:
        >>> best([0.1, 0.3, 0.2, 0.3], 2)
        [1, 3]
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return sorted(order[:keep])


def _unit(features: Any) -> Tensor:
    """Return features of length 1; transformers returns them alone or in an output."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(vectors, dim=-1)
