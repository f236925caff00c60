"""WGA, weighted gradient ascent."""

from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import LossArguments, check_not_negative
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import token_nll
from lit_modules.utils.arguments import Unpack


def wga_loss(nll: Tensor, beta: float = 1.0) -> Tensor:
    """Return ``-p^beta nll`` of each token, with ``p = exp(-nll)`` detached.

    Example:
        >>> import torch
        >>> wga_loss(torch.tensor([0.6931]))
        tensor([-0.3466])
    """
    probability = nll.detach().neg().exp()
    return -(probability**beta) * nll


class WGA(ForgetRetainLoss):
    """Unlearn by gradient ascent with each token weighted by its own probability.

    The forget loss is ``-p^beta nll`` of each target token, averaged over tokens: what is forgotten already is left
    alone, where gradient ascent would push on. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Power of the probability; 0 is gradient ascent.

    References:
        Wang et al., "Rethinking LLM unlearning objectives: A gradient perspective and go beyond", arXiv 2502.19301.
    """

    def __init__(self, model: str | PreTrainedModel, *, beta: float = 1.0, **shared: Unpack[LossArguments]) -> None:
        super().__init__(model, **shared)
        check_not_negative(beta=beta)
        self.beta = beta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of WGA, summed over target tokens."""
        nll, _ = token_nll(self.network, batch["forget"])
        self.record_nll("forget", nll.sum(), len(nll))
        return wga_loss(nll, self.beta).sum()
