"""KL minimisation: ascent on the forget rows, and the old distribution on the retain rows."""

from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import WeightedArguments
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.arguments import Unpack


class KLMinimisation(ForgetRetainLoss):
    """Unlearn by gradient ascent while the distribution on the retain rows stays that of the reference.

    The loss is ``-NLL(forget) + KL(p_ref || p_theta)``, the KL averaged over all attended positions of the retain rows,
    prompts too. The reference code averages over padding as well, which makes the term smaller the more a batch is
    padded.

    The reference is the network with its adapters off, else a frozen copy that is made once and is no part of the
    checkpoint. Batch, logged names and arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`; ``train/retain_objective`` is the KL.

    References:
        Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv 2401.06121, KL minimization.
    """

    fixed_arguments = ("retain_term",)

    def __init__(self, model: str | PreTrainedModel, **shared: Unpack[WeightedArguments]) -> None:
        super().__init__(model, retain_term="kl", **shared)

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the negative NLL of the forget rows, summed over target tokens."""
        nll = summed_nll(self.network, batch["forget"])
        self.record_nll("forget", nll, target_tokens(batch["forget"]))
        return -nll
