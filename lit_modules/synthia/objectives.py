"""Contrastive objectives: towards an image of a new design, away from images of existing concepts.

An objective takes distances and knows no network: ``objective(positive, negatives, mask)`` returns a dict of scalars,
``loss`` and its parts. Distances are, by ``objective.space``:

- ``"sample"`` (:class:`LinearContrast`, :class:`Triplet`, :class:`InfoNCE`): between the sampled image, its latent or
  its embedding, and those of the positive and of the negatives; ``objective.distances(anchor, positive, negatives)``.
- ``"noise"`` (:class:`Denoise`, :class:`DenoiseDPO`): errors of the denoising network on the noised positive and
  negatives, with the same noise and timestep for all of an item. Nothing is sampled.

References:
    Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
"""

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.synthia.core.objective import (
    ContrastiveObjective,
    Distance,
    Distances,
    masked_mean,
    not_negative,
    weighted_mean,
)


class LinearContrast(ContrastiveObjective):
    """``d(a, p) - beta mean_n d(a, n)``, the form of the paper; ``a`` is the sampled image.

    With squared distances it is convex in ``a`` for ``beta < 1``, with its minimum at ``(p - beta n) / (1 - beta)``, an
    extrapolation away from the negative; for ``beta >= 1`` it has no minimum.

    Args:
        beta: Weight of the negatives, in [0, 1); 0 leaves the positive alone.
        denoising_weight: Weight of the denoising term, if one is given (gamma in the paper).
        metric: Distance; ``"squared"`` is the mean squared difference.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> objective = LinearContrast(beta=0.5)
        >>> losses = objective(torch.tensor([0.4]), torch.tensor([[0.1, 0.3]]))
        >>> {name: round(float(loss), 3) for name, loss in losses.items()}
        {'loss': 0.3, 'positive': 0.4, 'negative': 0.2}

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

    def __init__(self, beta: float = 0.5, denoising_weight: float = 1.0, metric: Distance = "squared") -> None:
        super().__init__(denoising_weight, metric)
        if not 0 <= beta < 1:
            raise ValueError(
                f"beta must be in [0, 1), got {beta}; from 1 on the loss falls without end as the image leaves the "
                f"negatives. Take a smaller one, or the objective Triplet, which is bounded."
            )
        self.beta = beta

    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss``."""
        return {"loss": d.positive.mean() - self.beta * masked_mean(d.negatives, d.mask).mean()}


class Triplet(ContrastiveObjective):
    """``relu(margin + d(a, p) - d(a, n))``, with the nearest negative or their mean distance.

    Args:
        margin: By how much farther the negatives should be, not negative.
        negative: ``"hardest"`` takes the nearest negative, ``"mean"`` the mean of their distances.
        denoising_weight: Weight of the denoising term, if one is given.
        metric: Distance; the margin of 0.2 is for that of cosines.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> losses = Triplet()(torch.tensor([0.3]), torch.tensor([[0.4, 0.9]]))
        >>> round(float(losses["loss"]), 3)
        0.1
    """

    def __init__(
        self,
        margin: float = 0.2,
        negative: Literal["hardest", "mean"] = "hardest",
        denoising_weight: float = 1.0,
        metric: Distance = "cosine",
    ) -> None:
        super().__init__(denoising_weight, metric)
        if negative not in ("hardest", "mean"):
            raise ValueError(f"negative must be 'hardest' or 'mean', got {negative!r}.")
        self.margin, self.negative = not_negative("margin", margin), negative

    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss``, ``negative`` and ``violated``, the share of items within the margin."""
        any_negative = d.mask.any(1)
        if self.negative == "mean" or not d.mask.shape[1]:
            chosen = masked_mean(d.negatives, d.mask)
        else:
            chosen = d.negatives.masked_fill(~d.mask, torch.inf).amin(1)
        chosen = torch.where(any_negative, chosen, 0)
        margin = self.margin + d.positive - chosen
        return {
            "loss": torch.where(any_negative, F.relu(margin), d.positive).mean(),
            "negative": chosen.mean(),
            "violated": ((margin > 0) & any_negative).to(margin.dtype).mean(),
        }


class InfoNCE(ContrastiveObjective):
    """``-log(e^{s_p / tau} / (e^{s_p / tau} + sum_n e^{s_n / tau}))``, with cosines ``s``.

    An item without negatives has a loss of 0.

    Args:
        temperature: Scale of the cosines (tau), positive.
        denoising_weight: Weight of the denoising term, if one is given.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> losses = InfoNCE()(torch.tensor([0.5]), torch.tensor([[0.5, 0.5]]))
        >>> round(float(losses["loss"].exp()), 3)
        3.0

    References:
        van den Oord, Li and Vinyals, "Representation learning with contrastive predictive coding", arXiv 1807.03748.
    """

    def __init__(self, temperature: float = 0.07, denoising_weight: float = 1.0) -> None:
        super().__init__(denoising_weight, metric="cosine")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss``."""
        # differences, as the ones in 1 - d cancel
        logits = ((d.positive[:, None] - d.negatives) / self.temperature).masked_fill(~d.mask, -torch.inf)
        return {"loss": torch.cat([torch.zeros_like(d.positive)[:, None], logits], 1).logsumexp(1).mean()}


class Denoise(ContrastiveObjective):
    """``e_p + negative_weight relu(margin + e_p - e_n)``, on errors of the denoising network.

    The denoising term on the positive has weight 1 and the other one less than 1, so that the network cannot win by
    spoiling both.

    Args:
        negative_weight: Weight of the hinge (lambda), in [0, 1).
        margin: By how much larger the error on the negatives should be, not negative.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> losses = Denoise()(torch.tensor([0.3]), torch.tensor([[0.2]]))
        >>> round(float(losses["loss"]), 3)  # 0.3 + 0.5 (0.1 + 0.3 - 0.2)
        0.4
    """

    space = "noise"

    def __init__(self, negative_weight: float = 0.5, margin: float = 0.1) -> None:
        super().__init__()
        if not 0 <= negative_weight < 1:
            raise ValueError(
                f"negative_weight must be in [0, 1), below the weight of the positives' denoising term, got "
                f"{negative_weight}."
            )
        self.negative_weight, self.margin = negative_weight, not_negative("margin", margin)

    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss`` and ``hinge``."""
        hinge = masked_mean(F.relu(self.margin + d.positive[:, None] - d.negatives), d.mask).mean()
        return {"loss": weighted_mean(d.positive, d.weights) + self.negative_weight * hinge, "hinge": hinge}


class DenoiseDPO(ContrastiveObjective):
    """Direct preference of the positive over the negatives, by how much tuning changed the errors on both.

    ``preference = mean of -logsigmoid(b (w (e_n - e_n^ref) - (e_p - e_p^ref)))``, the mean taken outside the logarithm,
    and ``loss = preference + denoising_weight e_p``. At initialisation, where the network is its own reference,
    ``preference`` is log 2. Preference alone can be lowered while both errors rise; the denoising term and a ``w``
    below 1 stand against it. ``negative_weight=1`` and ``denoising_weight=0`` is Diffusion-DPO.

    Args:
        scale: Sharpness of the preference (b), positive.
        negative_weight: Weight of the change on the negatives (w), in (0, 1].
        denoising_weight: Weight of the error on the positive, not negative.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> errors = torch.tensor([0.3]), torch.tensor([[0.2]])
        >>> round(float(DenoiseDPO()(*errors, reference=errors)["preference"]), 4)
        0.6931

    References:
        Wallace et al., "Diffusion model alignment using direct preference optimization", arXiv 2311.12908, eq. 14.
    """

    space = "noise"
    needs_reference: ClassVar[bool] = True

    def __init__(self, scale: float = 2500.0, negative_weight: float = 0.5, denoising_weight: float = 1.0) -> None:
        super().__init__(denoising_weight)
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        if not 0 < negative_weight <= 1:
            raise ValueError(f"negative_weight must be in (0, 1], got {negative_weight}.")
        self.scale, self.negative_weight = scale, negative_weight

    def terms(self, d: Distances) -> dict[str, Tensor]:
        """Return ``loss``, ``preference`` and ``preferred``, the share of pairs won."""
        positive_before, negatives_before = cast("tuple[Tensor, Tensor]", d.reference)
        gain = torch.where(d.mask, d.negatives - negatives_before.detach(), 0)
        margin = self.negative_weight * gain - (d.positive - positive_before.detach())[:, None]
        preference = masked_mean(-F.logsigmoid(self.scale * margin), d.mask).mean()
        return {
            "loss": preference + self.denoising_weight * weighted_mean(d.positive, d.weights),
            "preference": preference,
            "preferred": masked_mean((margin > 0).to(margin.dtype), d.mask).mean(),
        }
