"""NGDiff, the normalised gradient difference."""

import warnings
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.base import TwoTaskUnlearning
from lit_modules.unlearning.causal_lm import default_optimizer
from lit_modules.unlearning.gradients import PairStatistics, normalised_weights


class NGDiff(TwoTaskUnlearning):
    """Unlearn along the difference of two normalised gradients.

    Each step moves by the retain gradient over its norm, less the forget gradient over its norm:
    ``d = g_R / ||g_R|| - g_F / ||g_F||``. The norms are global (one number per task), taken in float32 once per
    optimizer step, after accumulation and after averaging over ranks. To first order such a step never raises the
    retain loss and never lowers the forget loss, whatever the two gradients are. No reference model is needed.

    A batch is ``{"forget": task, "retain": task}``; a task maps ``input_ids``, ``attention_mask`` and ``labels`` to
    integers of shape ``(batch, tokens)``; a label of -100 is not scored. Each step logs ``train/forget_loss``,
    ``train/retain_loss`` (nats per target token), ``train/forget_norm``, ``train/retain_norm``, ``train/cosine``,
    ``train/retain_descent`` (``g_R . d``, never negative), ``train/forget_descent`` (``g_F . d``, never positive) and
    ``train/lr``. Tried on one device and with DDP.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step; the gradients are normalised once per step.
        clip_norm: Largest norm of the combined gradient; ``None`` leaves it alone. The norm is at most 2.
        eps: Smallest gradient norm that counts; below it, or when not finite, that task's term is dropped.
        buffer: Where the forget gradient waits for the retain gradient: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from lit_modules.networks import small_llama
        >>> module = NGDiff(small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2))
        >>> module.automatic_optimization
        False

    References:
        Bu et al., "Unlearning as multi-task optimization: A normalized gradient difference approach with an adaptive
        learning rate", arXiv 2410.22086.
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
        eps: float = 1e-12,
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
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        if clip_norm is not None and clip_norm < 2:
            warnings.warn(
                f"clip_norm={clip_norm} shortens the direction of NGDiff, whose norm sqrt(2 - 2 cos) is at most 2; "
                "leave clip_norm out, or give 2 or more.",
                stacklevel=2,
            )
        self.save_hyperparameters(ignore=self._injected(model, tokenizer))
        self.eps = eps

    def weights(self, statistics: PairStatistics) -> tuple[float, float]:
        """Return ``(1 / n_R, 1 / n_F)``, with 0 for a gradient that vanishes or is not finite."""
        return normalised_weights(statistics, self.eps)
