"""Arguments that the unlearning modules share, declared once for type checkers, and checks of numbers.

The base classes document them and give their defaults: :class:`~.causal_lm.CausalLM`,
:class:`~.gradient_pair.Unlearning`, :class:`~.gradient_pair.GradientPairUnlearning`,
:class:`~.forget_retain.ForgetRetainLoss` and :class:`~.reference.ReferencePolicyLoss`.
"""

import math
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
    from peft import PeftConfig
    from torchmetrics import Metric
    from transformers import PreTrainedTokenizerBase

    from lit_modules.unlearning.core.gradients import GradientAggregator


class CausalLMArguments(TypedDict, total=False):
    """Arguments of every module around a causal language model."""

    tokenizer: "str | PreTrainedTokenizerBase | None"
    model_kwargs: dict[str, Any] | None
    peft_config: "PeftConfig | None"
    dtype: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    compile: bool
    metric: "Metric | None"
    max_new_tokens: int
    optimizer: "OptimizerCallable"
    scheduler: "LRSchedulerCallable | None"


class UnlearningArguments(CausalLMArguments, total=False):
    """Arguments of every unlearning method."""

    accumulate: int
    clip_norm: float | None


class GradientPairArguments(UnlearningArguments, total=False):
    """Arguments of the methods that combine two gradients."""

    buffer: Literal["device", "bfloat16", "cpu"]


class ForgetRetainArguments(GradientPairArguments, total=False):
    """Arguments of the methods with a forget loss beside a retain loss."""

    aggregator: "GradientAggregator | None"


class WeightedArguments(ForgetRetainArguments, total=False):
    """The same, of methods whose two losses weigh 1 by default."""

    forget_weight: float
    retain_weight: float


class ForgetLossArguments(ForgetRetainArguments, total=False):
    """The same, of methods whose retain loss weighs something else by default."""

    forget_weight: float
    retain_term: Literal["nll", "kl"]


class RetainLossArguments(ForgetRetainArguments, total=False):
    """The same, of methods whose forget loss weighs something else by default."""

    retain_weight: float
    retain_term: Literal["nll", "kl"]


class LossArguments(WeightedArguments, total=False):
    """The same, of methods whose two losses weigh 1 by default and that leave the retain term to the user."""

    retain_term: Literal["nll", "kl"]


class ReferencePolicyArguments(LossArguments, total=False):
    """The same, of methods that compare rows with a reference policy."""

    cache_dir: str | None


def check_positive(**numbers: float) -> None:
    """Raise a ``ValueError`` that names an argument which is not positive and finite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}.")


def check_not_negative(**numbers: float) -> None:
    """Raise a ``ValueError`` that names an argument which is negative or not finite."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {number}.")
