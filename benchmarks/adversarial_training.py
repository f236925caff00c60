"""Adversarial training methods at equal processor time, and AutoAttack below PGD, over three seeds.

    python benchmarks/adversarial_training.py --data FOLDER_OF_CIFAR10 --folder OUT

PGD training takes a fixed number of steps; TRADES, MART, Free, Fast and standard training of the same seed stop once
they have spent the processor time that it took. No method has a schedule of its learning rate, as the number of steps
is not known. The last weights are tested by PGD-100 and by AutoAttack on the first test images. Every cell is a JSON
file in the folder and is not run again; ``table.md`` has mean and deviation over the seeds. Without ``--data`` only
the digits of scikit-learn are used.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import nn

from datamodules import CIFAR10, Digits
from lit_modules.adversarial import KLPGD, MART, TRADES, FastTraining, FreeTraining, PGDTraining, StandardTraining
from lit_modules.attacks import AutoAttack, LinfPGD
from lit_modules.networks import LeNet5

NUMBERS = ("clean", "pgd", "autoattack")


@dataclass(frozen=True)
class Setting:
    """A data set, its network and the training attack of PGD."""

    data: Callable[[], LightningDataModule]
    network: Callable[[], nn.Module]
    eps: float
    steps: int
    step_size: float
    max_steps: int


class ProcessorTime(Callback):
    """End the training once it has spent a number of seconds of processor time; ``None`` only measures."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.spent = seconds, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop the training if its time is spent."""
        self.spent = time.process_time() - self._began
        trainer.should_stop = self.seconds is not None and self.spent >= self.seconds


def methods(setting: Setting) -> dict[str, Callable[..., LightningModule]]:
    """Return the builders of the modules, PGD first; each takes a classifier and what they share."""
    eps, steps, size = setting.eps, setting.steps, setting.step_size
    attack = LinfPGD(eps=eps, steps=steps, step_size=size, keep="last")
    return {
        "PGD": partial(PGDTraining, attack=attack),
        "TRADES": partial(TRADES, attack=KLPGD(eps=eps, steps=steps, step_size=size)),
        "MART": partial(MART, attack=attack),
        "Free": partial(FreeTraining, eps=eps, replays=steps),
        "Fast": partial(FastTraining, attack=LinfPGD(eps=eps, steps=1, step_size=1.25 * eps, keep="last"), guard="off"),
        "standard": StandardTraining,
    }


def cell(
    setting: Setting, method: str, *, seed: int, seconds: float | None, images: int, folder: Path
) -> dict[str, float]:
    """Train and test one model; the finished images of the test are kept in the folder."""
    seed_everything(seed, verbose=False)
    eps = setting.eps
    tests = {
        "pgd": LinfPGD(eps=eps, steps=100, step_size=eps / 15),
        "autoattack": AutoAttack(norm="linf", eps=eps),
    }
    optimizer = partial(torch.optim.Adam, lr=2e-3)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)  # Free and Fast have a cycle of their own
    network = setting.network()
    module = methods(setting)[method](network, test_attacks=tests, optimizer=optimizer, scheduler=constant, seed=seed)
    clock = ProcessorTime(seconds)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    length = {"max_steps": setting.max_steps, "max_epochs": -1} if seconds is None else {"max_epochs": 100_000}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[clock],
        enable_checkpointing=False,
        limit_val_batches=0,
        default_root_dir=folder,
        limit_test_batches=images // 50,
        **length,
        **quiet,
    )
    data = setting.data()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    record: Any = module.results()
    accuracies = {name: record["attacks"][name]["robust_accuracy"] for name in NUMBERS[1:]}
    return {"clean": record["clean"]["accuracy"], **accuracies, "seconds": clock.spent, "steps": trainer.global_step}


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of CIFAR10")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="test images, a multiple of 50")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def steps(number: int) -> int:
        return max(1, round(options.scale * number))

    digits = partial(Digits, batch_size=50, eval_batch_size=50)
    settings = {"digits": Setting(digits, partial(LeNet5, "small", image_size=8), 0.15, 7, 0.04, steps(480))}
    if options.data:
        sizes = {"batch_size": 50, "eval_batch_size": 50, "validation_size": 500, "test_size": 500}
        cifar = partial(CIFAR10, options.data, augment=False, **sizes)
        network = partial(LeNet5, "small", image_size=32, channels=3)
        settings["CIFAR10"] = Setting(cifar, network, 8 / 255, 5, 0.01, steps(500))
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{date.today()}, {platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, "
        f"{options.seeds} seeds, {options.images} test images; accuracy in %, mean and deviation over seeds",
        "",
        "| data | training | steps | clean | PGD-100 | AutoAttack | PGD less AutoAttack |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data, setting in settings.items():
        for method in methods(setting):
            rows = []
            for seed in range(options.seeds):
                path = options.folder / f"{data}-{method}-{seed}.json"
                if not path.exists():
                    budget = options.folder / f"{data}-PGD-{seed}.json"
                    seconds = None if method == "PGD" else json.loads(budget.read_text())["seconds"]
                    numbers = cell(
                        setting,
                        method,
                        seed=seed,
                        seconds=seconds,
                        images=options.images,
                        folder=path.with_suffix(""),
                    )
                    path.write_text(json.dumps(numbers))
                    print(path.name, path.read_text(), flush=True)
                rows.append(json.loads(path.read_text()))
            columns = [[100 * row[name] for row in rows] for name in NUMBERS]
            columns.append([pgd - auto for pgd, auto in zip(columns[1], columns[2], strict=True)])
            shown = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c) if len(c) > 1 else 0:.1f}" for c in columns]
            count = round(statistics.mean(row["steps"] for row in rows))
            lines.append(f"| {data} | {method} | {count} | {' | '.join(shown)} |")
    (options.folder / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
