"""The memory on paper is that of a step that runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.cli import main
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.memory import Memory, meta_network, step_memory
from lit_modules.unlearning.core.sharding import blocks_of
from lit_modules.unlearning.ngdiff import NGDiff
from tests.unlearning.conftest import lora

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Counted(NGDiff):
    """Counts the bytes of what a step holds."""

    def buffered(self, gradient: list[Tensor | None]) -> list[Tensor | None]:
        kept = super().buffered(gradient)
        self.waiting = size(tensor for tensor in kept if tensor is not None and self.buffer != "cpu")
        return kept

    def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
        loss = super().accumulate_gradient(group, task, scale)
        self.gradients = size(parameter.grad for parameter in self.parameters())
        return loss

    def on_train_batch_end(self, *arguments: Any) -> None:
        (optimizer,) = self.trainer.optimizers
        self.state = size(value for state in optimizer.state.values() for value in state.values() if value is not None)


@pytest.mark.parametrize(
    ("optimizer", "buffer", "adapted"),
    [("sgd", "device", False), ("momentum", "bfloat16", True), ("adamw", "cpu", False), ("adamw", "device", True)],
)
def test_count_is_that_of_a_step(optimizer: Any, buffer: Any, adapted: bool, bench: Any) -> None:
    config = lora(target_modules=["q_proj", "down_proj"]) if adapted else None
    network = bench.network().bfloat16() if adapted else bench.network()
    module = Counted(network, buffer=buffer, peft_config=config, optimizer=OPTIMIZERS[optimizer])
    bench.fit(module, bench.pairs(8))
    memory = step_memory(module.model, optimizer, buffer)
    assert memory == Memory(size(module.model.parameters()), module.gradients, module.waiting, module.state, 0)
    assert memory.total == memory.weights + memory.gradients + memory.buffer + memory.optimizer
    # the same from the shapes alone
    bench.network().save_pretrained(bench.folder / "model")
    dtype, rank = (torch.bfloat16, 2) if adapted else (torch.float32, 0)
    shapes = meta_network(str(bench.folder / "model"), dtype, rank, ["q_proj", "down_proj"])
    assert all(weight.is_meta for weight in shapes.parameters())
    assert step_memory(shapes, optimizer, buffer) == memory


@pytest.mark.parametrize(("name", "weights"), [("1b", 1_235_814_400), ("7b", 6_738_415_616), ("70b", 68_976_648_192)])
def test_shapes_have_the_published_numbers_of_weights(name: str, weights: int) -> None:
    network = meta_network(name)
    assert sum(weight.numel() for weight in network.parameters()) == weights
    one, many = step_memory(network), step_memory(network, devices=8)
    assert (one.weights, one.gradients, one.buffer, one.working) == (4 * weights, 4 * weights, 4 * weights, 0)
    assert one.optimizer == 8 * weights + 4 * len(list(network.parameters()))
    assert many.weights * 8 == one.weights  # every first dimension is a multiple of 8


def test_shares_are_those_of_the_device_with_the_most() -> None:
    network = torch.nn.Linear(3, 5)  # rows 3 + 2, and a bias of as many
    memory = step_memory(network, "sgd", devices=2)
    assert (memory.weights, memory.gradients) == (4 * (3 * 3 + 3), 4 * (3 * 3 + 3))
    assert memory.working == 2 * 4 * (3 * 5 + 5)  # no blocks: all weights, and their gradients


def test_working_memory_by_hand(bench: Any) -> None:
    network = bench.network()
    everything = sum(weight.numel() for weight in network.parameters())
    (block,) = network.model.layers
    inside = sum(weight.numel() for weight in block.parameters())
    assert step_memory(network, mixed=True).working == 2 * everything
    assert step_memory(network, mixed=True, gradient_checkpointing=True).working == 2 * everything  # a single block
    assert step_memory(network, devices=2).working == 4 * 2 * everything
    assert step_memory(network, devices=2, mixed=True).working == 2 * 2 * everything
    for weight in block.parameters():
        weight.requires_grad_(False)
    assert step_memory(network, devices=2).working == 4 * (2 * everything - inside)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_memory(nn.Linear(1, 1), optimizer="lion"), "must be 'sgd', 'momentum', 'adamw', got 'lion'"),  # type: ignore[arg-type]
        (lambda: step_memory(nn.Linear(1, 1), buffer="disk"), "'device', 'bfloat16', 'cpu' or 'none', got 'disk'"),  # type: ignore[arg-type]
        (lambda: step_memory(nn.Linear(1, 1), devices=0), "devices must be at least 1, got 0"),
        (lambda: meta_network("1b", rank=-1), "rank must not be negative, got -1"),
        (lambda: meta_network("./nothing"), "There is no model folder"),
        (lambda: meta_network("3b"), "'3b' must be one of 1b, 7b, 70b, or the name or folder of a model"),
    ],
)
def test_absurd_arguments_and_unknown_models_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_command_prints_a_row_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "1b", "7b", "--devices", "1", "8", "--mixed", "--gradient-checkpointing"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["1b", "1b", "7b", "7b"]
    cells = dict(zip(head.strip("| ").split(" | "), rows[2].strip("| ").split(" | "), strict=True))
    assert (cells["devices"], cells["weights, GiB"], cells["optimizer"]) == ("1", "25.1", "50.2")
    assert main(["memory", "7b", "--rank", "16", "--targets", "q_proj,v_proj", "--dtype", "bfloat16"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[2] == f"{2 * 32 * 16 * (4096 + 4096):.3g}"


def test_blocks_are_the_outermost_repeated_parts() -> None:
    network = small_llama(64, 16, num_layers=3, num_heads=2)
    assert blocks_of(network) == list(network.model.layers)
    parts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])
    assert blocks_of(nn.Sequential(parts, nn.Linear(2, 2))) == list(parts)
