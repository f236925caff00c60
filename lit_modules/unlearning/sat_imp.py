"""SatImp, ascent weighted by saturation and importance."""

from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import ForgetRetainArguments, check_not_negative
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import token_nll
from lit_modules.utils.arguments import Unpack


def sat_imp_loss(nll: Tensor, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """Return ``-p^beta1 (1 - p)^beta2 nll`` of each token, with ``p = exp(-nll)`` detached.

    Example:
        >>> import torch
        >>> sat_imp_loss(torch.tensor([0.6931]), beta1=1.0, beta2=1.0)
        tensor([-0.1733])
    """
    probability = nll.detach().neg().exp()
    return -(probability**beta1) * (1 - probability) ** beta2 * nll


class SatImp(ForgetRetainLoss):
    """Unlearn by gradient ascent with tokens weighted by saturation and importance.

    The forget loss is ``-p^beta1 (1 - p)^beta2 nll`` of each target token, averaged over tokens. Batch, logged names
    and further arguments are those of :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta1: Power of the probability, the saturation.
        beta2: Power of its complement, the importance.

    References:
        Yang et al., "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv 2505.11953.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        beta1: float = 5.0,
        beta2: float = 1.0,
        forget_weight: float = 0.1,
        retain_weight: float = 1.0,
        retain_term: Literal["nll", "kl"] = "nll",
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(
            model, forget_weight=forget_weight, retain_weight=retain_weight, retain_term=retain_term, **shared
        )
        check_not_negative(beta1=beta1, beta2=beta2)
        self.beta1 = beta1
        self.beta2 = beta2

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of SatImp, summed over target tokens."""
        nll, _ = token_nll(self.network, batch["forget"])
        self.record_nll("forget", nll.sum(), len(nll))
        return sat_imp_loss(nll, self.beta1, self.beta2).sum()
