"""IDK, fine-tuning on refusals."""

from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import LossArguments
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.refusals import Refusals
from lit_modules.utils.arguments import Unpack


class IDK(ForgetRetainLoss):
    """Unlearn by learning to decline: the prompts of the forget rows get refusals as answers.

    The loss is ``NLL(refusals) + NLL(retain)``, each a mean over its own target tokens; the reference code takes one
    mean over both sets, concatenated. Each row's refusal is drawn uniformly, once, from the seed and the row's content.
    The NLL of the forget rows' own answers is not computed, so ``train/forget_loss`` is not logged, and
    ``callbacks.ForgetStopping`` has nothing to watch. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        refusals: File of refusals, one per line, such as ``idontknow.jsonl`` of TOFU; ``None`` takes the task ``"idk"``
            of a batch, as ``datamodules.TOFU(refusals=True)`` gives it, else ten sentences of this package.
        refusal_seed: Seed of which row gets which refusal.
        separator: Text put before a refusal, and scored with it.

    Raises:
        ValueError: If a number is out of its range, or, in training, a forget row has no prompt.
        FileNotFoundError: If there is no file ``refusals``.

    References:
        Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv 2401.06121, preference optimization.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        refusals: str | None = None,
        refusal_seed: int = 0,
        separator: str = " ",
        **shared: Unpack[LossArguments],
    ) -> None:
        super().__init__(model, **shared)
        self.refusals = Refusals(refusals, refusal_seed, separator)

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the NLL of the refusals, summed over their target tokens."""
        return summed_nll(self.network, self.refusals.rows(batch, lambda: self.tokenizer))

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of the refusals' target tokens."""
        return target_tokens(self.refusals.rows(batch, lambda: self.tokenizer))
