"""CE-U, cross-entropy unlearning."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import ForgetRetainArguments
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import IGNORED, scored_logits
from lit_modules.utils.arguments import Unpack


def ceu_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy to the model's own distribution with the true token masked out.

    The target is detached: the gradient at the logits is ``p - p_masked``, which is ``p`` of the true token at it.
    Logits are ``(positions, vocabulary)``, labels ``(positions,)``.

    Example:
        >>> import torch
        >>> ceu_loss(torch.zeros(1, 3), torch.tensor([0]))
        tensor([1.0986])
    """
    target = logits.detach().scatter(1, labels[:, None], float("-inf")).softmax(-1)
    return cross_entropy(logits, target, reduction="none")


class CEU(ForgetRetainLoss):
    """Unlearn by learning from the model itself with the true token masked out.

    The forget loss is the cross-entropy to the model's own distribution, detached, in which the true token has no
    probability and the others share its part. Its gradient vanishes as the true token becomes improbable, so there is
    no retain term by default. The first target token of each answer is left out, as in the paper, which says so in a
    footnote of its training settings. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        skip_tokens: Target tokens at the beginning of each row that are left out.

    References:
        Yang, "CE-U: Cross entropy unlearning", arXiv 2503.01224.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        skip_tokens: int = 1,
        forget_weight: float = 1.0,
        retain_weight: float = 0.0,
        retain_term: Literal["nll", "kl"] = "nll",
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(
            model, forget_weight=forget_weight, retain_weight=retain_weight, retain_term=retain_term, **shared
        )
        if skip_tokens < 0:
            raise ValueError(f"skip_tokens must not be negative, got {skip_tokens}.")
        self.skip_tokens = skip_tokens

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the cross-entropy to the masked distribution, summed over the tokens that count."""
        logits, labels, _ = scored_logits(self.network, batch["forget"])
        self.record_nll("forget", cross_entropy(logits.detach(), labels, reduction="sum"), len(labels))
        scored = batch["forget"]["labels"][:, 1:].ne(IGNORED)
        counted = (scored & (scored.cumsum(1) > self.skip_tokens))[scored]
        return ceu_loss(logits[counted], labels[counted]).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of target tokens behind the first ones of each row."""
        scored = batch["forget"]["labels"][:, 1:].ne(IGNORED)
        count: Tensor = (scored.sum(1) - self.skip_tokens).clamp(min=0).sum()
        return count
