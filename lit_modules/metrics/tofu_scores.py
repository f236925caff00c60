"""Arithmetic of the TOFU benchmark on NLLs and on the log files of its official evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import ks_2samp
from torch import Tensor

from lit_modules.metrics.lume import harmonic_mean
from lit_modules.metrics.text_rows import mean as mean_of
from lit_modules.utils.files import write_whole

__all__ = [
    "ForgetQuality",
    "build_log",
    "choice_probability",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "log_truth_ratio",
    "read_log",
    "score_log",
    "truth_ratio",
    "truth_ratio_score",
    "write_log",
]

Mean = Literal["geometric", "arithmetic"]
MEANS = ("geometric", "arithmetic")
SPLITS = ("forget", "retain", "real_authors", "world_facts")
CHOICES = ("real_authors", "world_facts")
"""The splits whose questions have wrong options: their probability is that among the options."""
UTILITY = tuple(f"{split}/{kind}" for split in SPLITS[1:] for kind in ("probability", "rouge", "truth_ratio"))
Log = dict[str, dict[str, dict[int, Any]]]
"""For each split and statistic the value of each row."""

SECTIONS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
"""Name of each split in the official files."""

REQUIRED = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss")
LARGEST = 700.0
"""Largest exponent that is written: JSON has no infinity."""
NUMBERS = {"avg_gt_loss", "avg_paraphrased_loss", "rouge1_recall", "rougeL_recall", "num_token_gt"}


class ForgetQuality(NamedTuple):
    """Result of the two-sample Kolmogorov-Smirnov test on truth ratios.

    Args:
        p_value: The forget quality, in [0, 1]: large if the model cannot be told from the retain model.
        statistic: Largest distance of the two distribution functions, in [0, 1].
    """

    p_value: float
    statistic: float


def choice_probability(nll: float, perturbed: Sequence[float]) -> float:
    """Return ``P(a) / (P(a) + sum_j P(a'_j))``, the probability of the answer among the options.

    The arguments are mean token NLLs in nats, of the answer and of each wrong option.

    Example:
        >>> round(choice_probability(500.0, [500.0, 500.0, 500.0]), 6)
        0.25
    """
    return math.exp(-nll - float(logsumexp([-nll, *(-value for value in perturbed)])))


def log_truth_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "geometric") -> float:
    """Return the logarithm of :func:`truth_ratio`, which large NLLs do not overflow."""
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

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121, equation 1.

    Example:
        >>> from math import log
        >>> [round(truth_ratio(log(2), [log(4), log(16)], mean), 6) for mean in ("geometric", "arithmetic")]
        [0.25, 0.3125]
    """
    return _exp(log_truth_ratio(paraphrased, perturbed, mean))


def truth_ratio_score(log_ratios: Sequence[float], split: str) -> float:
    """Return the mean truth-ratio score of a split, best at 1, from the logarithms of the ratios; NaN without rows.

    The mean of ``min(R, 1/R)`` on the forget set, where no answer is to stand out; that of ``max(0, 1 - R)`` elsewhere.

    Example:
        >>> from math import log
        >>> round(truth_ratio_score([log(0.5), log(4.0)], "forget"), 6)
        0.375
        >>> round(truth_ratio_score([log(0.5), log(4.0)], "retain"), 6)
        0.25
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    scores = np.exp(-np.abs(values)) if split == "forget" else np.maximum(0, -np.expm1(np.minimum(values, 0)))
    return float(scores.mean()) if len(scores) else math.nan


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> ForgetQuality:
    """Test whether the truth ratios on the forget set could be those of a model that never saw it.

    A two-sample Kolmogorov-Smirnov test, which any increasing or decreasing map of the ratios leaves as it is:
    logarithms may be given.

    Args:
        ratios: Truth ratio of each forget row under the unlearned model.
        retain_ratios: As many under a model trained on the retain set only.

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
        log: Log of the unlearned model, as :func:`read_log` returns it.
        retain_log: Log of a model trained on the retain set only.
        mean: Mean over the probabilities of the wrong answers, in every truth ratio.

    Returns:
        ``{split}/{probability,rouge,truth_ratio,knowledge}``, the last of them the mean of ``1 / (1 + R)``, the newer
        truth ratio of open-unlearning, of ``forget``, ``retain``, ``real_authors`` and
        ``world_facts``; ``model_utility``, the harmonic mean of the first three of the last three splits; and
        ``forget_quality`` with ``ks_statistic``. NaN for what is missing: the forget quality without a retain log.
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
            probabilities = [math.exp(-loss) for loss in losses.values()]
        values = list(ratios[split].values())
        numbers[f"{split}/probability"] = mean_of(probabilities)
        numbers[f"{split}/rouge"] = mean_of(list(section.get("rougeL_recall", {}).values()))
        numbers[f"{split}/truth_ratio"] = truth_ratio_score(values, split)
        numbers[f"{split}/knowledge"] = mean_of([1 / (1 + _exp(value)) for value in values])
    numbers["model_utility"] = harmonic_mean([numbers[name] for name in UTILITY])
    numbers["forget_quality"] = numbers["ks_statistic"] = math.nan
    if retain_log is not None and ratios["forget"]:
        others = log_truth_ratios(retain_log.get("forget", {}), mean)
        quality = forget_quality(list(ratios["forget"].values()), list(others.values()))
        numbers["forget_quality"], numbers["ks_statistic"] = quality
    return numbers


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def exact_memorisation(correct: Tensor) -> float:
    """Return the share of tokens that are the most probable ones, ``(tokens,)`` without the end of sequence.

    References:
        Tirumala et al., "Memorization Without Overfitting: Analyzing the Training Dynamics of Large Language Models",
        arXiv 2205.10770.

    Example:
        >>> import torch
        >>> exact_memorisation(torch.tensor([True, False, True, True]))
        0.75
    """
    return float(_check_tokens(correct).double().mean())


def extraction_strength(correct: Tensor) -> float:
    """Return ``1 - k / n``: ``k`` of the ``n`` tokens must be given for the model to guess all others.

    ``correct`` is that of :func:`exact_memorisation`. The result is never below ``1 / n``, also if the last token is
    wrong: so open-unlearning computes it.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", arXiv 2012.07805.

    Example:
        >>> import torch
        >>> extraction_strength(torch.tensor([True, False, True, True]))
        0.5
        >>> extraction_strength(torch.tensor([True, False, True, False]))
        0.25
    """
    wrong = (~_check_tokens(correct).bool()).nonzero()
    right = len(correct) - 1 - int(wrong[-1]) if len(wrong) else len(correct)
    return max(right, 1) / len(correct)


def _check_tokens(correct: Tensor) -> Tensor:
    if correct.ndim != 1 or len(correct) == 0:
        raise ValueError(f"correct must be a 1-D tensor with at least one token, got shape {tuple(correct.shape)}.")
    return correct


def read_log(path: str | Path) -> Log:
    """Read an official log, ``eval_log_aggregated.json``, or one that :func:`write_log` wrote.

    Args:
        path: JSON with some of the keys ``eval_log.json`` (retain set), ``eval_log_forget.json``,
            ``eval_real_author_wo_options.json`` and ``eval_real_world_wo_options.json``; each maps the name of a
            statistic to an object of row numbers and values.

    Returns:
        For each split (``"retain"``, ``"forget"``, ``"real_authors"``, ``"world_facts"``) and statistic the value of
        each row, in the order of the rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such JSON, or a split lacks a statistic of which scores are made, or a row of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no log {path}; a test with TOFUScore(log_file=...) writes one.")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a log of TOFU's evaluation, and is not JSON: {error}.") from error
    names = {name: split for split, name in SECTIONS.items()}
    sections = [name for name in names if isinstance(content, dict) and isinstance(content.get(name), dict)]
    if not sections:
        raise ValueError(f"{path} must be a log of TOFU's evaluation, with an object at one of {', '.join(names)}.")
    log = {names[name]: _read_section(content[name], f"{path}: {name}") for name in sections}
    return {split: log[split] for split in SECTIONS if split in log}


def write_log(path: str | Path, log: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> None:
    """Write a log, the value of each row by split and statistic, in the official format; a file is replaced whole."""
    content = {
        SECTIONS[split]: {name: {str(row): values[row] for row in sorted(values)} for name, values in section.items()}
        for split, section in log.items()
    }
    write_whole(path, json.dumps(content, ensure_ascii=False))


def build_log(
    answers: Mapping[tuple[str, int, str, int], tuple[float, int]],
    generated: Mapping[tuple[str, int], Sequence[str]],
    recalls: Mapping[tuple[str, int], Sequence[float]],
    further: Mapping[tuple[str, int], Mapping[str, float]],
) -> Log:
    """Build a log from scored and generated answers; splits that the official files lack are left out.

    Args:
        answers: Mean token NLL in nats and number of tokens, by split, row, role (``"answer"``, ``"paraphrased"`` or
            ``"perturbed"``) and number of the perturbed answer.
        generated: Prompt, generation and target, by split and row.
        recalls: Recalls of ROUGE-1 and ROUGE-L, by split and row.
        further: Other statistics by split and row.
    """
    log: Log = {split: {} for split in SECTIONS}

    def put(split: str, row: int, **values: Any) -> None:
        for name, value in values.items():
            log[split].setdefault(name, {})[row] = value

    def put_answer(split: str, row: int, short: str, nll: float, count: int) -> None:
        put(split, row, **{f"avg_{short}_loss": nll, f"{short}_loss": nll * count, f"num_token_{short}": count})

    perturbed: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for (split, row, role, _), (nll, count) in sorted(answers.items()):
        if split not in SECTIONS:
            continue
        if role == "perturbed":
            perturbed.setdefault((split, row), []).append((nll, count))
            continue
        if role == "answer":
            put_answer(split, row, "gt", nll, count)
        if role == "paraphrased" or split in CHOICES:  # where there is no paraphrase, the answer plays its role
            put_answer(split, row, "paraphrased", nll, count)
    for (split, row), values in perturbed.items():
        losses = [nll for nll, _ in values]
        put(split, row, average_perturb_loss=losses, perturb_loss=[nll * count for nll, count in values])
        put(split, row, num_token_perturb=[count for _, count in values])
        section = log[split]
        if row in section.get("avg_paraphrased_loss", {}):
            # the official files hold the geometric convention
            ratio = log_truth_ratio(section["avg_paraphrased_loss"][row], losses)
            put(split, row, truth_ratio=math.exp(min(ratio, LARGEST)))
        if split in CHOICES and row in section.get("avg_gt_loss", {}):
            probability = choice_probability(section["avg_gt_loss"][row], losses)
            put(split, row, normalized_gt_loss=min(-math.log(probability) if probability else LARGEST, LARGEST))
    texts = {key: {"generated_text": list(words)} for key, words in generated.items()}
    rouge = {key: dict(zip(("rouge1_recall", "rougeL_recall"), values, strict=True)) for key, values in recalls.items()}
    for statistics in (texts, rouge, further):
        for (split, row), numbers in statistics.items():
            if split in SECTIONS:
                put(split, row, **numbers)
    return {
        split: {name: dict(sorted(values.items())) for name, values in section.items()}
        for split, section in log.items()
        if section
    }


def _read_section(section: dict[str, Any], where: str) -> dict[str, dict[int, Any]]:
    columns: dict[str, dict[int, Any]] = {}
    for name, values in section.items():
        if not isinstance(values, dict):
            continue  # a statistic over all rows
        wrong = [row for row in values if not row.isdecimal()]
        if wrong:
            raise ValueError(f"{where}: the keys of {name!r} must be row numbers, got {wrong[0]!r}.")
        columns[name] = {int(row): values[row] for row in sorted(values, key=int)}
    missing = [name for name in REQUIRED if not columns.get(name)]
    if missing:
        raise ValueError(f"{where}: the statistic {missing[0]!r} is missing; the perturbed set was not evaluated.")
    rows = columns[REQUIRED[0]].keys()
    for name in REQUIRED[1:]:
        if columns[name].keys() != rows:
            raise ValueError(
                f"{where}: {name!r} must have the {len(rows)} rows of {REQUIRED[0]!r}, got {len(columns[name])} rows."
            )
    for name, column in columns.items():
        for row, value in column.items():
            if name in NUMBERS and not _is_finite(value):
                raise ValueError(f"{where}: {name!r} of row {row} must be a finite number, got {value!r}.")
            is_list = isinstance(value, list) and bool(value) and all(map(_is_finite, value))
            if name == "average_perturb_loss" and not is_list:
                raise ValueError(f"{where}: {name!r} of row {row} must be a list of finite numbers, got {value!r}.")
    return columns


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
