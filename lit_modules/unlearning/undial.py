"""UNDIAL, self-distillation with adjusted logits."""

import math
from collections.abc import Iterable
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.objectives import scored_logits, self_distillation_loss


def distillation_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build AdamW at a learning rate of 1e-4 without weight decay."""
    return AdamW(parameters, lr=1e-4, weight_decay=0.0)


class UNDIAL(TwoObjectives):
    """Unlearn by learning from the reference with the true token's logit lowered.

    The forget objective is the cross-entropy to ``softmax(reference logits - beta * one_hot(true token))``, averaged
    over target tokens. The reference code averages over prompts and padding too, where the lowered token is not the
    true one. It has a minimum, so there is no retain term by default.

    The reference is the network with its adapters off, else a frozen copy that is made once and is no part of the
    checkpoint. Batch and logged names are those of :class:`~lit_modules.NGDiff`, and ``train/forget_objective``; see
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
        beta: By how much the true token's logit is lowered.
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
        Dong et al., "UNDIAL: Self-distillation with adjusted logits for robust unlearning in large language models",
        arXiv 2402.10052.
    """

    needs_network = True

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
        beta: float = 10.0,
        forget_weight: float = 1.0,
        retain_weight: float = 0.0,
        retain_term: Literal["nll", "kl"] = "nll",
        combine: GradientCombiner | None = None,
        buffer: Literal["device", "bfloat16", "cpu"] = "device",
        metric: Metric | None = None,
        max_new_tokens: int = 256,
        optimizer: OptimizerCallable = distillation_optimizer,
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
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.beta = beta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the cross-entropy to the adjusted reference, summed over target tokens."""
        with self.reference_network() as reference:
            before, _, _ = scored_logits(reference, batch["forget"])
        logits, labels, _ = scored_logits(self.network, batch["forget"])
        self.note_nll("forget", cross_entropy(logits.detach(), labels, reduction="sum"), len(labels))
        return self_distillation_loss(before, logits, labels, self.beta).sum()
