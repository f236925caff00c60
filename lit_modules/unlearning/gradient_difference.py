"""GDiff, the difference of two gradients with fixed weights."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner, check_combiner
from lit_modules.unlearning.core.base import TwoTaskUnlearning
from lit_modules.unlearning.core.causal_lm import default_optimizer
from lit_modules.unlearning.core.gradients import PairStatistics


class GradientDifference(TwoTaskUnlearning):
    """Unlearn along a weighted difference of the retain and the forget gradient.

    Each step moves by ``d = retain_weight * g_R - forget_weight * g_F``, the gradient of
    ``retain_weight * NLL(retain) - forget_weight * NLL(forget)``. As the forget loss grows so does its gradient, which
    then dominates: ``g_R . d`` is negative, and the step raises the retain loss, whenever
    ``forget_weight * n_F * cos > retain_weight * n_R``. A ``combine`` replaces the sum: ``PCGrad``, ``MGDA``, ``IMTLG``
    or ``Projected`` of ``lit_modules.unlearning.core.aggregators`` joins the gradients of the two weighted losses, and
    ``Normalised`` makes this NGDiff.

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
        retain_weight: Factor of the retain loss, ``alpha``.
        forget_weight: Factor of the forget loss, ``gamma``.
        combine: Rule that combines the gradients of the two weighted losses, such as
            ``lit_modules.unlearning.core.aggregators.PCGrad``; ``None`` takes their difference.
        buffer: Where the forget gradient waits for the retain gradient: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If ``combine`` is no rule.

    References:
        Liu et al., "Continual learning and private unlearning", arXiv 2203.12817; the baseline of arXiv 2410.22086.
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
        retain_weight: float = 1.0,
        forget_weight: float = 1.0,
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
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        for name, weight in (("retain_weight", retain_weight), ("forget_weight", forget_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {weight}.")
        check_combiner(combine)
        self.save_hyperparameters(ignore=[*self._injected(model, tokenizer), "combine"])
        self.combine = combine
        self.retain_weight = retain_weight
        self.forget_weight = forget_weight

    def weights(self, statistics: PairStatistics) -> tuple[float, float]:
        """Return the two fixed weights, or what ``combine`` makes of them."""
        if self.combine is None:
            return self.retain_weight, self.forget_weight
        return self.combine.of_weighted(statistics, self.retain_weight, self.forget_weight)
