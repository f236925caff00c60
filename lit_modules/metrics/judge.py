"""Protocol of judges, and their scores and preferences as metrics."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_modules.metrics.affordances import BINS, BinnedMetric

CRITERIA = ("faithfulness", "novelty", "practicality", "coherence")


@runtime_checkable
class Judge(Protocol):
    """Scores of designs by four criteria; :class:`~lit_modules.synthia.AskingJudge` answers in words."""

    def score(self, images: Sequence[Tensor] | Tensor, affordances: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Return the score of each criterion, from 1 to 5, NaN where there is none, float64 ``(n,)``.

        Images are floats in [0, 1], ``(3, height, width)``, each with the affordances that were asked for.
        """

    def compare(
        self, first: Sequence[Tensor] | Tensor, second: Sequence[Tensor] | Tensor, affordances: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]:
        """Return for each criterion 1 where the first image is better, 0.5 for a tie, 0 where the second is, ``(n,)``.

        Images are floats in [0, 1], ``(3, height, width)``, each pair with the affordances that were asked for.
        """


class JudgeScore(BinnedMetric):
    """Mean of a judge's scores of generated images, ``judge_<criterion>``, over all and per distance bin.

    ``judge_unanswered`` is the share of images without scores. A batch has ``affordances``, a sequence of names for
    each image, and perhaps ``stage``.

    Args:
        judge: The judge.
        bins: Names of the distance bins.
    """

    higher_is_better = True

    def __init__(self, judge: Judge, bins: Sequence[str] = BINS) -> None:
        super().__init__((*(f"judge_{name}" for name in CRITERIA), "judge_unanswered"), bins)
        self.judge = judge

    def update(self, images: Tensor, batch: Mapping[str, Any]) -> None:
        """Add generated images, floats in [0, 1], ``(n, 3, height, width)``, with a request for each."""
        scores = self.judge.score(images, _required(batch, "affordances"))
        values = [scores[name] for name in CRITERIA]
        self._add([*values, torch.stack(values).isnan().any(0)], batch.get("stage"))


class JudgeComparison(BinnedMetric):
    """Rate at which a judge prefers generated images to reference images, over all and per distance bin.

    ``win_<criterion>``, ``tie_<criterion>`` and ``loss_<criterion>`` are shares, ``preference_<criterion>`` is ``win +
    0.5 tie``. ``judge_unanswered`` is the share of images without a verdict. A batch has ``affordances``, a sequence of
    names for each image, the reference ``pos`` (floats in [-1, 1], ``(n, 3, height, width)``) and perhaps ``stage``.

    Args:
        judge: The judge.
        bins: Names of the distance bins.
    """

    higher_is_better = True

    def __init__(self, judge: Judge, bins: Sequence[str] = BINS) -> None:
        kinds = ("win", "tie", "loss", "preference")
        super().__init__((*(f"{kind}_{name}" for name in CRITERIA for kind in kinds), "judge_unanswered"), bins)
        self.judge = judge

    def update(self, images: Tensor, batch: Mapping[str, Any]) -> None:
        """Add generated images, floats in [0, 1], ``(n, 3, height, width)``, with reference and request."""
        reference = _required(batch, "pos").to(images.device) / 2 + 0.5
        verdicts = self.judge.compare(images, reference, _required(batch, "affordances"))
        values = []
        for name in CRITERIA:
            missing = verdicts[name].isnan()
            values += [(verdicts[name] == share).double().masked_fill(missing, torch.nan) for share in (1, 0.5, 0)]
            values.append(verdicts[name])
        self._add([*values, torch.stack([verdicts[name] for name in CRITERIA]).isnan().any(0)], batch.get("stage"))


def _required(batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        raise ValueError(f"A judge needs batches with {key}, got one with {', '.join(batch)}.")
    return batch[key]
