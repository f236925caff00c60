"""SimNPO, negative preference optimisation without a reference."""

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import ForgetRetainArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import sequence_nll
from lit_modules.utils.arguments import Unpack


def simnpo_loss(nll: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """Return ``-(2 / beta) log sigmoid(beta nll / |y| - beta delta)`` of each row, from its mean NLL per token.

    Example:
        >>> import torch
        >>> simnpo_loss(torch.tensor([0.0, 2.0]), beta=1.0, delta=2.0)
        tensor([4.2539, 1.3863])
    """
    return softplus(-beta * (nll - delta)) * (2 / beta)  # softplus(-x) = -log sigmoid(x)


class SimNPO(ForgetRetainLoss):
    """Unlearn by negative preference optimisation of the mean token likelihood, without a reference model.

    The forget loss is ``-(2 / beta) log sigmoid(beta nll / |y| - beta delta)``, averaged over rows, with ``nll``
    summed over the ``|y|`` target tokens of a row. The defaults are those of the reference framework; the authors' for
    TOFU forget05 are ``beta`` 2.5 and ``forget_weight`` 0.1375. They write the margin outside of the factor,
    ``beta nll / |y| - gamma``, so their ``gamma`` is ``beta * delta``. Batch, logged names and further arguments are
    those of :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Inverse temperature.
        delta: Margin in nats per token.

    References:
        Fan et al., "Simplicity prevails: Rethinking negative preference optimization for LLM unlearning", arXiv
        2410.07163.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        beta: float = 4.5,
        delta: float = 0.0,
        forget_weight: float = 0.125,
        retain_weight: float = 1.0,
        retain_term: Literal["nll", "kl"] = "nll",
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(
            model, forget_weight=forget_weight, retain_weight=retain_weight, retain_term=retain_term, **shared
        )
        check_positive(beta=beta)
        if not math.isfinite(delta):
            raise ValueError(f"delta must be finite, got {delta}.")
        self.beta = beta
        self.delta = delta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of SimNPO, summed over rows."""
        nll, tokens = sequence_nll(self.network, batch["forget"])
        self.record_nll("forget", nll.sum(), tokens.sum())
        return simnpo_loss(nll / tokens, self.beta, self.delta).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of rows."""
        labels: Tensor = batch["forget"]["labels"]
        return labels.new_tensor(len(labels))
