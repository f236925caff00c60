"""KL minimisation: ascent on the forget rows, and the old distribution on the retain rows."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.losses import summed_nll, target_tokens


class KLMinimisation(TwoObjectives):
    """Unlearn by gradient ascent while the distribution on the retain rows stays that of the reference.

    The loss is ``-NLL(forget) + KL(p_ref || p_theta)``, the KL averaged over all attended positions of the retain rows,
    prompts too. The reference code averages over padding as well, which makes the term smaller the more a batch is
    padded.

    The reference is the network with its adapters off, else a frozen copy that is made once and is no part of the
    checkpoint. Batch and logged names are those of :class:`~lit_modules.NGDiff`, and ``train/forget_objective``; see
    :class:`~lit_modules.unlearning.core.forget_retain.TwoObjectives`. ``train/retain_objective`` is the KL.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        forget_weight: Factor of the forget objective, ``gamma``.
        retain_weight: Factor of the retain objective, ``alpha``.
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
        Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv 2401.06121, KL minimization.
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
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
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
            "kl",
            combine,
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the negative NLL of the forget rows, summed over target tokens."""
        nll = summed_nll(self.network, batch["forget"])
        self.note_nll("forget", nll, target_tokens(batch["forget"]))
        return -nll
