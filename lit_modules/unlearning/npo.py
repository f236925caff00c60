"""NPO, negative preference optimisation."""

from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import ReferencePolicyArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.losses import target_tokens
from lit_modules.unlearning.core.reference import ReferencePolicyLoss
from lit_modules.utils.arguments import Unpack


def npo_loss(log_ratio: Tensor, beta: float = 0.1) -> Tensor:
    """Return ``-(2 / beta) log sigmoid(-beta log r)`` of each row, with ``log r = log p_theta(y|x) - log p_ref(y|x)``.

    Example:
        >>> import torch
        >>> npo_loss(torch.tensor([0.0, -10.0]), beta=1.0)
        tensor([1.3863e+00, 9.0798e-05])
    """
    return softplus(beta * log_ratio) * (2 / beta)  # softplus(x) = -log sigmoid(-x)


class NPO(ReferencePolicyLoss):
    """Unlearn by negative preference optimisation: ascent that ends as a row becomes unlikely.

    The forget loss is ``-(2 / beta) log sigmoid(-beta log r)``, averaged over rows, with
    ``log r = log p_theta(y|x) - log p_ref(y|x)``, sums over the target tokens of a row. Its gradient is that of
    gradient ascent on the row, times ``2 r^beta / (1 + r^beta)``, which is 1 at the reference. The log-probabilities
    are those of the labels: differences of raw logits, which a public benchmark's code takes instead, are another loss.

    The reference's log-probabilities are computed once and cached, so no second model is held; with adapters they are
    those of the network with the adapters off. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Inverse temperature; as it goes to 0 the method becomes gradient ascent.

    Raises:
        ValueError: If a number is out of its range, or, in training, a row turns up that the reference was not asked.

    References:
        Zhang et al., "Negative preference optimization: From catastrophic collapse to effective unlearning", arXiv
        2404.05868, equation 3.
    """

    per_row = True

    def __init__(
        self, model: str | PreTrainedModel, *, beta: float = 0.1, **shared: Unpack[ReferencePolicyArguments]
    ) -> None:
        super().__init__(model, **shared)
        check_positive(beta=beta)
        self.beta = beta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of NPO, summed over rows."""
        ratios, log_probs = self.log_ratios(batch["forget"])
        self.record_nll("forget", -log_probs.sum(), target_tokens(batch["forget"]))
        return npo_loss(ratios, self.beta).sum()
