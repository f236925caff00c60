"""Scores of metrics: how well they tell models with knowledge from those without, and how they stand attacks."""

import math
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import NamedTuple

import torch

from lit_modules.metrics.membership import AttackAUC, attack_auc


class Metric(NamedTuple):
    """Metric under test.

    Args:
        label: Its name in tables.
        rises: Whether it rises with the knowledge of the forget set; otherwise one less it does.
    """

    label: str
    rises: bool


METRICS = {
    "test/forget/probability": Metric("probability", True),
    "test/forget/rouge": Metric("ROUGE-L recall", True),
    "test/forget/truth_ratio": Metric("truth ratio, min(R, 1/R)", False),
    "test/forget/knowledge": Metric("knowledge score", True),  # TOFU: mean of 1/(1 + R); LUME: exact answers
    "test/forget/exact_memorisation": Metric("exact memorisation", True),
    "test/forget/extraction_strength": Metric("extraction strength", True),
    "test/forget_quality": Metric("forget quality (p-value)", False),
    "test/forget/regurgitation": Metric("regurgitation", True),
    "test/task_aggregate": Metric("task aggregate", False),
    "test/mia_score": Metric("MIA score", False),
    "attack/loss": Metric("MIA loss", True),
    "attack/zlib": Metric("MIA zlib", True),
    "attack/min_k": Metric("MIA min-k", True),
    "attack/min_k_plus_plus": Metric("MIA min-k++", True),
    "attack/reference": Metric("MIA reference", True),
    "attack/gradient_norm": Metric("MIA gradient norm", True),
    "test/retain/probability": Metric("(control) retain probability", True),
    "test/retain/regurgitation": Metric("(control) retain regurgitation", True),
}
"""Metrics of the forget set that are tested where a benchmark has them, and two that should tell nothing."""
CONTROLS = ("test/retain/probability", "test/retain/regurgitation")


def knowledge(name: str, value: float) -> float:
    """Return a metric's value so that more is more knowledge of the forget set.

    Example:
        >>> knowledge("test/forget/probability", 0.9), round(knowledge("test/forget_quality", 0.9), 6)
        (0.9, 0.1)
    """
    return value if METRICS[name].rises else 1 - value


def faithfulness(knowing: Sequence[float], ignorant: Sequence[float], seed: int = 0) -> AttackAUC:
    """Return how well knowledge tells two pools of models apart: AUC, with a bootstrap interval of 95 % over models.

    1 if each model that knows scores above each that does not, 0.5 if the metric guesses.

    Example:
        >>> faithfulness([0.9, 0.8], [0.1, 0.85]).auc
        0.75
    """
    scores = torch.tensor([*knowing, *ignorant], dtype=torch.float64)
    member = torch.arange(len(scores)) < len(knowing)
    return attack_auc(-scores, member, interval="bootstrap", seed=seed)


def relearning_robustness(change: float, retain_change: float) -> float:
    """Return ``min(1, retain_change / change)`` of the knowledge that relearning adds.

    1 if the unlearned model learns the forget set no faster than a model that never knew it; near 0 if it comes back at
    once, which the metric had not seen. 1 if nothing comes back.

    References:
        Dorna et al., arXiv 2506.12618, robustness to relearning, as third parties quote it.

    Example:
        >>> relearning_robustness(0.4, 0.1), relearning_robustness(0.0, 0.1), relearning_robustness(0.4, -0.1)
        (0.25, 1.0, 0.0)
    """
    if change <= 0:
        return 1.0
    return min(1.0, max(0.0, retain_change / change))


def quantization_robustness(before: float, after: float) -> float:
    """Return ``min(1, before / after)`` of the knowledge before and after quantization: 1 if none comes back.

    References:
        Dorna et al., arXiv 2506.12618, robustness to quantization, as third parties quote it.

    Example:
        >>> quantization_robustness(0.1, 0.4), quantization_robustness(0.2, 0.1)
        (0.25, 1.0)
    """
    if after <= before:
        return 1.0
    return max(0.0, before / after)


def recovery(before: float, after: float, start: float) -> float:
    """Return the share of the forgotten knowledge that an attack brings back, in [0, 1]; NaN if none was forgotten.

    Example:
        >>> round(recovery(before=0.2, after=0.5, start=0.8), 6)
        0.5
    """
    if not start > before:
        return math.nan
    return min(1.0, max(0.0, (after - before) / (start - before)))


def joined(*parts: float) -> float:
    """Return the harmonic mean of numbers in [0, 1]; NaN if one is.

    Example:
        >>> joined(1.0, 0.5), joined(1.0, 0.0)
        (0.6666666666666666, 0.0)
    """
    return math.nan if any(map(math.isnan, parts)) else float(harmonic_mean(parts))
