"""Gradient ascent on the forget loss."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.base import Unlearning
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.gradients import global_norm
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.training_state import check_finite


class GradientAscent(Unlearning):
    """Unlearn by raising the forget loss, ``d = -g_F``, with no regard to the retain set.

    The baseline that collapses: retain knowledge goes with the rest. The retain part of a batch is not touched, so a
    step costs half of one of :class:`~lit_modules.NGDiff`. Each step logs ``train/forget_loss``, ``train/forget_norm``,
    ``train/forget_descent`` and ``train/lr``. With ``callbacks.AdaptiveLR`` the probed loss is the one that is
    minimised, the negative forget NLL.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the gradient; ``None`` leaves it alone.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", arXiv 2210.01504; the
        baseline of arXiv 2410.22086.
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
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        self.save_hyperparameters(ignore=self._injected(model, tokenizer))

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the negative forget gradient into ``.grad``."""
        loss = self.accumulate_gradient(group, "forget").item()
        check_finite(self, {"forget": loss}, self.row_names(group))
        gradients = [parameter.grad for parameter in self.trainable_parameters()]
        norm = global_norm(gradients).item()
        for gradient in gradients:
            if gradient is not None:
                gradient.neg_()
        usable = 0 < norm < float("inf")
        return {
            "train/forget_loss": loss,
            "train/forget_norm": norm,
            "train/forget_descent": -(norm**2),
            "skip": float(not usable),
        }

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the minimised loss for ``callbacks.AdaptiveLR``: the negative forget NLL, summed, and its tokens."""
        return -summed_nll(self.network, batch["forget"]), target_tokens(batch["forget"])
