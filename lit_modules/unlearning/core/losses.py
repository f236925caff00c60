"""Losses of a causal language model, as sums over target tokens, and the logits behind them.

A batch holds ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``; a label of -100
is not scored. Logits and losses are float32, of a float64 model float64; losses are in nats.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.metrics.membership import vocabulary_moments

IGNORED = -100
TokenScores = dict[str, list[Tensor]]


def target_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Count the labels that are scored, those a token precedes; an integer scalar on their device."""
    return cast("Tensor", batch["labels"])[:, 1:].ne(IGNORED).sum()


def scored_logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits that predict the scored tokens of a batch.

    Only these are turned to float32, so prompts and padding cost no softmax.

    Returns:
        Logits of shape ``(scored, vocabulary)``, their labels, and the row of the batch each belongs to.
    """
    labels = batch["labels"][:, 1:]
    scored = labels.ne(IGNORED)
    return at_least_float32(logits_of(model, batch)[:, :-1][scored]), labels[scored], scored.nonzero()[:, 0]


def attended_logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits of all attended positions, prompts too and padding not, ``(attended, vocabulary)``."""
    return at_least_float32(logits_of(model, batch)[batch["attention_mask"].bool()])


def logits_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits of all positions in the model's own type, ``(batch, tokens, vocabulary)``."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return cast("Tensor", output.logits)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, one of float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def token_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each scored token, and the row of the batch each belongs to."""
    logits, labels, rows = scored_logits(model, batch)
    return F.cross_entropy(logits, labels, reduction="none"), rows


def summed_nll(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the negative log-likelihood summed over the scored tokens of a batch.

    The sum, divided by :func:`target_tokens` of all micro-batches, gives a mean that does not depend on how a batch is
    cut into micro-batches.
    """
    return token_nll(model, batch)[0].sum()


def sequence_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood and the number of scored tokens of each row, both ``(batch,)``."""
    nll, rows = token_nll(model, batch)
    size = batch["labels"].shape[0]
    sums = nll.new_zeros(size).index_add_(0, rows, nll)
    return sums, torch.bincount(rows, minlength=size)


def reference_kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Return ``KL(p_ref || p_theta)`` of each position, from logits of shape ``(positions, vocabulary)``.

    Example:
        >>> reference_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))
        tensor([0.1438])

    References:
        Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv 2401.06121, KL minimization.
    """
    log_reference = F.log_softmax(reference, dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), log_reference, reduction="none", log_target=True).sum(-1)


def token_scores(model: nn.Module, batch: Mapping[str, Any]) -> TokenScores:
    """Return scores of each scored token for memorisation and membership metrics; one forward pass.

    Returns:
        Lists with a 1-D tensor for each row of the batch: ``log_probs``, the log-probability of each label;
        ``correct``, whether the label is the most probable token (bool); ``means`` and ``deviations``, mean and
        standard deviation of the log-probabilities over the vocabulary.
    """
    logits, labels, rows = scored_logits(model, batch)
    means, deviations = vocabulary_moments(logits)
    columns = {
        "log_probs": -F.cross_entropy(logits, labels, reduction="none"),
        "correct": logits.argmax(1) == labels,
        "means": means,
        "deviations": deviations,
    }
    counts = torch.bincount(rows, minlength=batch["labels"].shape[0]).tolist()
    return {name: list(torch.split(column, counts)) for name, column in columns.items()}
