"""CE-U, cross-entropy unlearning."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.losses import IGNORED
from lit_modules.unlearning.core.objectives import masked_self_loss, scored_logits


class CEU(TwoObjectives):
    """Unlearn by learning from the model itself with the true token masked out.

    The forget objective is the cross-entropy to the model's own distribution, detached, in which the true token has no
    probability and the others share its part. Its gradient vanishes as the true token becomes improbable, so there is
    no retain term by default. The first target token of each answer is left out, as in the paper, which says so in a
    footnote of its training settings.

    Batch and logged names are those of :class:`~lit_modules.NGDiff`, and ``train/forget_objective``; see
    :class:`~lit_modules.unlearning.core.forget_retain.TwoObjectives`.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        skip_tokens: Target tokens at the beginning of each row that are left out.
        forget_weight: Factor of the forget objective, ``gamma``.
        retain_weight: Factor of the retain objective, ``alpha``.
        retain_term: The retain objective: the NLL per target token, or ``KL(p_ref || p_theta)`` per attended position,
            which without adapters holds a frozen copy of the model.
        combine: Rule that combines the two gradients, such as ``lit_modules.unlearning.core.aggregators.Normalised``;
            ``None`` adds them.
        buffer: With ``combine``, where the forget gradient waits: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Yang, "CE-U: Cross entropy unlearning", arXiv 2503.01224.
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
        skip_tokens: int = 1,
        forget_weight: float = 1.0,
        retain_weight: float = 0.0,
        retain_term: Literal["nll", "kl"] = "nll",
        combine: GradientCombiner | None = None,
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
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if skip_tokens < 0:
            raise ValueError(f"skip_tokens must not be negative, got {skip_tokens}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.skip_tokens = skip_tokens

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the cross-entropy to the masked distribution, summed over the tokens that count."""
        logits, labels, _ = scored_logits(self.network, batch["forget"])
        self.note_nll("forget", cross_entropy(logits.detach(), labels, reduction="sum"), len(labels))
        scored = batch["forget"]["labels"][:, 1:].ne(IGNORED)
        counts = scored & (scored.cumsum(1) > self.skip_tokens)
        kept = counts[scored]
        return masked_self_loss(logits[kept], labels[kept]).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of target tokens behind the first ones of each row."""
        scored = batch["forget"]["labels"][:, 1:].ne(IGNORED)
        count: Tensor = (scored.sum(1) - self.skip_tokens).clamp(min=0).sum()
        return count
