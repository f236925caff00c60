"""Tiny models, batches and trainers of the unlearning tests."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lit_modules.networks import small_llama
from lit_modules.unlearning.core.gradients import Gradient, PairStatistics, combine_, global_norm, norm_and_product
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.unlearning.ngdiff import NGDiff, normalised_weights
from lit_modules.unlearning.rmu import RMU

Task = dict[str, Any]
Optimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**({"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | changes))


def make_task(rows: int, seed: int, tokens: int = 12) -> Task:
    """Draw a task whose rows have different numbers of targets."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (rows, tokens), generator=generator)
    labels = ids.clone()
    for row in range(rows):
        labels[row, : 2 + row % 5] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "id": [f"row-{seed}-{row}" for row in range(rows)],
    }


def cut(task: Task, size: int) -> list[Task]:
    return [{key: value[i : i + size] for key, value in task.items()} for i in range(0, len(task["id"]), size)]


def pair_statistics(retain: Gradient, forget: Gradient) -> PairStatistics:
    norm, product = norm_and_product(retain, forget)
    return PairStatistics(norm.item(), global_norm(forget).item(), product.item())


def normalised_difference(retain: Gradient, forget: Gradient) -> list[Tensor | None]:
    """Return NGDiff's direction as a step computes it."""
    copied = [None if tensor is None else tensor.clone() for tensor in retain]
    return combine_(copied, forget, *normalised_weights(pair_statistics(retain, forget)))


def gradient_of(network: Any, loss: Tensor) -> Tensor:
    """Return the gradient of a loss over all weights as one vector."""
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    pairs = zip(gradients, network.parameters(), strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])


def mean_nll(network: Any, task: Task) -> Tensor:
    return summed_nll(network, task) / target_tokens(task)


class Overflowing(NGDiff):
    """Has an infinite gradient of some tasks."""

    broken: tuple[str, ...] = ("forget",)

    def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
        loss = super().accumulate_gradient(group, task, scale)
        first = self.trainable_parameters()[0].grad
        if task in self.broken and first is not None:
            first.view(-1)[0] = math.inf
        return loss


class Workbench:
    """Builds networks, data and trainers that are the same at each call."""

    forget = make_task(24, seed=1)
    retain = make_task(24, seed=2)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def network(self, seed: int = 0, layers: int = 1) -> LlamaForCausalLM:
        seed_everything(seed, verbose=False)
        return small_llama(vocab_size=64, hidden_size=16, num_layers=layers, num_heads=2)

    def pairs(self, size: int) -> list[dict[str, Task]]:
        pairs = zip(cut(self.forget, size), cut(self.retain, size), strict=True)
        return [{"forget": forget, "retain": retain} for forget, retain in pairs]

    def rows(self, method: Any, size: int = 8) -> list[Any]:
        """Return the batches that a method trains on."""
        return cut(self.forget, size) if method is CausalLMFineTuning else self.pairs(size)

    def labelled(self) -> "DataLoader[Any]":
        """Return the forget rows for validation."""
        return self.loader([{**self.forget, "split": ["forget"] * 24}])

    def build(self, method: Any, model: Any, **arguments: Any) -> Any:
        extra = {"layer": 0} if method is RMU else {}
        return method(model, tokenizer=self.tokenizer(), **extra, **({"optimizer": adamw} | arguments))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return a tokenizer of some words whose ids the network knows."""
        words = ["[END]", "I", "do", "not", "know", "say", "cannot", "."]
        vocabulary = {word: number for number, word in enumerate(words)} | {"[UNK]": len(words)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[END]", unk_token="[UNK]")

    def loader(self, data: list[Any]) -> "DataLoader[Any]":
        return DataLoader(data, batch_size=None)  # type: ignore[arg-type]

    def trainer(self, callbacks: Sequence[Callback] = (), **arguments: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": self.folder,
        }
        return Trainer(callbacks=list(callbacks), **(settings | arguments))

    def fit(
        self, module: LightningModule, data: list[Any], callbacks: Sequence[Callback] = (), **arguments: Any
    ) -> Trainer:
        trainer = self.trainer(callbacks, **arguments)
        trainer.fit(module, self.loader(data))
        return trainer

    def change(self, module: Any, data: list[Any]) -> Tensor:
        """Train; return by how much the weights have moved."""
        before = self.vector(module.model)
        self.fit(module, data)
        return self.vector(module.model) - before

    @staticmethod
    def vector(network: torch.nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def sgd() -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.01)
