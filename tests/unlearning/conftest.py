"""Tiny models, batches and trainers of the unlearning tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor as TorchTensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lit_modules.networks import small_llama
from lit_modules.unlearning.core.gradients import Gradient, PairStatistics, combine_, global_norm, norm_and_product
from lit_modules.unlearning.ngdiff import normalised_weights

Task = dict[str, Any]


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


def pair_statistics(retain: Gradient, forget: Gradient) -> PairStatistics:
    norm, product = norm_and_product(retain, forget)
    return PairStatistics(norm.item(), global_norm(forget).item(), product.item())


def normalised_difference(retain: Gradient, forget: Gradient) -> list[TorchTensor | None]:
    """Return NGDiff's direction as a step computes it."""
    copied = [None if tensor is None else tensor.clone() for tensor in retain]
    return combine_(copied, forget, *normalised_weights(pair_statistics(retain, forget)))


def cut(task: Task, size: int) -> list[Task]:
    return [{key: value[i : i + size] for key, value in task.items()} for i in range(0, len(task["id"]), size)]


class Workbench:
    """Builds networks, data and trainers that are the same at each call."""

    forget = make_task(24, seed=1)
    retain = make_task(24, seed=2)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def network(self, seed: int = 0) -> LlamaForCausalLM:
        seed_everything(seed, verbose=False)
        return small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2)

    def pairs(self, size: int) -> list[dict[str, Task]]:
        pairs = zip(cut(self.forget, size), cut(self.retain, size), strict=True)
        return [{"forget": forget, "retain": retain} for forget, retain in pairs]

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

    @staticmethod
    def vector(network: torch.nn.Module) -> TorchTensor:
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def sgd() -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.01)
