"""Losses of a causal language model, as sums over target tokens."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100


def target_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Count the labels that are scored, those a token precedes.

    Args:
        batch: Holds ``labels``, integers of shape ``(batch, tokens)``; a label of -100 is not scored.

    Returns:
        Integer scalar on the labels' device.
    """
    return cast("Tensor", batch["labels"])[:, 1:].ne(IGNORED).sum()


def token_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each scored token.

    Only the logits of scored positions are turned to float32, so prompts and padding cost no softmax.

    Args:
        model: Causal language model that returns ``logits`` of shape ``(batch, tokens, vocabulary)``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``; a label of -100
            is not scored.

    Returns:
        The NLL of the scored tokens in nats, float32 (float64 for a float64 model), of shape ``(scored,)``, and the
        row of the batch each belongs to.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    scored = labels.ne(IGNORED)
    chosen = logits[:, :-1][scored]
    if chosen.dtype != torch.float64:
        chosen = chosen.float()
    rows = scored.nonzero()[:, 0]
    return F.cross_entropy(chosen, labels[scored], reduction="none"), rows


def summed_nll(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the negative log-likelihood summed over the scored tokens of a batch, in nats.

    The sum, divided by :func:`target_tokens` of all micro-batches, gives a mean that does not depend on how a batch is
    cut into micro-batches.
    """
    return token_nll(model, batch)[0].sum()


def sequence_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood and the number of scored tokens of each row.

    Returns:
        Two tensors of shape ``(batch,)``: nats, and counts.
    """
    nll, rows = token_nll(model, batch)
    size = batch["labels"].shape[0]
    sums = nll.new_zeros(size).index_add_(0, rows, nll)
    return sums, torch.bincount(rows, minlength=size)
