"""DPO with refusals as the wanted answers, also called IdkDPO."""

import math
from collections.abc import Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.losses import target_tokens
from lit_modules.unlearning.core.objectives import dpo_loss
from lit_modules.unlearning.core.reference_policy import ReferencedObjectives
from lit_modules.unlearning.core.refusals import read_refusals, refused_rows


class DPO(ReferencedObjectives):
    """Unlearn by preferring refusals to the answers of the forget rows; TOFU's IdkDPO.

    The forget objective is ``-(2 / beta) log sigmoid(beta (log r(refusal) - log r(answer)))``, averaged over rows, with
    ``log r = log p_theta(y|x) - log p_ref(y|x)``, sums over the target tokens. Each row's refusal is drawn uniformly,
    once, from the seed and the row's content; the reference code draws anew at each visit. The factor ``2 / beta`` is
    NPO's; the paper has 1.

    The reference's log-probabilities of answers and refusals are computed once and cached, as with
    :class:`~lit_modules.NPO`. Batch and logged names are those of :class:`~lit_modules.NGDiff`, and
    ``train/forget_objective``; see :class:`~lit_modules.unlearning.core.forget_retain.TwoObjectives`.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        beta: Inverse temperature.
        refusals: File of refusals, one per line, such as ``idontknow.jsonl`` of TOFU; ``None`` takes the task ``"idk"``
            of a batch, as ``datamodules.TOFU(refusals=True)`` gives it, else ten sentences of this package.
        refusal_seed: Seed of which row gets which refusal.
        separator: Text put before a refusal, and scored with it.
        forget_weight: Factor of the forget objective, ``gamma``.
        retain_weight: Factor of the retain objective, ``alpha``.
        retain_term: The retain objective: the NLL per target token, or ``KL(p_ref || p_theta)`` per attended position,
            which without adapters holds a frozen copy of the model.
        combine: Rule that combines the two gradients, such as ``lit_modules.unlearning.core.aggregators.Normalised``;
            ``None`` adds them.
        cache_dir: Folder of the cached log-probabilities; by default ``reference_log_probs`` in the trainer's root
            folder.
        buffer: With ``combine``, where the forget gradient waits: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range, or, in training, a forget row has no prompt.
        FileNotFoundError: If there is no file ``refusals``.

    References:
        Rafailov et al., "Direct preference optimization: Your language model is secretly a reward model", arXiv
        2305.18290, equation 7; with refusals Maini et al., arXiv 2401.06121.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        beta: float = 0.1,
        refusals: str | None = None,
        refusal_seed: int = 0,
        separator: str = " ",
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        retain_term: Literal["nll", "kl"] = "nll",
        combine: GradientCombiner | None = None,
        cache_dir: str | None = None,
        buffer: Literal["device", "bfloat16", "cpu"] = "device",
        metric: Metric | None = None,
        max_new_tokens: int = 256,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            peft_config,
            dtype,
            gradient_checkpointing,
            compile,
            accumulate,
            clip_norm,
            forget_weight,
            retain_weight,
            retain_term,
            combine,
            cache_dir,
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {beta}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.beta = beta
        self.refusals = read_refusals(refusals)
        self.refusals_given = refusals is not None
        self.refusal_seed = refusal_seed
        self.separator = separator

    def compared(self, batch: Batch) -> Sequence[Batch]:
        """Return the forget rows and their refusals."""
        return [batch["forget"], self.refused(batch)]

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of DPO, summed over rows."""
        rejected, log_probs = self.log_ratios(batch["forget"])
        self.note_nll("forget", -log_probs.sum(), target_tokens(batch["forget"]))
        chosen, _ = self.log_ratios(self.refused(batch))
        return dpo_loss(chosen, rejected, self.beta).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of rows."""
        labels: Tensor = batch["forget"]["labels"]
        return labels.new_tensor(len(labels))

    def refused(self, batch: Batch) -> Batch:
        """Return the forget rows with refusals in the place of their answers: the data's own, or made here."""
        return refused_rows(
            batch, lambda: self.tokenizer, self.refusals, self.refusal_seed, self.separator, own=not self.refusals_given
        )
