"""Choose the best of several images of a new design, by CLIP."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image

from lit_modules.metrics.image_text import ImageTextEncoder


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
        self.encoder, self.device, self.prompt = ImageTextEncoder(model), device, prompt

    def scores(self, images: Sequence[Image], affordances: Sequence[str], negatives: Sequence[str]) -> list[float]:
        """Return the score of each image of one pair, in [-2, 2]; without negatives nothing is taken off."""
        if not images:
            return []
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images]
        vectors = self.encoder.images([image.to(self.device) for image in pixels])
        prompts = [self.prompt.replace("{affordance}", name.replace("_", " ")) for name in affordances]
        score = (vectors @ self.encoder.texts(prompts).T).mean(1)
        if negatives:
            score = score - (vectors @ self.encoder.texts([name.replace("_", " ") for name in negatives]).T).amax(1)
        scores: list[float] = score.tolist()
        return scores


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Return the places of the greatest scores, in rising order of the places; of equal scores the first ones."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return sorted(order[:keep])
