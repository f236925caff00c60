"""DPO with refusals as the wanted answers, also called IdkDPO."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import ReferencePolicyArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.losses import target_tokens
from lit_modules.unlearning.core.reference import ReferencePolicyLoss
from lit_modules.unlearning.core.refusals import Refusals
from lit_modules.utils.arguments import Unpack


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Tensor:
    """Return ``-(2 / beta) log sigmoid(beta (chosen - rejected))`` of the log ratios ``log p_theta - log p_ref``.

    Example:
        >>> import torch
        >>> dpo_loss(torch.tensor([1.0]), torch.tensor([1.0]), beta=1.0)
        tensor([1.3863])
    """
    return softplus(beta * (rejected - chosen)) * (2 / beta)  # softplus(-x) = -log sigmoid(x)


class DPO(ReferencePolicyLoss):
    """Unlearn by preferring refusals to the answers of the forget rows; TOFU's IdkDPO.

    The forget loss is ``-(2 / beta) log sigmoid(beta (log r(refusal) - log r(answer)))``, averaged over rows, with
    ``log r = log p_theta(y|x) - log p_ref(y|x)``, sums over the target tokens. Each row's refusal is drawn uniformly,
    once, from the seed and the row's content; the reference code draws anew at each visit. The factor ``2 / beta`` is
    NPO's; the paper has 1.

    The reference's log-probabilities of answers and refusals are computed once and cached, as with
    :class:`~lit_modules.NPO`. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Inverse temperature.
        refusals: File of refusals, one per line, such as ``idontknow.jsonl`` of TOFU; ``None`` takes the task ``"idk"``
            of a batch, as ``datamodules.TOFU(refusals=True)`` gives it, else ten sentences of this package.
        refusal_seed: Seed of which row gets which refusal.
        separator: Text put before a refusal, and scored with it.

    Raises:
        ValueError: If a number is out of its range, or, in training, a forget row has no prompt.
        FileNotFoundError: If there is no file ``refusals``.

    References:
        Rafailov et al., "Direct preference optimization: Your language model is secretly a reward model", arXiv
        2305.18290, equation 7; with refusals Maini et al., arXiv 2401.06121.
    """

    per_row = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        beta: float = 0.1,
        refusals: str | None = None,
        refusal_seed: int = 0,
        separator: str = " ",
        **shared: Unpack[ReferencePolicyArguments],
    ) -> None:
        super().__init__(model, **shared)
        check_positive(beta=beta)
        self.beta = beta
        self.refusals = Refusals(refusals, refusal_seed, separator)

    def compared(self, batch: Batch) -> Sequence[Batch]:
        """Return the forget rows and their refusals."""
        return [batch["forget"], self.refusals.rows(batch, lambda: self.tokenizer)]

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of DPO, summed over rows."""
        answers, refusals = self.compared(batch)
        rejected, log_probs = self.log_ratios(answers)
        self.record_nll("forget", -log_probs.sum(), target_tokens(answers))
        chosen, _ = self.log_ratios(refusals)
        return dpo_loss(chosen, rejected, self.beta).sum()
