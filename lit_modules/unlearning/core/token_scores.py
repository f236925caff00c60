"""What a causal language model says of each scored token: for memorisation and membership scores."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.metrics.membership import vocabulary_moments
from lit_modules.unlearning.core.losses import IGNORED

TokenScores = dict[str, list[Tensor]]


def token_scores(model: nn.Module, batch: Mapping[str, Any]) -> TokenScores:
    """Return what the model says of each scored token, row by row.

    One forward pass; only the logits of scored positions are turned to float32.

    Args:
        model: Causal language model that returns ``logits`` of shape ``(batch, tokens, vocabulary)``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``; a label of -100
            is not scored.

    Returns:
        Lists with a 1-D tensor for each row of the batch: ``log_probs``, the log-probability of each label in nats;
        ``correct``, whether the label is the most probable token (bool); ``means`` and ``deviations``, mean and
        standard deviation of the log-probabilities over the vocabulary.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    scored = labels.ne(IGNORED)
    chosen = logits[:, :-1][scored]
    if chosen.dtype != torch.float64:
        chosen = chosen.float()
    targets = labels[scored]
    means, deviations = vocabulary_moments(chosen)
    columns = {
        "log_probs": -F.cross_entropy(chosen, targets, reduction="none"),
        "correct": chosen.argmax(1) == targets,
        "means": means,
        "deviations": deviations,
    }
    counts = scored.sum(1).tolist()
    return {name: list(column.split(counts)) for name, column in columns.items()}
