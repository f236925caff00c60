"""Losses of the unlearning methods beside the likelihood, in plain torch.

Each takes numbers of one row or one token per entry and returns as many losses, all to be minimised; the caller sums
them. Logarithms are natural, losses are in nats unless said otherwise.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.unlearning.core.losses import IGNORED


def npo_loss(log_ratio: Tensor, beta: float = 0.1) -> Tensor:
    """Return the loss of negative preference optimisation, ``-(2 / beta) log sigmoid(-beta log r)``.

    Its gradient is that of gradient ascent times ``2 r^beta / (1 + r^beta)``, which is 1 at the reference and goes to 0
    as the row is forgotten; with ``beta -> 0`` it is that of gradient ascent.

    Args:
        log_ratio: ``log p_theta(y|x) - log p_ref(y|x)`` of each row, sums over its tokens, of shape ``(rows,)``.
        beta: Inverse temperature, positive.

    Returns:
        A loss per row, not negative.

    Example:
        >>> npo_loss(torch.tensor([0.0, -10.0]), beta=1.0)
        tensor([1.3863e+00, 9.0798e-05])

    References:
        Zhang et al., "Negative preference optimization", arXiv 2404.05868, equation 3.
    """
    return F.softplus(beta * log_ratio) * (2 / beta)


def simnpo_loss(nll: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """Return the loss of SimNPO, ``-(2 / beta) log sigmoid(beta nll / |y| - beta delta)``.

    The authors write the margin outside of the factor, ``beta nll / |y| - gamma``: ``gamma = beta delta``.

    Args:
        nll: Mean negative log-likelihood per token of each row, ``-log p(y|x) / |y|``, of shape ``(rows,)``.
        beta: Inverse temperature, positive.
        delta: Margin in nats per token.

    Returns:
        A loss per row, not negative.

    Example:
        >>> simnpo_loss(torch.tensor([0.0, 2.0]), beta=1.0, delta=2.0)
        tensor([4.2539, 1.3863])

    References:
        Fan et al., "Simplicity prevails: Rethinking negative preference optimization for LLM unlearning",
        arXiv 2410.07163.
    """
    return F.softplus(-beta * (nll - delta)) * (2 / beta)


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Tensor:
    """Return the loss of direct preference optimisation as unlearning scales it.

    ``-(2 / beta) log sigmoid(beta (log r_chosen - log r_rejected))``; the factor ``2 / beta`` is NPO's.

    Args:
        chosen: ``log p_theta - log p_ref`` of each wanted answer, of shape ``(rows,)``.
        rejected: The same of each unwanted answer.
        beta: Inverse temperature, positive.

    Example:
        >>> dpo_loss(torch.tensor([1.0]), torch.tensor([1.0]), beta=1.0)
        tensor([1.3863])

    References:
        Rafailov et al., "Direct preference optimization", arXiv 2305.18290, equation 7; for unlearning arXiv
        2404.05868.
    """
    return npo_loss(rejected - chosen, beta)


def weighted_ascent_loss(nll: Tensor, saturation: float = 1.0, importance: float = 0.0) -> Tensor:
    """Return ``-p^saturation (1 - p)^importance nll`` of each token, the weight detached.

    With ``importance`` 0 it is weighted gradient ascent: tokens that are forgotten already, whose ``p`` is small, are
    left alone.

    Args:
        nll: Negative log-likelihood of each token, ``-log p``.
        saturation: Power of the probability, not negative.
        importance: Power of its complement, not negative.

    Example:
        >>> weighted_ascent_loss(torch.tensor([0.6931]), saturation=1.0, importance=1.0)
        tensor([-0.1733])

    References:
        Wang et al., "Rethinking LLM unlearning objectives", arXiv 2502.19301 (``importance`` 0); Yang et al.,
        "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv 2505.11953.
    """
    probability = nll.detach().neg().exp()
    return -(probability**saturation) * (1 - probability) ** importance * nll


def reference_kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Return ``KL(p_ref || p_theta)`` of each position.

    Args:
        reference: Logits of the reference, of shape ``(positions, vocabulary)``.
        logits: Logits of the model, of the same shape.

    Example:
        >>> reference_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))
        tensor([0.1438])

    References:
        Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv 2401.06121, KL minimization.
    """
    log_reference = F.log_softmax(reference, dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), log_reference, reduction="none", log_target=True).sum(-1)


def self_distillation_loss(reference: Tensor, logits: Tensor, labels: Tensor, beta: float = 10.0) -> Tensor:
    """Return the cross-entropy to the reference's distribution with the true token's logit lowered by ``beta``.

    Args:
        reference: Logits of the reference, of shape ``(positions, vocabulary)``.
        logits: Logits of the model, of the same shape.
        labels: True tokens, of shape ``(positions,)``.
        beta: By how much the true token's logit is lowered.

    Example:
        >>> self_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])

    References:
        Dong et al., "UNDIAL: Self-distillation with adjusted logits for robust unlearning in large language models",
        arXiv 2402.10052.
    """
    lowered = reference.detach().scatter_add(1, labels[:, None], reference.new_full((len(labels), 1), -beta))
    return F.cross_entropy(logits, lowered.softmax(-1), reduction="none")


def masked_self_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy to the model's own distribution with the true token masked out.

    The target is detached: the gradient at the logits is ``p - p_masked``, which is ``p`` of the true token at it.

    Args:
        logits: Logits of the model, of shape ``(positions, vocabulary)``.
        labels: True tokens, of shape ``(positions,)``.

    Example:
        >>> masked_self_loss(torch.zeros(1, 3), torch.tensor([0]))
        tensor([1.0986])

    References:
        Yang, "CE-U: Cross entropy unlearning", arXiv 2503.01224.
    """
    target = logits.detach().scatter(1, labels[:, None], float("-inf")).softmax(-1)
    return F.cross_entropy(logits, target, reduction="none")


def logit_margin_loss(logits: Tensor) -> Tensor:
    """Return ``(max - mean)^2`` of the logits of each position, 0 for a uniform distribution.

    Args:
        logits: Logits of the model, of shape ``(..., vocabulary)``.

    Example:
        >>> logit_margin_loss(torch.tensor([[3.0, 0.0, 0.0]]))
        tensor([4.])

    References:
        Entesari et al., "Constrained entropic unlearning: A primal-dual framework for large language models", arXiv
        2506.05314, logit-margin flattening.
    """
    return (logits.max(-1).values - logits.mean(-1)) ** 2


def activation_loss(hidden: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of each position's hidden state to its target, averaged over the hidden size.

    Args:
        hidden: Hidden states, of shape ``(positions, size)``.
        target: Where they are to go, of a shape that broadcasts.

    Example:
        >>> activation_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0, 0.0]))
        tensor([2.5000])

    References:
        Li et al., "The WMDP benchmark: Measuring and reducing malicious use with unlearning", arXiv 2403.03218.
    """
    return (hidden - target).square().mean(-1)


def scored_logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits that predict the scored tokens of a batch.

    Args:
        model: Causal language model that returns ``logits`` of shape ``(batch, tokens, vocabulary)``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``; a label of -100
            is not scored.

    Returns:
        Logits in float32 (float64 for a float64 model) of shape ``(scored, vocabulary)``, their labels, and the row of
        the batch each belongs to.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    scored = labels.ne(IGNORED)
    return _wide(logits[:, :-1][scored]), labels[scored], scored.nonzero()[:, 0]


def every_logit(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits of all positions, padding too, float32 or float64, ``(batch, tokens, vocabulary)``."""
    return _wide(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits)


def attended_logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits of all attended positions, prompts too and padding not.

    Returns:
        Logits in float32 (float64 for a float64 model) of shape ``(attended, vocabulary)``.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return _wide(logits[batch["attention_mask"].bool()])


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
