"""The arithmetic of the TOFU benchmark on NLLs: probability, truth ratio, model utility and forget quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from lit_modules.metrics.lume import harmonic_mean

__all__ = [
    "ForgetQuality",
    "answer_probability",
    "choice_probability",
    "forget_quality",
    "knowledge_ratio",
    "log_truth_ratio",
    "score_log",
    "truth_ratio",
    "truth_ratio_score",
]

Mean = Literal["geometric", "arithmetic"]
MEANS = ("geometric", "arithmetic")
SPLITS = ("forget", "retain", "real_authors", "world_facts")
CHOICES = ("real_authors", "world_facts")
"""The splits whose questions have wrong options: their probability is that among the options."""
UTILITY = tuple(f"{split}/{kind}" for split in SPLITS[1:] for kind in ("probability", "rouge", "truth_ratio"))


class ForgetQuality(NamedTuple):
    """Result of the two-sample Kolmogorov-Smirnov test on truth ratios.

    Args:
        p_value: The forget quality, in [0, 1]: large if the model cannot be told from the retain model.
        statistic: Largest distance of the two distribution functions, in [0, 1].
    """

    p_value: float
    statistic: float


def answer_probability(nll: float) -> float:
    """Return ``P(a|q)``, the geometric mean of an answer's token probabilities.

    Args:
        nll: Mean token NLL of the answer in nats.

    Example:
        >>> answer_probability(0.0)
        1.0
    """
    return math.exp(-nll)


def choice_probability(nll: float, perturbed: Sequence[float]) -> float:
    """Return ``P(a) / (P(a) + sum_j P(a'_j))``, the probability of the answer among the options.

    Args:
        nll: Mean token NLL of the answer in nats.
        perturbed: The same of each wrong option.

    Example:
        >>> round(choice_probability(500.0, [500.0, 500.0, 500.0]), 6)
        0.25
    """
    return math.exp(-nll - float(logsumexp([-nll, *(-value for value in perturbed)])))


def log_truth_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric") -> float:
    """Return the logarithm of :func:`truth_ratio`, which large NLLs do not overflow.

    Args:
        paraphrased: Mean token NLL of the paraphrased answer in nats.
        perturbed: The same of each wrong answer, at least one.
        mean: Mean over the probabilities of the wrong answers.

    Raises:
        ValueError: If ``mean`` is unknown, there is no wrong answer or an NLL is not finite.
    """
    if mean not in MEANS:
        raise ValueError(f"mean must be 'geometric' or 'arithmetic', got {mean!r}.")
    if not len(perturbed):
        raise ValueError("A truth ratio needs at least one perturbed answer, got none.")
    if not np.isfinite([paraphrased, *perturbed]).all():
        raise ValueError(f"A truth ratio needs finite NLLs, got {paraphrased} and {list(perturbed)}.")
    values = np.asarray(perturbed, dtype=np.float64)
    wrong = -values.mean() if mean == "geometric" else logsumexp(-values) - math.log(len(values))
    return float(wrong + paraphrased)


def truth_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric") -> float:
    """Return ``R = M_j[P(perturbed_j)] / P(paraphrased)``, small if the model prefers the truth.

    Two conventions exist for the mean ``M``: the paper defines an arithmetic one; the official aggregation, the forget
    quality and open-unlearning take a geometric one.

    Args:
        paraphrased: Mean token NLL of the paraphrased answer in nats.
        perturbed: The same of each wrong answer, at least one.
        mean: Mean over the probabilities of the wrong answers.

    Raises:
        ValueError: If ``mean`` is unknown, there is no wrong answer or an NLL is not finite.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121, equation 1.

    Example:
        >>> from math import log
        >>> [round(truth_ratio(log(2), [log(4), log(16)], mean), 6) for mean in ("geometric", "arithmetic")]
        [0.25, 0.3125]
    """
    return _exp(log_truth_ratio(paraphrased, perturbed, mean))


def knowledge_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric") -> float:
    """Return ``P(paraphrased) / (P(paraphrased) + M_j[P(perturbed_j)])``, the newer form of the truth ratio.

    open-unlearning has it since December 2025; it is ``1 / (1 + R)``.

    Args:
        paraphrased: Mean token NLL of the paraphrased answer in nats.
        perturbed: The same of each wrong answer, at least one.
        mean: Mean over the probabilities of the wrong answers.

    Example:
        >>> knowledge_ratio(1.0, [1.0, 1.0])
        0.5
    """
    return 1 / (1 + _exp(log_truth_ratio(paraphrased, perturbed, mean)))


def truth_ratio_score(log_ratios: Sequence[float], split: str) -> float:
    """Return the mean truth-ratio score of a split, best at 1; NaN without rows.

    The mean of ``min(R, 1/R)`` on the forget set, where no answer is to stand out; that of ``max(0, 1 - R)`` elsewhere.

    Args:
        log_ratios: Logarithm of each row's truth ratio.
        split: ``"forget"``, ``"retain"``, ``"real_authors"`` or ``"world_facts"``.

    Example:
        >>> from math import log
        >>> round(truth_ratio_score([log(0.5), log(4.0)], "forget"), 6)
        0.375
        >>> round(truth_ratio_score([log(0.5), log(4.0)], "retain"), 6)
        0.25
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    return _mean(np.exp(-np.abs(values)) if split == "forget" else np.maximum(0, -np.expm1(np.minimum(values, 0))))


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> ForgetQuality:
    """Test whether the truth ratios on the forget set could be those of a model that never saw it.

    A two-sample Kolmogorov-Smirnov test, which any increasing or decreasing map of the ratios leaves as it is:
    logarithms may be given.

    Args:
        ratios: Truth ratio of each forget row under the unlearned model.
        retain_ratios: The same under a model trained on the retain set only.

    Raises:
        ValueError: If the numbers of rows differ, or there is none.

    Example:
        >>> forget_quality([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]).p_value
        1.0
    """
    if len(ratios) != len(retain_ratios) or not len(ratios):
        raise ValueError(
            f"The forget quality compares as many truth ratios of both models, got {len(ratios)} of the unlearned "
            f"model and {len(retain_ratios)} of the retain model; take the retain log of the same split and number of "
            "rows (the official logs hold the first 300 rows of forget10)."
        )
    result: Any = ks_2samp(ratios, retain_ratios)
    return ForgetQuality(float(result.pvalue), float(result.statistic))


def log_truth_ratios(section: Mapping[str, Mapping[int, Any]], mean: Mean = "geometric") -> dict[int, float]:
    """Return the logarithm of each row's truth ratio, from a split of a log."""
    right, wrong = section.get("avg_paraphrased_loss", {}), section.get("average_perturb_loss", {})
    return {row: log_truth_ratio(right[row], wrong[row], mean) for row in sorted(right.keys() & wrong.keys())}


def score_log(
    log: Mapping[str, Mapping[str, Mapping[int, Any]]],
    retain_log: Mapping[str, Mapping[str, Mapping[int, Any]]] | None = None,
    mean: Mean = "geometric",
) -> dict[str, float]:
    """Return the numbers of the benchmark from a log.

    Args:
        log: Log of the unlearned model, as :func:`~lit_modules.metrics.tofu_logs.read_log` returns it.
        retain_log: Log of a model trained on the retain set only.
        mean: Mean over the probabilities of the wrong answers, in every truth ratio.

    Returns:
        ``{split}/{probability,rouge,truth_ratio,knowledge}`` of ``forget``, ``retain``, ``real_authors`` and
        ``world_facts``; ``model_utility``, the harmonic mean of the first three of the last three splits; and
        ``forget_quality`` with ``ks_statistic``. NaN for what is missing: the forget quality without a retain log.

    Raises:
        ValueError: If the two logs have different numbers of forget rows, or the retain log has none.
    """
    numbers: dict[str, float] = {}
    ratios: dict[str, dict[int, float]] = {}
    for split in SPLITS:
        section = log.get(split, {})
        ratios[split] = log_truth_ratios(section, mean)
        losses, wrong = section.get("avg_gt_loss", {}), section.get("average_perturb_loss", {})
        if split in CHOICES:
            probabilities = [choice_probability(losses[row], wrong[row]) for row in losses if row in wrong]
        else:
            probabilities = [answer_probability(loss) for loss in losses.values()]
        values = list(ratios[split].values())
        numbers[f"{split}/probability"] = _mean(probabilities)
        numbers[f"{split}/rouge"] = _mean(list(section.get("rougeL_recall", {}).values()))
        numbers[f"{split}/truth_ratio"] = truth_ratio_score(values, split)
        numbers[f"{split}/knowledge"] = _mean([1 / (1 + _exp(value)) for value in values])
    numbers["model_utility"] = harmonic_mean([numbers[name] for name in UTILITY])
    numbers["forget_quality"] = numbers["ks_statistic"] = math.nan
    if retain_log is not None and ratios["forget"]:
        others = log_truth_ratios(retain_log.get("forget", {}), mean)
        quality = forget_quality(list(ratios["forget"].values()), list(others.values()))
        numbers["forget_quality"], numbers["ks_statistic"] = quality
    return numbers


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
