"""Runs of two gloo processes, for several tests at once: `two_processes.py FOLDER`.

Starting a process takes longer than all that is run in it, so the fixture ``two_processes`` starts the two once.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

import lit_modules
from callbacks import AdaptiveLR, ForgetStopping, GenerationLog
from datamodules import SyntheticLUME
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.core import aggregators

METHODS = ("NGDiff", "GradientDifference", "GradientAscent")
"""Methods that are trained, validated and tested."""
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "NGDiff-by-task": ("NGDiff", {}),
    "GradientDifference-PCGrad": ("GradientDifference", {"aggregator": aggregators.PCGrad()}),
    "KLMinimisation": ("KLMinimisation", {}),
    "NPO": ("NPO", {}),
    "NPO-kl": ("NPO", {"retain_term": "kl"}),
    "NPO-Normalised": ("NPO", {"aggregator": aggregators.Normalised()}),
    "NPO-LossNormalised": ("NPO", {"aggregator": aggregators.LossNormalised()}),
    "NPO-PCGrad": ("NPO", {"aggregator": aggregators.PCGrad()}),
    "NPO-MGDA": ("NPO", {"aggregator": aggregators.MGDA()}),
    "NPO-IMTLG": ("NPO", {"aggregator": aggregators.IMTLG()}),
    "NPO-Projected": ("NPO", {"aggregator": aggregators.Projected()}),
    "SimNPO": ("SimNPO", {}),
    "DPO": ("DPO", {}),
    "AltPO": ("AltPO", {"num_alternates": 2, "max_alternate_tokens": 4}),
    "IDK": ("IDK", {}),
    "RMU": ("RMU", {"layer": 0}),
    "LossNorm": ("LossNorm", {}),
    "WGA": ("WGA", {}),
    "SatImp": ("SatImp", {}),
    "UNDIAL": ("UNDIAL", {}),
    "CEU": ("CEU", {}),
    "PDU": ("PDU", {"warm_up_epochs": 0}),
    "TaskVector": ("TaskVector", {"strength": 1.0}),
}
"""Methods that are trained for an epoch, by the name of the case: the class and its arguments."""


def trainer(folder: Path, devices: int, **arguments: Any) -> Trainer:
    settings = {"accelerator": "cpu", "devices": devices, "strategy": "ddp" if devices > 1 else "auto"} | arguments
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**settings, **quiet, enable_checkpointing=False, default_root_dir=folder)


def unlearn(folder: Path, devices: int, method: str) -> dict[str, Any]:
    """Train a method for some steps with a rate that adapts; return weights and numbers."""
    rows = SyntheticLUME(
        root=str(folder / "data"), num_documents=2, vocab_size=300, batch_size=4 // devices, eval_batch_size=5
    )
    module = getattr(lit_modules, method)(
        tiny(),
        accumulate=2,
        metric=LUMEScore(),
        max_new_tokens=4,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    # an exact minimiser amplifies the rounding of a loss that hardly bends, as it does of these two
    probe = AdaptiveLR(period=2, rule="robust" if method == "NGDiff" else "official")
    runner = trainer(folder, devices, max_epochs=2, callbacks=[probe])
    runner.fit(module, datamodule=rows)
    losses = {name: float(runner.callback_metrics[f"val/{name}_loss"]) for name in ("forget", "retain")}
    runner.test(module, datamodule=rows, verbose=False)
    numbers = {"losses": losses, "record": module.results(), "accepted": probe.accepted, "steps": probe.steps}
    return {"weights": module.model.state_dict(), **numbers}


def tiny() -> LlamaForCausalLM:
    """Build the same network at each call."""
    seed_everything(0, verbose=False)
    return small_llama(300, hidden_size=16, num_layers=1, num_heads=2)


def data(folder: Path, devices: int, by_task: bool) -> SyntheticLUME:
    """Return two documents of each set and task, of which a step sees four rows of each set, or of each task."""
    sizes: dict[str, Any] = {"num_documents": 2, "vocab_size": 300, "batch_size": 4 // devices}
    return SyntheticLUME(root=str(folder / "data"), by_task=by_task, **sizes)


def train(folder: Path, devices: int, case: str) -> dict[str, Any]:
    """Train a case of ``TRAINED`` for an epoch at a fixed rate; return the weights and the number of steps.

    The parabola of ``AdaptiveLR`` is left out: a step that hardly changes a loss has one of rounding errors.
    """
    method, arguments = TRAINED[case]
    module = getattr(lit_modules, method)(
        tiny(), accumulate=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2), **arguments
    )
    runner = trainer(folder / f"devices-{devices}", devices, max_epochs=1, limit_val_batches=0)
    runner.fit(module, datamodule=data(folder, devices, by_task="by-task" in case))
    return {"weights": module.model.state_dict(), "steps": runner.global_step}


class Uneven(LightningModule):
    """The first rank alone is past the level; the mean of both is later."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.log("train/forget_loss", 2.0 * self.global_step if self.global_rank == 0 else 0.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def stop(folder: Path) -> int:
    """Train until the forget loss passes 3 nats; return the number of steps."""
    strategy = "ddp_find_unused_parameters_true"
    runner = trainer(folder, 2, strategy=strategy, max_epochs=1, callbacks=[ForgetStopping(level=3.0, window=1)])
    runner.fit(Uneven(), DataLoader(torch.zeros(20, 1), batch_size=1))  # type: ignore[arg-type]
    return runner.global_step


class Numbers(LightningModule):
    """Answers numbers, the odd ones for the retain set."""

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        numbers = [int(number) for number in batch]
        split = ["retain" if number % 2 else "forget" for number in numbers]
        return {"id": [f"id{n // 2}" for n in numbers], "split": split, "generation": [f"answer {n}" for n in numbers]}


def validate(devices: int, rank: int) -> dict[str, float]:
    """Validate loaders of which each process sees another set."""
    generator = torch.Generator().manual_seed(0)
    tasks = {}
    for name in ("forget", "retain"):
        ids = torch.randint(1, 300, (3, 8), generator=generator)
        tasks[name] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "split": [name] * 3}
    seen = [list(tasks)[rank]] if devices > 1 else list(tasks)
    module, runner = lit_modules.NGDiff(tiny()), trainer(Path("."), devices, use_distributed_sampler=False)
    loader = DataLoader([tasks[name] for name in seen], batch_size=None)  # type: ignore[arg-type]
    return dict(runner.validate(module, loader, verbose=False)[0])


def answer(folder: Path) -> None:
    """Write the answers to five rows, of which each process is handed some twice."""
    runner = trainer(folder, 2, callbacks=[GenerationLog(str(folder))])
    runner.test(Numbers(), DataLoader(torch.arange(5), batch_size=2), verbose=False)  # type: ignore[arg-type]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results: dict[str, Any] = {method: unlearn(folder, 2, method) for method in METHODS}
    results |= {case: train(folder, 2, case) for case in TRAINED}
    results["stopped"] = stop(folder)
    results["lopsided"] = validate(2, torch.distributed.get_rank())
    answer(folder)
    torch.save(results, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()  # otherwise gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
