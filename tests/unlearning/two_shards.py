"""Runs of two gloo processes that share the weights of a network: `two_shards.py FOLDER`."""

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import LlamaForCausalLM

import lit_modules
from callbacks import AdaptiveLR, SavePretrained
from datamodules import SyntheticLUME
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.core import aggregators, gradients
from lit_modules.unlearning.core.gradients import local
from lit_modules.unlearning.core.sharding import shard
from tests.unlearning.conftest import normalised_difference

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "NGDiff": ("NGDiff", {}),
    "NGDiff-by-task": ("NGDiff", {}),
    "NGDiff-clipped": ("NGDiff", {"clip_norm": 0.5, "buffer": "cpu", "gradient_checkpointing": True}),
    "NGDiff-lora": ("NGDiff", {"peft_config": LORA}),
    "GradientDifference-PCGrad": ("GradientDifference", {"aggregator": aggregators.PCGrad()}),
    "LossNorm": ("LossNorm", {}),
    "GradientAscent": ("GradientAscent", {}),
}
"""Runs of an epoch at a fixed rate, by name: the class and its arguments."""


def tiny() -> LlamaForCausalLM:
    """Build the same network at each call; 3 rows of an uneven vocabulary make uneven shards."""
    seed_everything(0, verbose=False)
    return small_llama(301, hidden_size=16, num_layers=2, num_heads=2)


def trainer(folder: Path, devices: int, **arguments: Any) -> Trainer:
    strategy: Any = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if devices > 1 else "auto"
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"strategy": strategy, "max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    settings["limit_train_batches"] = 4  # two steps
    return Trainer(accelerator="cpu", devices=devices, default_root_dir=folder, **quiet, **(settings | arguments))


@cache
def data(folder: Path, devices: int, by_task: bool = False) -> SyntheticLUME:
    """Return two documents of each set and task, of which a step sees four rows of each set, or of each task."""
    sizes: dict[str, Any] = {"num_documents": 2, "vocab_size": 301, "batch_size": 4 // devices, "eval_batch_size": 5}
    return SyntheticLUME(root=str(folder / "data"), by_task=by_task, **sizes)


class Holding(lit_modules.NGDiff):
    """Keeps the weights that a forward pass gathers."""

    def configure_model(self) -> None:
        super().configure_model()
        self.model.set_reshard_after_forward(False)


def module(method: str = "NGDiff", rate: float = 1e-2, **arguments: Any) -> Any:
    if isinstance(arguments.get("peft_config"), dict):
        arguments["peft_config"] = LoraConfig(**arguments["peft_config"])
    found = Holding if method == "Holding" else getattr(lit_modules, method)
    optimizer = arguments.pop("optimizer", torch.optim.SGD)
    return found(tiny(), accumulate=2, optimizer=lambda parameters: optimizer(parameters, lr=rate), **arguments)


def weights_of(module: LightningModule) -> dict[str, Tensor]:
    """Return whole weights, on every rank."""
    state = module.model.state_dict()  # type: ignore[union-attr, operator]
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}


def train(folder: Path, devices: int, case: str) -> dict[str, Any]:
    """Train a case; return the weights, the number of steps and what the last one logged."""
    method, arguments = CASES[case]
    trained = module(method, **arguments)
    runner = trainer(folder, devices)
    rows = data(folder, devices, by_task="by-task" in case)
    seed_everything(0, verbose=False)  # of the adapters; Lightning starts it anew in a group of processes
    runner.fit(trained, datamodule=rows)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    parameters = list(trained.parameters())
    counts = {"parameters": len(parameters), "shards": sum(isinstance(each, DTensor) for each in parameters)}
    counts["bytes"] = sum(local(each).nbytes for each in parameters)
    return {"weights": weights_of(trained), "steps": runner.global_step, "logged": logged, **counts}


def adapt(folder: Path, devices: int, holds: bool = False, **arguments: Any) -> dict[str, Any]:
    """Train with a rate that adapts; return weights, rate and the number of accepted probes.

    With ``holds`` the network keeps gathered weights after a forward pass, as FSDP2 does with those of its root.
    """
    # at this rate the loss is a rough parabola only
    probe = AdaptiveLR(**{"period": 1, "r2_min": 0.9, "rule": "official", "probe_batch": "current", **arguments})
    trained = module("Holding" if holds else "NGDiff", rate=3e-2, optimizer=torch.optim.AdamW)
    runner = trainer(folder, devices, max_epochs=2, callbacks=[probe])
    runner.fit(trained, datamodule=data(folder, devices))
    rate = runner.optimizers[0].param_groups[0]["lr"]
    return {"weights": weights_of(trained), "rate": rate, "accepted": probe.accepted, "probes": probe.probes}


def plain(folder: Path, devices: int) -> dict[str, Tensor]:
    """Train as `adapt` does, without the callback."""
    trained = module(rate=3e-2, optimizer=torch.optim.AdamW)
    trainer(folder, devices, max_epochs=2).fit(trained, datamodule=data(folder, devices))
    return weights_of(trained)


def resume(folder: Path, devices: int, lora: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train in one go, and stopped after an epoch and resumed; return the weights of both."""

    def fresh() -> Any:
        return module(optimizer=torch.optim.AdamW, **({"peft_config": LORA} if lora else {}))

    short = {"limit_train_batches": 2}  # a step an epoch
    whole = fresh()
    trainer(folder, devices, max_epochs=2, **short).fit(whole, datamodule=data(folder, devices))
    saver = ModelCheckpoint(dirpath=folder / f"saved-{lora}", every_n_epochs=1, filename="{epoch}")
    stopped = fresh()
    first = trainer(folder, devices, callbacks=[saver], enable_checkpointing=True, **short)
    first.fit(stopped, datamodule=data(folder, devices))
    again = fresh()
    for parameter in again.model.parameters():
        parameter.data.mul_(2 if parameter.requires_grad and not lora else 1)
    trainer(folder, devices, max_epochs=2, **short).fit(
        again, datamodule=data(folder, devices), ckpt_path=str(folder / f"saved-{lora}" / "epoch=0.ckpt")
    )
    return weights_of(whole), weights_of(again)


def evaluate(folder: Path, devices: int) -> dict[str, Any]:
    """Train, save as a folder, validate and test by generation; train again after it."""
    trained = module(metric=LUMEScore(), max_new_tokens=4)
    rows = data(folder, devices)
    runner = trainer(folder, devices, limit_val_batches=1.0, callbacks=[SavePretrained(str(folder / f"out-{devices}"))])
    runner.fit(trained, datamodule=rows)
    losses = {name: float(runner.callback_metrics[f"val/{name}_loss"]) for name in ("forget", "retain")}
    runner.test(trained, datamodule=rows, verbose=False)
    return {"losses": losses, "record": trained.results(), "answer": trained.generate("Who", 3)}


def numbers() -> dict[str, Any]:
    """Take norms of shards, and count the all-reduces."""
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    whole = [[torch.randn(*shape, generator=generator) for shape in ((5, 3), (1, 4), (2,))] for _ in range(2)]
    # the first two are sharded, one of them unevenly and one on a single rank; the last is whole on both ranks
    shards: list[list[Tensor]] = [
        [*(distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in each[:2]), each[2]] for each in whole
    ]
    count, reduce = [0], dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return reduce(*args, **kwargs)

    dist.all_reduce = counted
    found = {}
    for name, function in (
        ("norm", lambda a, b: [gradients.global_norm(a)]),
        ("both", gradients.norm_and_product),
    ):
        count[0] = 0
        values = [value.item() for value in function(*shards)]
        found[name] = (values, [value.item() for value in function(*whole)], count[0])
    dist.all_reduce = reduce
    difference = normalised_difference(*shards)
    rebuilt = [each.full_tensor() if isinstance(each, DTensor) else each for each in difference]
    pairs = zip(rebuilt, normalised_difference(*whole), strict=True)
    found["apart"] = max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)
    return found


def infer_first() -> float:
    """Run a sharded network in inference mode, as a validation on GPUs does, and then train it; return the loss."""
    network = tiny()
    shard(network, init_device_mesh("cpu", (2,)))
    ids = torch.arange(8).view(2, 4)
    with torch.inference_mode():
        before = network(input_ids=ids, labels=ids).loss.item()
    loss = network(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.item() == before
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.inference_mode():
        network(input_ids=ids)
    network(input_ids=ids, labels=ids).loss.backward()
    return before


class Broken(lit_modules.NGDiff):
    """Meets a loss that is not finite at the second step."""

    def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
        loss: Tensor = super().accumulate_gradient(group, task, scale)
        return loss * math.nan if self.global_step == 1 else loss


def refusals(folder: Path) -> dict[str, str]:
    """Return the sentences that refuse what cannot run on shards, and that of a broken loss."""
    found = {}
    given: dict[str, Any] = {"data_parallel_size": 1, "tensor_parallel_size": 2}
    for name, made, strategy in (
        ("broken", Broken(tiny()), {}),
        ("method", lit_modules.NPO(tiny()), {}),
        ("compile", module(compile=True), {}),
        ("tensor", module(), {"strategy": ModelParallelStrategy(**given)}),
    ):
        try:
            trainer(folder, 2, **strategy).fit(made, datamodule=data(folder, 2))
        except (ValueError, FloatingPointError) as error:
            found[name] = str(error)
    adapted = module(peft_config=LORA)
    trainer(folder, 2, max_steps=1).fit(adapted, datamodule=data(folder, 2))
    try:
        adapted.save_pretrained(str(folder / "merged"), merge=True)
    except ValueError as error:
        found["merge"] = str(error)
    adapted.save_pretrained(str(folder / "adapter"))
    return found


def half(folder: Path, devices: int, lora: bool) -> dict[str, Any]:
    """Train in mixed precision, float32 weights, or float32 adapters on frozen bfloat16 weights."""
    found = lit_modules.NGDiff(
        tiny().bfloat16() if lora else tiny(),  # type: ignore[arg-type]
        peft_config=LoraConfig(**LORA) if lora else None,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    )
    seen = set()
    for block in found.model.get_decoder().layers:
        block.register_forward_pre_hook(lambda block, args: seen.add(str(block.mlp.up_proj.weight.dtype)))
    rows = data(folder, devices)
    seed_everything(0, verbose=False)
    trainer(folder, devices, precision="bf16-mixed").fit(found, datamodule=rows)
    kept = sorted({str(parameter.dtype) for parameter in found.parameters()})
    return {"kept": kept, "computed": sorted(seen), "weights": weights_of(found)}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results: dict[str, Any] = {case: train(folder, 2, case) for case in CASES}
    results["adaptive"] = adapt(folder, 2)
    results["adaptive-holding"] = adapt(folder, 2, holds=True)
    results["rejected"] = adapt(folder, 2, r2_min=1.0)["weights"]
    results["plain"] = plain(folder, 2)
    results["resumed"] = resume(folder, 2, lora=False)
    results["resumed-lora"] = resume(folder, 2, lora=True)
    results["evaluated"] = evaluate(folder, 2)
    results["numbers"] = numbers()
    results["inferred"] = infer_first()
    results["refused"] = refusals(folder)
    results["half"] = half(folder, 2, lora=False)
    results["half-lora"] = half(folder, 2, lora=True)
    torch.save(results, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()  # otherwise gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
