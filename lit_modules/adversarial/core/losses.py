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
