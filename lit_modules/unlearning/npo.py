"""NPO, negative preference optimisation."""

import math
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.losses import target_tokens
from lit_modules.unlearning.core.objectives import npo_loss
from lit_modules.unlearning.core.reference_policy import ReferencedObjectives


class NPO(ReferencedObjectives):
    """Unlearn by negative preference optimisation: ascent that ends as a row becomes unlikely.

    The forget objective is ``-(2 / beta) log sigmoid(-beta log r)``, averaged over rows, with
    ``log r = log p_theta(y|x) - log p_ref(y|x)``, sums over the target tokens of a row. Its gradient is that of
    gradient ascent on the row, times ``2 r^beta / (1 + r^beta)``. The log-probabilities are those of the labels:
    differences of raw logits, which a public benchmark's code takes instead, are another loss.

    The reference's log-probabilities are computed once and cached, so no second model is held; with adapters they are
    those of the network with the adapters off. Batch and logged names are those of :class:`~lit_modules.NGDiff`, and
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
        beta: Inverse temperature; as it goes to 0 the method becomes gradient ascent.
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
        ValueError: If a number is out of its range, or, in training, a row turns up that the reference was not asked.

    References:
        Zhang et al., "Negative preference optimization: From catastrophic collapse to effective unlearning", arXiv
        2404.05868, equation 3.
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

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of NPO, summed over rows."""
        ratios, log_probs = self.log_ratios(batch["forget"])
        self.note_nll("forget", -log_probs.sum(), target_tokens(batch["forget"]))
        return npo_loss(ratios, self.beta).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of rows."""
        labels: Tensor = batch["forget"]["labels"]
        return labels.new_tensor(len(labels))
