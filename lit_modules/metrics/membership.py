"""Membership attacks on a language model: scores per row from per-token log-probabilities, and their AUC.

The lower a score, the more a row looks like training data. Rows are ragged: ``log_probs`` is a sequence with one 1-D
tensor for each row, the log-probability of each of its tokens in nats, at least one. Scores are float64, ``(rows,)``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm, rankdata
from torch import Tensor, nn

__all__ = [
    "AttackAUC",
    "attack_auc",
    "gradient_norm_attack",
    "loss_attack",
    "min_k_attack",
    "min_k_plus_plus_attack",
    "reference_attack",
    "roc_auc",
    "vocabulary_moments",
    "zlib_attack",
]

SMALLEST_VARIANCE = 1e-6


class AttackAUC(NamedTuple):
    """Area under the ROC curve of an attack, with a confidence interval.

    Attributes:
        auc: Probability that a non-member scores above a member, a tie counting one half: 1 if the attack knows every
            member, 0.5 if it guesses.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    auc: float
    low: float
    high: float


def loss_attack(log_probs: Sequence[Tensor]) -> Tensor:
    """Score each row by its mean token NLL.

    References:
        Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", arXiv 1709.01604.

    Example:
        >>> loss_attack([torch.tensor([-1.0, -3.0]), torch.tensor([-0.5])]).tolist()
        [2.0, 0.5]
    """
    _check_rows(log_probs)
    return _stack([-row.double().mean() for row in log_probs])


def zlib_attack(log_probs: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
    """Score each row by its mean token NLL over the number of bytes that zlib compresses its text to.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", arXiv 2012.07805.
    """
    _check_number("texts", texts, log_probs)
    sizes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    return loss_attack(log_probs) / torch.tensor(sizes, dtype=torch.float64)


def reference_attack(log_probs: Sequence[Tensor], reference_log_probs: Sequence[Tensor]) -> Tensor:
    """Score each row by its mean token NLL less that under a reference model.

    The two models may have different tokenizers, as each mean is taken over the model's own tokens.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", arXiv 2012.07805.

    Example:
        >>> reference_attack([torch.tensor([-1.0, -3.0])], [torch.tensor([-0.5])]).tolist()
        [1.5]
    """
    _check_number("reference_log_probs", reference_log_probs, log_probs)
    return loss_attack(log_probs) - loss_attack(reference_log_probs)


def min_k_attack(log_probs: Sequence[Tensor], k: float = 0.2) -> Tensor:
    """Score each row by the mean NLL of its least probable tokens (Min-K% Prob).

    ``k`` is the share of the tokens to average, in (0, 1]; ``max(1, floor(k * tokens))`` of them. MUSE takes 0.4.

    References:
        Shi et al., "Detecting Pretraining Data from Large Language Models", arXiv 2310.16789.

    Example:
        >>> min_k_attack([torch.tensor([-1.0, -4.0, -2.0, -0.5])], k=0.5).tolist()
        [3.0]
    """
    _check_rows(log_probs)
    return _mean_of_lowest(log_probs, k)


def min_k_plus_plus_attack(
    log_probs: Sequence[Tensor], means: Sequence[Tensor], deviations: Sequence[Tensor], k: float = 0.2
) -> Tensor:
    """Score each row as :func:`min_k_attack` does, from log-probabilities standardised at each position (Min-K%++).

    ``means`` and ``deviations`` are those of :func:`vocabulary_moments`, a value for each token of each row.

    References:
        Zhang et al., "Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large Language Models",
        arXiv 2404.02936.
    """
    _check_rows(log_probs)
    for name, rows in (("means", means), ("deviations", deviations)):
        _check_number(name, rows, log_probs)
        for row, expected in zip(rows, log_probs, strict=True):
            if row.shape != expected.shape:
                raise ValueError(f"{name} must have a value for each token, {len(expected)} in a row, got {len(row)}.")
    columns = zip(log_probs, means, deviations, strict=True)
    return _mean_of_lowest([(row.double() - mean) / deviation for row, mean, deviation in columns], k)


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the log-probabilities under the model's own distribution.

    Logits are ``(..., vocabulary)``, the two tensors ``(...)``. The variance is at least 1e-6, so that a certain model
    divides by no zero.

    Example:
        >>> mean, deviation = vocabulary_moments(torch.zeros(1, 4))
        >>> round(float(mean), 4), round(float(deviation), 4)
        (-1.3863, 0.001)
    """
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    # a probability of zero has a log-probability of minus infinity, and adds nothing
    log_probs = log_probs.masked_fill(probs == 0, 0.0)
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean.unsqueeze(-1)).square()).sum(-1)
    return mean, variance.clamp(min=SMALLEST_VARIANCE).sqrt()


def gradient_norm_attack(
    log_probs: Sequence[Tensor],
    parameters: Iterable[nn.Parameter],
    p: float = 2.0,
    over: Literal["tensors", "all"] = "tensors",
) -> Tensor:
    """Score each row by the norm of the gradient of its mean token NLL.

    One backward pass for each row; ``.grad`` of the parameters stays as it is.

    Args:
        log_probs: Log-probability of each token of each row, in nats, with the graph that made them.
        parameters: Parameters to differentiate by; those that do not train are passed over.
        p: Order of the norm, at least 1; ``inf`` takes the largest entry.
        over: ``"tensors"`` averages the norms of the parameters' tensors, as open-unlearning and MIMIR do; ``"all"``
            takes the norm of all entries as one vector.

    References:
        Wang et al., "Pandora's White-Box: Precise Training Data Detection and Extraction in Large Language Models",
        arXiv 2402.17012.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> gradient_norm_attack([-weight.square() / 2], [weight]).tolist()
        [2.5]
    """
    _check_rows(log_probs)
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}.")
    if over not in ("tensors", "all"):
        raise ValueError(f"over must be 'tensors' or 'all', got {over!r}.")
    training = [parameter for parameter in parameters if parameter.requires_grad]
    if not training:
        raise ValueError("parameters must hold one that requires a gradient, got none.")
    scores = []
    for number, row in enumerate(log_probs):
        if not row.requires_grad:
            raise ValueError(f"log_probs must carry the graph that made them, and row {number} has none.")
        loss = -row.mean()
        gradient = torch.autograd.grad(loss, training, retain_graph=number + 1 < len(log_probs), allow_unused=True)
        norms = torch.stack([tensor.double().norm(p) for tensor in gradient if tensor is not None])
        scores.append(norms.mean() if over == "tensors" else norms.norm(p))
    return _stack(scores)


def attack_auc(
    scores: Tensor,
    member: Tensor,
    interval: Literal["delong", "bootstrap"] = "delong",
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> AttackAUC:
    """Return how well scores tell members from non-members, with a confidence interval.

    DeLong's interval is the AUC plus and minus a normal quantile times DeLong's standard error, cut to [0, 1]; it has
    no width if the AUC is 0 or 1. The bootstrap draws members and non-members apart with replacement and takes
    percentiles.

    Args:
        scores: A score for each row, low for members and not NaN, ``(rows,)``.
        member: Whether the model was trained on the row, ``(rows,)``; at least two of each kind.
        interval: Kind of the interval.
        level: Its level, in (0, 1).
        samples: Samples of the bootstrap.
        seed: Seed of the bootstrap.

    References:
        DeLong et al., "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves: A
        Nonparametric Approach", Biometrics 44 (1988).

    Example:
        >>> attack_auc(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([True, True, False, False])).auc
        0.875
    """
    if interval not in ("delong", "bootstrap"):
        raise ValueError(f"interval must be 'delong' or 'bootstrap', got {interval!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    if scores.ndim != 1 or scores.shape != member.shape:
        raise ValueError(
            f"scores and member must have the same shape (rows,), got {tuple(scores.shape)} and {tuple(member.shape)}."
        )
    values = scores.detach().double().cpu().numpy()
    if np.isnan(values).any():
        raise ValueError(f"scores must be numbers, got NaN in {int(np.isnan(values).sum())} of {len(values)} rows.")
    known = member.bool().cpu().numpy()
    members, others = values[known], values[~known]
    if len(members) < 2 or len(others) < 2:
        raise ValueError(
            f"An AUC needs at least 2 members and 2 non-members, got {len(members)} and {len(others)} of them."
        )
    auc = roc_auc(scores, member)
    if interval == "bootstrap":
        resampled = bootstrap(
            (members, others), _auc, n_resamples=samples, confidence_level=level, method="percentile", rng=seed
        )
        low, high = resampled.confidence_interval
    else:
        width = norm.ppf((1 + level) / 2) * np.sqrt(_delong_variance(members, others))
        low, high = max(0.0, auc - width), min(1.0, auc + width)
    return AttackAUC(auc, float(low), float(high))


def roc_auc(scores: Tensor, member: Tensor) -> float:
    """Return the probability that a non-member scores above a member, a tie counting one half.

    Scores may be infinite; ``member`` says whether the model was trained on a row, and both kinds must be there.
    """
    from sklearn.metrics import roc_auc_score

    ranks = rankdata(scores.detach().double().cpu().numpy())  # scikit-learn refuses infinite scores
    return float(roc_auc_score(~member.bool().cpu().numpy(), ranks))


def _auc(members: NDArray[np.float64], others: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the AUC of each sample, from the scores of members and of non-members along the last axis."""
    few, many = others.shape[-1], members.shape[-1]
    ranks = rankdata(np.concatenate([others, members], axis=-1), axis=-1)[..., :few].sum(axis=-1)
    result: NDArray[np.float64] = (ranks - few * (few + 1) / 2) / (few * many)
    return result


def _delong_variance(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    ranks = rankdata(np.concatenate([others, members]))
    few, many = len(others), len(members)
    above = (ranks[:few] - rankdata(others)) / many  # share of the members below each non-member
    below = 1 - (ranks[few:] - rankdata(members)) / few  # share of the non-members above each member
    return float(above.var(ddof=1) / few + below.var(ddof=1) / many)


def _mean_of_lowest(rows: Sequence[Tensor], k: float) -> Tensor:
    if not 0 < k <= 1:
        raise ValueError(f"k must be a share in (0, 1], got {k}.")
    return _stack([-row.double().sort().values[: max(1, int(k * len(row)))].mean() for row in rows])


def _stack(scores: Sequence[Tensor]) -> Tensor:
    return torch.stack([score.detach() for score in scores]) if scores else torch.empty(0, dtype=torch.float64)


def _check_rows(rows: Sequence[Tensor]) -> None:
    for number, row in enumerate(rows):
        if row.ndim != 1 or len(row) == 0:
            raise ValueError(
                f"Each row must be a 1-D tensor with at least one token, got the shape {tuple(row.shape)} "
                f"in row {number}."
            )


def _check_number(name: str, values: Sequence[object], rows: Sequence[Tensor]) -> None:
    if len(values) != len(rows):
        raise ValueError(f"{name} must have an entry for each of the {len(rows)} rows, got {len(values)}.")
