"""Score of generated images of drawn objects, by a recogniser of parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_modules.metrics.affordances import (
    BINS,
    BinnedMetric,
    affordance_scores,
    concept_cosines,
    part_novelty,
    requested_shown,
)
from lit_modules.networks.part_recogniser import PartRecogniser, load_recogniser

_QUANTITIES = ("recall", "all", "min", "novelty", "novelty_of_all", "mean_novelty", "shapeless", "single")


class DrawnObjectScore(BinnedMetric):
    """Score of generated images of drawn objects: one object, all that was requested, far from existing concepts.

    :meth:`compute` gives the mean of each number over all images, and per distance bin:

    - ``recall``, the share of the requested affordances that are shown, ``all``, whether all of them are, and ``min``,
      the score of the least shown one, as :class:`~lit_modules.metrics.PartAffordanceRecall`;
    - ``novelty``, ``mean_novelty`` and ``shapeless`` as :class:`~lit_modules.metrics.PartNovelty`;
    - ``novelty_of_all``, the novelty of the images that show all that was requested, as an image that shows nothing
      is novel without merit;
    - ``single``, the probability that there is exactly one object.

    A batch has ``requested`` (bool, ``(n, affordances)``), ``owners`` (bool, ``(n, concepts)``) and perhaps ``stage``
    (the bin from 0, or -1, ``(n,)``), as those of ``datamodules.DrawnObjects`` for pairs. The recogniser is frozen and
    stays out of the state.

    Args:
        recogniser: File of :func:`~lit_modules.networks.part_recogniser.save_recogniser`, or a trained recogniser.
        seen_by: Which parts show which affordance, bool, ``(affordances, parts)``, or nested lists; a file has it.
        concept_parts: Which parts each existing concept has, bool, ``(concepts, parts)``, or nested lists; a file has
            it.
        threshold: Least score of a part that is there, in (0, 1).
        bins: Names of the distance bins.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of its range, or the tables are missing or given twice.

    Example:
        >>> recogniser = PartRecogniser(num_parts=2, width=4)
        >>> score = DrawnObjectScore(recogniser, seen_by=[[1, 0], [0, 1]], concept_parts=[[1, 0]], bins=())
        >>> batch = {"requested": torch.ones(3, 2).bool(), "owners": torch.ones(3, 1).bool()}
        >>> score.update(torch.rand(3, 3, 16, 16), batch)
        >>> sorted(score.compute())
        ['all', 'mean_novelty', 'min', 'novelty', 'novelty_of_all', 'recall', 'shapeless', 'single']
    """

    higher_is_better = True

    seen_by: Tensor
    concept_parts: Tensor

    def __init__(
        self,
        recogniser: str | PartRecogniser,
        seen_by: Tensor | Sequence[Sequence[bool]] | None = None,
        concept_parts: Tensor | Sequence[Sequence[bool]] | None = None,
        threshold: float = 0.5,
        bins: Sequence[str] = BINS,
    ) -> None:
        super().__init__(_QUANTITIES, bins)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}.")
        if isinstance(recogniser, str):
            if seen_by is not None or concept_parts is not None:
                raise ValueError("seen_by and concept_parts stand in the recogniser's file; leave them out.")
            saved = load_recogniser(recogniser)
            recogniser, seen_by, concept_parts = saved.recogniser, saved.seen_by, saved.concept_parts
        if seen_by is None or concept_parts is None:
            raise ValueError("A recogniser that does not come from a file needs seen_by and concept_parts.")
        self.threshold = threshold
        self._recogniser = [recogniser.requires_grad_(False)]  # in no state dict
        self.register_buffer("seen_by", torch.as_tensor(seen_by).bool(), persistent=False)
        self.register_buffer("concept_parts", torch.as_tensor(concept_parts).float(), persistent=False)
        nothing = torch.zeros(1, recogniser.parts.out_features)
        affordance_scores(nothing, self.seen_by)  # refuses a table that does not fit
        concept_cosines(nothing, self.concept_parts, torch.ones(1, len(self.concept_parts)))

    def update(self, images: Tensor, batch: Mapping[str, Any]) -> None:
        """Add generated images, floats in [0, 1], ``(n, 3, height, width)``, and what was requested, a row for each."""
        missing = [key for key in ("requested", "owners") if key not in batch]
        if missing:
            raise ValueError(f"DrawnObjectScore takes batches with requested and owners, got one without {missing[0]}.")
        if not bool(((images >= -1e-3) & (images <= 1 + 1e-3)).all()):
            raise ValueError(
                f"images must be in [0, 1], got {float(images.min()):.4g} to {float(images.max()):.4g}; halve those of "
                "[-1, 1] and add 0.5."
            )
        recogniser = self._recogniser[0].to(self.device)
        scores, single = recogniser.scores(images.to(self.device).float() * 2 - 1)
        shown = requested_shown(affordance_scores(scores, self.seen_by), batch["requested"], self.threshold)
        novelty, mean_novelty = part_novelty(scores, self.concept_parts, batch["owners"].to(self.device))
        novelty_of_all = novelty.masked_fill(~shown[1], torch.nan)
        shapeless = (scores <= self.threshold).all(1)
        values = [*shown, novelty, novelty_of_all, mean_novelty, shapeless, single]
        self._add(values, batch.get("stage"))
