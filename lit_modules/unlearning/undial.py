"""UNDIAL, self-distillation with adjusted logits."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import scored_logits


def undial_loss(reference: Tensor, logits: Tensor, labels: Tensor, beta: float = 10.0) -> Tensor:
    """Return the cross-entropy to the reference's distribution with the true token's logit lowered by ``beta``.

    Logits, of the reference and of the model, are ``(positions, vocabulary)``, labels ``(positions,)``.

    Example:
        >>> import torch
        >>> undial_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """
    lowered = reference.detach().scatter_add(1, labels[:, None], reference.new_full((len(labels), 1), -beta))
    return cross_entropy(logits, lowered.softmax(-1), reduction="none")


def undial_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build AdamW at a learning rate of 1e-4 without weight decay."""
    return AdamW(parameters, lr=1e-4, weight_decay=0.0)


class UNDIAL(ForgetRetainLoss):
    """Unlearn by learning from the reference with the true token's logit lowered.

    The forget loss is the cross-entropy to ``softmax(reference logits - beta * one_hot(true token))``, averaged over
    target tokens. The reference code averages over prompts and padding too, where the lowered token is not the true
    one. It has a minimum, so there is no retain term by default.

    The reference is the network with its adapters off, else a frozen copy that is made once and is no part of the
    checkpoint. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Amount by which the true token's logit is lowered.

    References:
        Dong et al., "UNDIAL: Self-distillation with adjusted logits for robust unlearning in large language models",
        arXiv 2402.10052.
    """

    needs_network = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        beta: float = 10.0,
        forget_weight: float = 1.0,
        retain_weight: float = 0.0,
        retain_term: Literal["nll", "kl"] = "nll",
        optimizer: OptimizerCallable = undial_optimizer,
        **shared: Any,  # of ForgetRetainArguments; mypy has no such mapping without `optimizer`, whose default differs
    ) -> None:
        super().__init__(
            model,
            forget_weight=forget_weight,
            retain_weight=retain_weight,
            retain_term=retain_term,
            optimizer=optimizer,
            **shared,
        )
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}.")
        self.beta = beta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the cross-entropy to the adjusted reference, summed over target tokens."""
        with self.reference_network() as reference:
            before, _, _ = scored_logits(reference, batch["forget"])
        logits, labels, _ = scored_logits(self.network, batch["forget"])
        self.record_nll("forget", cross_entropy(logits.detach(), labels, reduction="sum"), len(labels))
        return undial_loss(before, logits, labels, self.beta).sum()
