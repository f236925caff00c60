"""LossNorm, the difference of gradients over their losses."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import loss_normalised_weights
from lit_modules.unlearning.core.base import TwoTaskUnlearning
from lit_modules.unlearning.core.causal_lm import default_optimizer
from lit_modules.unlearning.core.gradients import PairStatistics


class LossNorm(TwoTaskUnlearning):
    """Unlearn along the difference of two gradients, each over its loss.

    Each step moves by ``d = g_R / L_R - g_F / L_F``, the gradient of ``log L_R - log L_F``, with the mean NLL per
    target token of the retain and of the forget rows. Like NGDiff it does not depend on the scale of the losses; unlike
    it, a step may raise the retain loss: ``g_R . d`` is negative whenever ``n_F cos / L_F > n_R / L_R``.

    Batch, logged names and strategies are those of :class:`~lit_modules.NGDiff`.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        eps: Smallest loss in nats that counts; below it, or when not finite, that task's term is dropped.
        buffer: With ``combine``, where the forget gradient waits: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    References:
        A comparison of Bu et al., arXiv 2410.22086; named there, its formula not checked against the text.
    """

    shardable = True

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
        self.save_hyperparameters(ignore=self._injected(model, tokenizer))
        self.eps = eps

    def weights(self, statistics: PairStatistics) -> tuple[float, float]:
        """Return ``(1 / L_R, 1 / L_F)``, with 0 for a loss that vanishes."""
        return loss_normalised_weights(statistics, self.eps)
