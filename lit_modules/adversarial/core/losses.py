"""Losses of adversarial training, on logits alone."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """Return ``KL(p(x) || p(x'))`` of each sample in nats, ``(batch,)``.

    Args:
        clean_logits: Logits of the clean samples, ``(batch, classes)``.
        adversarial_logits: Logits of the adversarial samples, ``(batch, classes)``.

    Example:
        >>> import torch
        >>> round(float(kl_divergence(torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2))), 4)
        0.1308
    """
    clean, adversarial = F.log_softmax(clean_logits, 1), F.log_softmax(adversarial_logits, 1)
    return F.kl_div(adversarial, clean, reduction="none", log_target=True).sum(1)


def trades_loss(clean_logits: Tensor, adversarial_logits: Tensor, label: Tensor, beta: float = 6.0) -> Tensor:
    """Return the mean of ``CE(f(x), y) + beta KL(p(x) || p(x'))``, a scalar.

    Args:
        clean_logits: Logits of the clean samples, ``(batch, classes)``.
        adversarial_logits: Logits of the adversarial samples, ``(batch, classes)``.
        label: Classes, ``(batch,)``.
        beta: Weight of the divergence (``1 / lambda`` in the paper).

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> round(float(trades_loss(logits, logits, torch.tensor([0]))), 4)  # log 2, and no divergence
        0.6931

    References:
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (arXiv 1901.08573), eq. 5.
    """
    return F.cross_entropy(clean_logits, label) + beta * kl_divergence(clean_logits, adversarial_logits).mean()


def mart_loss(clean_logits: Tensor, adversarial_logits: Tensor, label: Tensor, beta: float = 5.0) -> Tensor:
    """Return the mean of ``BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))``, a scalar.

    The boosted cross-entropy is ``BCE = CE(f(x'), y) - log(1.0001 - max_{j != y} p_j(x'))``; the constant keeps the
    logarithm finite.

    Args:
        clean_logits: Logits of the clean samples, ``(batch, classes)``.
        adversarial_logits: Logits of the adversarial samples, ``(batch, classes)``.
        label: Classes, ``(batch,)``.
        beta: Weight of the divergence (``lambda`` in the paper).

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> round(float(mart_loss(logits, logits, torch.tensor([0]))), 3)  # log 2 - log 0.5001
        1.386

    References:
        Wang et al., "Improving adversarial robustness requires revisiting misclassified examples" (ICLR 2020), eq. 11.
    """
    chosen = label[:, None]
    other = F.softmax(adversarial_logits, 1).scatter(1, chosen, 0.0).amax(1)
    boosted = F.cross_entropy(adversarial_logits, label, reduction="none") - (1.0001 - other).log()
    doubt = 1 - F.softmax(clean_logits, 1).gather(1, chosen)[:, 0]
    return (boosted + beta * kl_divergence(clean_logits, adversarial_logits) * doubt).mean()
