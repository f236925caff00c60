"""AltPO, alternate preference optimisation."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from lit_modules.unlearning.core.alternates import INSTRUCTION, OPENING, Alternates, prompt_ids
from lit_modules.unlearning.core.arguments import ReferencePolicyArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.generation import sample
from lit_modules.unlearning.core.losses import target_tokens
from lit_modules.unlearning.core.reference import ReferenceCache, ReferencePolicyLoss
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.random_state import preserved_random_state


def altpo_loss(alternate: Tensor, answer: Tensor, beta: float = 0.1) -> Tensor:
    """Return ``-(2 / beta) log sigmoid(beta (alternate - answer))`` of the log ratios ``log p_theta - log p_ref``.

    Example:
        >>> altpo_loss(torch.tensor([1.0]), torch.tensor([0.0]), beta=2.0)
        tensor([0.1269])
    """
    return softplus(beta * (answer - alternate)) * (2 / beta)  # softplus(-x) = -log sigmoid(x)


class AltPO(ReferencePolicyLoss):
    """Unlearn by preferring other plausible answers, the model's own inventions, to the answers of the forget rows.

    Before the first step the model, as it is, is asked for ``num_alternates`` other versions of each forget row's
    answer, which are drawn at ``temperature``. The forget loss is
    ``-(2 / beta) log sigmoid(beta (log r(alternate) - log r(answer)))``, averaged over rows, with
    ``log r = log p_theta(y|x) - log p_ref(y|x)``, sums over the target tokens. Beside it stands the retain NLL. In
    epoch ``e``, from 0, each row is compared with its alternate number ``e`` modulo ``num_alternates``; the authors'
    epoch goes through all alternates of all rows, so two of theirs are ten of these.

    Alternates are cached in ``cache_dir``, in a file that belongs to the model and the settings, and stand in the
    checkpoint, as the reference's log-probabilities do. A batch with a task ``"alternate"``, the forget rows with other
    answers, is taken as it is. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        beta: Inverse temperature of the preference.
        num_alternates: Alternates of each row.
        instruction: Text put to the model, with ``{question}`` and ``{answer}``. The default is the authors' for
            Llama 2.
        opening: Beginning of the model's answer to it, which is no part of the alternate.
        chat: Whether the instruction is a user's turn of the tokenizer's chat template.
        temperature: Temperature at which alternates are drawn.
        top_p: Smallest probability mass to draw from, in (0, 1]; the authors leave it to the model's own settings.
        max_alternate_tokens: Most tokens of an alternate.
        alternate_seed: Seed of the draws.
        separator: Text put before an alternate, and scored with it; ``""`` for the rows of a chat template.

    Raises:
        ValueError: If a number is out of its range, or, in training, a forget row has no prompt or the tokenizer no end
            of sequence.

    References:
        Mekala et al., "Alternate preference optimization for unlearning factual knowledge in large language models",
        COLING 2025, arXiv 2409.13474.
    """

    per_row = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        beta: float = 0.1,
        num_alternates: int = 5,
        instruction: str = INSTRUCTION,
        opening: str = OPENING,
        chat: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_alternate_tokens: int = 200,
        alternate_seed: int = 0,
        separator: str = " ",
        **shared: Unpack[ReferencePolicyArguments],
    ) -> None:
        super().__init__(model, **shared)
        check_positive(beta=beta)
        self.beta = beta
        self.alternates = Alternates(
            num_alternates,
            instruction=instruction,
            opening=opening,
            chat=chat,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_alternate_tokens,
            seed=alternate_seed,
            separator=separator,
        )

    def compared(self, batch: Batch) -> Sequence[Batch]:
        """Return the forget rows, and the same with each of their alternates."""
        return [batch["forget"], *self.alternates.tasks(batch, lambda: self.tokenizer)]

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of AltPO, summed over rows."""
        answers, *alternates = self.compared(batch)
        rejected, log_probs = self.log_ratios(answers)
        self.record_nll("forget", -log_probs.sum(), target_tokens(answers))
        chosen, _ = self.log_ratios(alternates[self.current_epoch % len(alternates)])
        return altpo_loss(chosen, rejected, self.beta).sum()

    def sample_alternates(self, text: str, seed: int) -> list[str]:
        """Return texts by which the model, as it was before unlearning, goes on from a text."""
        prompt = prompt_ids(text, self.tokenizer, self.alternates.chat).to(self.device)
        with self.start_network() as network, preserved_random_state(self.device, seed):
            answers = sample(
                network,
                prompt,
                self.alternates.number,
                max_new_tokens=self.alternates.max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self._pad_token_id,
                temperature=self.alternates.temperature,
                top_p=self.alternates.top_p,
            )
        return self._decode([answer.tolist() for answer in answers])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the alternates."""
        super().on_save_checkpoint(checkpoint)
        if "lit_modules_reference" in checkpoint:
            checkpoint["lit_modules_reference"]["alternates"] = dict(self.alternates.drawn)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the alternates."""
        super().on_load_checkpoint(checkpoint)
        self.alternates.drawn |= checkpoint.get("lit_modules_reference", {}).get("alternates", {})

    def _compute_all(self, cache: ReferenceCache) -> int:
        """Draw the alternates of all rows before their log-probabilities are computed."""
        self.alternates.open(None if cache.path is None else cache.path.parent, cache.model)

        def draw(batch: Batch) -> int:
            if "alternate" in batch:
                return 0
            return self.alternates.draw(batch, self.tokenizer, self.sample_alternates)

        new = self.visit_rows(draw, "alternate answers to rows") * self.alternates.number
        if self.alternates.useless:
            rank_zero_warn(f"{self.alternates.useless} of {new} alternates are empty or repeat the answer.")
        if self.trainer.world_size > 1:
            parts: list[dict[str, list[str]]] = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.alternates.drawn)
            for part in reversed(parts):  # on all ranks those of the first that has drawn them
                self.alternates.drawn |= part
        self.alternates.save()
        return super()._compute_all(cache)
