"""RMU, representation misdirection for unlearning."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.losses import IGNORED
from lit_modules.unlearning.core.objectives import activation_loss
from lit_modules.unlearning.core.reference import frozen_copy


class RMU(TwoObjectives):
    r"""Unlearn by steering the hidden states of the forget rows to a fixed random direction.

    The forget objective is ``|h_l - c u|^2`` and the retain objective ``|h_l - h_l,ref|^2``, each a mean over the
    hidden size and over the rows' scored tokens, or over rows of each row's mean, with ``h_l`` the output of block
    ``l`` and ``u`` a random vector of length 1 with entries of one sign. Only the blocks up to ``l`` are run, and only
    what the objectives reach is trained; what lies above stays frozen and is no part of the checkpoint.

    The reference is the network with its adapters off, else a frozen copy of the lower blocks that is made once and is
    no part of the checkpoint. No NLL is computed, so neither ``train/forget_loss`` nor ``train/retain_loss`` is logged,
    and ``callbacks.ForgetStopping`` has nothing to watch. Batch and strategies are those of
    :class:`~lit_modules.NGDiff`; see :class:`~lit_modules.unlearning.core.forget_retain.TwoObjectives`. The defaults
    are those of the reference framework; the authors use a ``coefficient`` of 6.5 or 20 and a ``retain_weight`` of 100
    to 1200 with ``train_only`` the down-projections of three blocks.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        layer: Number of the block, ``l``, from 0.
        coefficient: Length of the target, ``c``.
        train_only: Regular expressions of the names of the parameters to train, such as
            ``layers\.(5|6|7)\.mlp\.down_proj``; ``None`` trains all that the objectives reach.
        direction_seed: Seed of the direction ``u``.
        average: Whether a long row weighs more: ``"tokens"`` takes one mean over all scored tokens, ``"rows"`` the mean
            over rows of each row's mean. The reference framework's loss is the latter where all rows are equally long;
            else it is the mean of the rows' sums times the mean of one over their lengths.
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
        ValueError: If a number is out of its range, the model has no block ``layer``, or no parameter is left to train.

    References:
        Li et al., "The WMDP benchmark: Measuring and reducing malicious use with unlearning", arXiv 2403.03218.
    """

    needs_network = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        layer: int = 7,
        coefficient: float = 2.0,
        train_only: tuple[str, ...] | None = None,
        direction_seed: int = 0,
        average: Literal["tokens", "rows"] = "tokens",
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
            False,
            accumulate,
            clip_norm,
            forget_weight,
            retain_weight,
            "nll",
            combine,
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if layer < 0:
            raise ValueError(f"layer must not be negative, got {layer}.")
        if not 0 < coefficient < math.inf:
            raise ValueError(f"coefficient must be positive and finite, got {coefficient}.")
        if average not in ("tokens", "rows"):
            raise ValueError(f"average must be 'tokens' or 'rows', got {average!r}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.layer = layer
        self.coefficient = coefficient
        self.train_only = train_only
        self.direction_seed = direction_seed
        self.average = average

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the squared distance to the target, summed over scored tokens, or over rows."""
        hidden = self._hidden(self.model, batch["forget"])
        drawn = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(self.direction_seed))
        target = (self.coefficient * drawn / drawn.norm()).to(hidden)
        return self._summed(activation_loss(hidden, target), batch["forget"])

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of scored tokens of the forget rows, or of the rows that have some."""
        return self._count(batch["forget"])

    def retain_objective(self, batch: Batch) -> Tensor:
        """Return the squared distance to the reference, summed over scored tokens, or over rows."""
        with self.reference_network() as reference:
            before = self._hidden(reference, batch["retain"])
        return self._summed(activation_loss(self._hidden(self.model, batch["retain"]), before), batch["retain"])

    def retain_count(self, batch: Batch) -> Tensor:
        """Return the number of scored tokens of the retain rows, or of the rows that have some."""
        return self._count(batch["retain"])

    def _summed(self, losses: Tensor, task: Batch) -> Tensor:
        if self.average == "tokens":
            return losses.sum()
        scored = _scored(task)
        return (losses / scored.sum(1)[scored.nonzero()[:, 0]]).sum()

    def _count(self, task: Batch) -> Tensor:
        scored = _scored(task)
        return scored.sum() if self.average == "tokens" else scored.any(1).sum()

    @property
    def _retains_nll(self) -> bool:
        return False

    def _build_network(self) -> None:
        super()._build_network()
        # what the objectives do not reach has no gradient, which data parallel training takes for an error
        with torch.random.fork_rng(devices=[]):
            reached = self._reached()
        for name, parameter in self.model.named_parameters():
            wanted = self.train_only is None or any(re.search(pattern, name) for pattern in self.train_only)
            parameter.requires_grad_(parameter.requires_grad and wanted and id(parameter) in reached)
        if not self.trainable_parameters():
            raise ValueError(
                f"No parameter up to block {self.layer} is left to train with train_only={self.train_only}; a name is "
                f" {next(iter(self.model.named_parameters()))[0]!r}."
            )
        self.strict_loading = all(parameter.requires_grad for parameter in self.model.parameters())

    def _reached(self) -> set[int]:
        """Return the identities of the parameters that the hidden states depend on."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
        hidden = self._hidden(self.model, {"input_ids": token, "attention_mask": token + 1, "labels": token})
        parameters = self.trainable_parameters()
        gradients = torch.autograd.grad(hidden.sum(), parameters, allow_unused=True)
        reached = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        # experts that this one token is not sent to
        _, _, blocks = self._blocks(self.model)
        return reached | {id(p) for block in list(blocks)[: self.layer + 1] for p in block.parameters()}

    def _freeze(self) -> nn.Module:
        with self._lower(self.model):
            return frozen_copy(self.model)

    def _hidden(self, network: Any, task: Batch) -> Tensor:
        """Return the outputs of the block at the scored tokens, of shape ``(scored, size)``."""
        outputs: list[Any] = []
        with self._lower(network) as (inner, block):
            handle = block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            try:
                inner(input_ids=task["input_ids"], attention_mask=task["attention_mask"], use_cache=False)
            finally:
                handle.remove()
        states: Tensor = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        chosen = states[_scored(task)]
        return chosen if chosen.dtype == torch.float64 else chosen.float()

    @contextmanager
    def _lower(self, network: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Take the blocks above off for a while; give the network without its output layer, and the block."""
        base: Any = network.get_base_model() if isinstance(network, PeftModel) else network
        parent, name, blocks = self._blocks(network)
        setattr(parent, name, nn.ModuleList(list(blocks)[: self.layer + 1]))
        try:
            yield base.base_model, blocks[self.layer]
        finally:
            setattr(parent, name, blocks)

    def _blocks(self, network: Any) -> tuple[nn.Module, str, nn.ModuleList]:
        """Return the module that holds the blocks, the name it gives them, and the blocks."""
        number = network.config.num_hidden_layers
        if self.layer >= number:
            raise ValueError(f"layer must lie in [0, {number}), the blocks of the model, got {self.layer}.")
        base = network.get_base_model() if isinstance(network, PeftModel) else network
        for path, module in base.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) in (number, self.layer + 1):
                parent, _, name = path.rpartition(".")
                return base.get_submodule(parent), name, module
        raise ValueError(f"{type(base).__name__} has no list of {number} blocks; RMU asks for one.")


def _scored(task: Batch) -> Tensor:
    scored: Tensor = task["labels"].ne(IGNORED)
    return scored
