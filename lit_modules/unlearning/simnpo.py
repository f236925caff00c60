"""SimNPO, negative preference optimisation without a reference."""

import math
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.losses import sequence_nll
from lit_modules.unlearning.core.objectives import simnpo_loss


class SimNPO(TwoObjectives):
    """Unlearn by negative preference optimisation of the mean token likelihood, without a reference model.

    The forget objective is ``-(2 / beta) log sigmoid(beta nll / |y| - beta delta)``, averaged over rows, with ``nll``
    summed over the ``|y|`` target tokens of a row. The defaults are those of the reference framework; the authors' for
    TOFU forget05 are ``beta`` 2.5 and ``forget_weight`` 0.1375. They write the margin outside of the factor,
    ``beta nll / |y| - gamma``, so their ``gamma`` is ``beta * delta``.

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
        beta: Inverse temperature.
        delta: Margin in nats per token.
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
        Fan et al., "Simplicity prevails: Rethinking negative preference optimization for LLM unlearning", arXiv
        2410.07163.
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
        beta: float = 4.5,
        delta: float = 0.0,
        forget_weight: float = 0.125,
        retain_weight: float = 1.0,
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
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {beta}.")
        if not math.isfinite(delta):
            raise ValueError(f"delta must be finite, got {delta}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.beta = beta
        self.delta = delta

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the loss of SimNPO, summed over rows."""
        nll, tokens = sequence_nll(self.network, batch["forget"])
        self.note_nll("forget", nll.sum(), tokens.sum())
        return simnpo_loss(nll / tokens, self.beta, self.delta).sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of rows."""
        labels: Tensor = batch["forget"]["labels"]
        return labels.new_tensor(len(labels))
