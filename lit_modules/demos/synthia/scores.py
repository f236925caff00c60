"""Scores of the pictures of some rows of affordances, with intervals over the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_modules.metrics.affordances import affordance_scores, part_novelty

if TYPE_CHECKING:
    from lit_modules.networks import PartRecogniser

THRESHOLD = 0.5
"""Least score of a part that is there."""


@dataclass(frozen=True)
class Interval:
    """Mean with a 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Scores of pictures.

    Args:
        found: Which of the affordances asked for each picture shows, ``(rows, pictures, affordances)``.
        novelty: 1 less the greatest cosine of the parts with those of a thing that has one, ``(rows, pictures)``.
    """

    found: Tensor
    novelty: Tensor

    @property
    def all_shown(self) -> Tensor:
        """Mask of the pictures that show all that was asked for, ``(rows, pictures)``."""
        return self.found.all(2)

    def shown(self) -> Interval:
        """Return the share of pictures that show all."""
        return ratio_interval(self.all_shown.sum(1), torch.full((len(self.found),), self.found.shape[1]))

    def novelty_if_shown(self) -> Interval:
        """Return the mean novelty of the pictures that show all."""
        return ratio_interval((self.novelty * self.all_shown).sum(1), self.all_shown.sum(1))

    def as_plain(self) -> dict[str, Any]:
        """Return nested lists, for a JSON file."""
        return {"found": self.found.tolist(), "novelty": [[round(v, 4) for v in row] for row in self.novelty.tolist()]}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Scores":
        """Return the scores that :meth:`as_plain` gave."""
        return cls(torch.tensor(values["found"]), torch.tensor(values["novelty"]))


def score_pictures(recogniser: "PartRecogniser", images: Tensor, rows: Sequence[Mapping[str, Any]]) -> Scores:
    """Score pictures by the parts that a recogniser finds in them.

    Args:
        recogniser: Recogniser of the drawn objects' parts.
        images: Floats in [0, 1], ``(rows, pictures, 3, height, width)``.
        rows: Affordances, ``pos_prompts``, as many in each row, and the concepts that have one, ``neg_prompts``.
    """
    from lit_modules.datamodules import DrawnObjects

    data, number = DrawnObjects(), images.shape[1]
    parts, _ = recogniser.scores(images.flatten(0, 1) * 2 - 1)
    wanted = torch.tensor([[data.affordances.index(name) for name in row["pos_prompts"]] for row in rows])
    shown = affordance_scores(parts, data.seen_by) > THRESHOLD
    found = shown.gather(1, wanted.repeat_interleave(number, 0)).reshape(len(rows), number, -1)
    owners = torch.tensor([[name in row["neg_prompts"] for name in data.concepts] for row in rows])
    novelty, _ = part_novelty(parts, data.concept_parts.float(), owners.repeat_interleave(number, 0))
    return Scores(found, novelty.reshape(len(rows), number))


def ratio_interval(numerators: Tensor, denominators: Tensor) -> Interval:
    """Return a sum over rows over another, with a bootstrap interval over the rows.

    Example:
        >>> ratio_interval(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2, 2, 2]))
        Interval(mean=0.5, low=0.5, high=0.5)
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(numerators), (4000, len(numerators)), generator=generator)
    above, below = numerators.double(), denominators.double()
    means = above[chosen].sum(1) / below[chosen].sum(1)
    low, high = torch.nanquantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(float(above.sum() / below.sum()), low, high)
