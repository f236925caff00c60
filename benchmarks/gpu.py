"""Unlearning and adversarial training at the size of one GPU; called by ``benchmarks/gpu.sh``.

Unlearning: a Llama of about 100 M parameters memorises texts of TOFU and of LUME, and GA, GDiff, NPO and NGDiff with
and without AdaptiveLR unlearn at four rates. Robustness: PGD training on CIFAR10 for some minutes, then AutoAttack
beside torchattacks and pyautoattack, where installed, on the same images. A second call runs what is missing.
"""

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import CIFAR10
from lit_modules import PGDTraining
from lit_modules.attacks import AutoAttack
from lit_modules.cli import main as lit_modules
from lit_modules.networks import LeNet5, WideResNet
from lit_modules.utils.files import write_whole

EPS = 8 / 255
METHODS = "GradientAscent,GradientDifference,NPO,NGDiff,NGDiff + AdaptiveLR"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unlearning(folder: Path, toy: bool) -> dict[str, list[dict[str, str]]]:
    """Compare the methods on both data sets; the rows of each comparison's ``best.csv``."""
    width, layers = (96, 2) if toy else (768, 12)
    steps = {"start.steps": 300, "max_steps": 2} if toy else {"start.steps": 600, "max_steps": 48}
    settings: dict[str, Any] = {
        **steps,
        "start.model.hidden_size": width,
        "start.model.num_layers": layers,
        "start.model.num_heads": 4 if toy else 12,
        "start.optimizer.lr": 3e-3 if toy else 3e-4,
        "learning_rates": [1e-4] if toy else [1e-6, 1e-5, 1e-4, 1e-3],
        "seeds": [0] if toy else [0, 1],
        "trainer.accelerator": "cpu" if DEVICE == "cpu" else "gpu",
        "trainer.precision": "32-true" if DEVICE == "cpu" else "bf16-mixed",
    }
    if toy:
        settings["evaluation.max_new_tokens"] = 64
    rows = {}
    for name in ("lume", "tofu"):
        run = folder / name
        line = [text for key, value in settings.items() for text in (f"--{key}", json.dumps(value))]
        lit_modules(
            [
                "compare",
                "-c",
                f"compare/{name}_tiny.yaml",
                "--folder",
                str(run),
                "--only",
                METHODS,
                "--workers",
                "1",
                *line,
            ]
        )
        with (run / "best.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    return rows


def robustness(folder: Path, cifar: str, minutes: float, toy: bool) -> list[dict[str, Any]]:
    """Train with PGD, and attack the result by ours and the installed peers; a row for each."""
    network: nn.Module = LeNet5("small", image_size=32, channels=3) if toy else WideResNet(depth=28, width=4)
    run, images = folder / "cifar10", 4 if toy else 256
    recipe = "pgd/cifar10_small.yaml" if toy else "pgd/cifar10.yaml"
    checkpoint = run / "last.ckpt"
    if not checkpoint.exists():
        length = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"] if toy else []
        if not toy:
            length = [f"--trainer.max_time=00:00:{minutes:02.0f}:00", "--trainer.limit_val_batches=0"]
            length += [f"--trainer.accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}", "--trainer.devices=1"]
        fit = lit_modules(["fit", "-c", recipe, f"--data.root={cifar}", f"--trainer.default_root_dir={run}", *length])
        fit.trainer.save_checkpoint(checkpoint)
    module = PGDTraining.load_from_checkpoint(checkpoint, classifier=network, map_location=DEVICE, strict=False)
    model = module.classifier.eval().requires_grad_(False).to(DEVICE)
    data = CIFAR10(cifar, eval_batch_size=images, validation_size=500, test_size=500)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    image, label = batch["image"].to(DEVICE), batch["label"].to(DEVICE)
    return [
        {"toolbox": name, **measure(attack, model, image, label)}
        for name, attack in toolboxes(toy).items()
        if name == "ours" or find_spec(name) is not None
    ]


def toolboxes(toy: bool) -> dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]:
    """Return AutoAttack of each toolbox; with ``toy`` ours alone, of APGD with two steps."""
    if toy:
        from lit_modules.attacks import APGD

        quick = AutoAttack(norm="linf", eps=EPS, version="custom", attacks=[APGD(norm="linf", eps=EPS, steps=2)])
        return {"ours": lambda model, x, y: quick(model, x, y)}

    def torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks as peer

        return peer.AutoAttack(model, norm="Linf", eps=EPS, n_classes=10)(x, y)

    def pyautoattack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack import AutoAttack as Peer

        return Peer(model, norm="Linf", eps=EPS, device=DEVICE).run_standard_evaluation(x, y, bs=len(x))

    ours = AutoAttack(norm="linf", eps=EPS)
    return {"ours": lambda model, x, y: ours(model, x, y), "torchattacks": torchattacks, "pyautoattack": pyautoattack}


def measure(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module, image: Tensor, label: Tensor
) -> dict[str, float]:
    """Return seconds, and the accuracy before and under an attack."""
    began = time.perf_counter()
    adversarial = attack(model, image, label)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        clean, robust = (float((model(x).argmax(1) == label).float().mean()) for x in (image, adversarial))
    return {"seconds": seconds, "clean": clean, "robust": robust}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as a Markdown table."""
    names = list(rows[0])
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def main() -> None:
    """Run both parts, and write ``results.json`` and ``table.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cifar", required=True, help="folder of CIFAR10")
    parser.add_argument("--minutes", type=float, default=8, help="length of the PGD training")
    parser.add_argument("--toy", action="store_true", help="a few steps of small models")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.machine()
    results: dict[str, Any] = {"date": str(date.today()), "device": device, "torch": torch.__version__}
    results["unlearning"] = unlearning(options.folder, options.toy)
    results["robustness"] = robustness(options.folder, options.cifar, options.minutes, options.toy)
    write_whole(options.folder / "results.json", json.dumps(results, indent=2) + "\n")
    lines = [f"{results['date']}, {device}, torch {torch.__version__}"]
    for name, rows in {**results["unlearning"], "AutoAttack, CIFAR10": results["robustness"]}.items():
        lines += ["", f"## {name}", "", *table(rows)]
    write_whole(options.folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
