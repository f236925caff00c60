"""``lit-modules demo pgd``: a standard and a robust classifier under attack, and what the input distribution does."""

import json
from pathlib import Path
from typing import Any

from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole

EPSILONS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
VARIANTS = {
    "as they are": None,
    "saturated, p = 8": {"class_path": "lit_modules.datamodules.variants.Saturate", "init_args": {"p": 8.0}},
    "smoothed, kernel 2": {"class_path": "lit_modules.datamodules.variants.Smooth", "init_args": {"kernel_size": 2}},
}
RECIPES = {"standard": "pgd/digits_standard.yaml", "robust": "pgd/digits.yaml"}
Curve = tuple[list[float], dict[str, Any]]
"""Accuracy at each epsilon, and a few images with their adversarial ones."""


def adversarial(folder: Path, seed: int) -> None:
    """Train standard and robust classifiers on digits and on two variants of them, attack all, and draw the outcome.

    Args:
        folder: Folder of the run.
        seed: Seed of weights, order and attacks.
    """
    from rich.table import Table

    demo = Demo(folder)
    records: dict[str, dict[str, Any]] = {}
    table = Table(title="Accuracy on the test images, in %; trained and tested on the same variant")
    for heading in ("digits", "training", "clean", "PGD-100", "AutoAttack"):
        table.add_column(heading)
    stages = [(method, number, variant) for number, variant in enumerate(VARIANTS) for method in RECIPES]
    for stage, (method, number, variant) in enumerate(stages, 1):
        name = f"{method}-{number}"
        fit, test = folder / name / "fit", folder / name / "test"
        demo.console.rule(f"{stage} of {len(stages)}: {method} training, digits {variant}")
        common = ["-c", RECIPES[method], f"--seed_everything={seed}"]
        if VARIANTS[variant] is not None:
            common.append(f"--data.variant={json.dumps(VARIANTS[variant])}")
        if not (fit / "finished").exists():
            last = fit / "checkpoints" / "last.ckpt"
            demo.run("fit", *common, *([f"--ckpt_path={last}"] if last.exists() else []), logs=fit)
            write_whole(fit / "finished", "")
        if not (test / "robustness.json").exists():
            demo.run("test", *common, f"--ckpt_path={fit / 'checkpoints' / 'best.ckpt'}", logs=test)
        records[name] = record = json.loads((test / "robustness.json").read_text(encoding="utf-8"))
        robust = [record["attacks"][attack]["robust_accuracy"] for attack in ("pgd", "autoattack")]
        table.add_row(variant, method, *(f"{100 * value:.1f}" for value in (record["clean"]["accuracy"], *robust)))
    demo.console.rule("accuracy against epsilon")
    curves = {method: _curve(folder / f"{method}-0" / "fit" / "checkpoints" / "best.ckpt") for method in RECIPES}
    accuracies = {method: values for method, (values, _) in curves.items()}
    results = {"epsilons": EPSILONS, "curves": accuracies, "records": records}
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    _plot(folder / "report.png", records, curves)
    demo.console.print(table)
    demo.finish(f"Picture: {folder / 'report.png'}; numbers: {folder / 'results.json'}")


def _curve(checkpoint: Path) -> Curve:
    """Return the accuracy under PGD at each epsilon, and images at 0.15."""
    import torch

    from lit_modules.attacks import LinfPGD
    from lit_modules.datamodules import Digits
    from lit_modules.networks import LeNet5
    from lit_modules.utils.checkpoints import open_checkpoint

    data = Digits()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    weights = open_checkpoint(checkpoint)["state_dict"]
    model = LeNet5("small", image_size=8)
    model.load_state_dict({k.removeprefix("classifier."): v for k, v in weights.items() if k.startswith("classifier.")})
    model.eval()
    accuracies, images = [], {}
    for eps in EPSILONS:
        attack = LinfPGD(eps=eps, steps=40, step_size=max(eps, 1e-3) / 10)
        result = attack.run(model, batch["image"], batch["label"])
        accuracies.append(1 - float(result.success.float().mean()))
        if eps == 0.15:
            with torch.no_grad():
                answer = model(result.adversarial).argmax(1)
            images = {
                "image": batch["image"][:8, 0],
                "adversarial": result.adversarial[:8, 0],
                "answer": answer[:8].tolist(),
                "label": batch["label"][:8].tolist(),
            }
    return accuracies, images


def _plot(path: Path, records: dict[str, dict[str, Any]], curves: dict[str, Curve]) -> None:
    """Draw accuracy against epsilon, the variants, and example images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    top, bottom = panels
    left, right = top.subplots(1, 2)
    for method, (accuracies, _) in curves.items():
        left.plot(EPSILONS, [100 * a for a in accuracies], marker="o", label=f"{method} training")
    left.axvline(0.15, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="epsilon (Linf)", ylabel="accuracy under PGD-40, %", title="Digits", ylim=(-3, 103))
    left.legend()
    width = 0.2
    for shift, (method, kind) in enumerate((m, k) for m in ("standard", "robust") for k in ("clean", "AutoAttack")):
        heights = [
            100 * (r["clean"]["accuracy"] if kind == "clean" else r["attacks"]["autoattack"]["robust_accuracy"])
            for r in (records[f"{method}-{i}"] for i in range(len(VARIANTS)))
        ]
        positions = [i + (shift - 1.5) * width for i in range(len(VARIANTS))]
        bars = right.bar(positions, heights, width, label=f"{method} training, {kind}")
        right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set_xticks(range(len(VARIANTS)), list(VARIANTS))
    right.set(ylabel="accuracy, %", title="A harmless change of the images, epsilon 0.15", ylim=(0, 128))
    right.legend(fontsize=8, ncols=2)
    rows = bottom.subplots(4, 8)
    for block, (method, (_, images)) in enumerate(curves.items()):
        for column in range(8):
            for row, key in ((2 * block, "image"), (2 * block + 1, "adversarial")):
                axes = rows[row][column]
                axes.imshow(images[key][column], cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
            label, answer = images["label"][column], images["answer"][column]
            rows[2 * block][column].set_title(f"{label}", fontsize=8)
            colour = "black" if label == answer else "crimson"
            rows[2 * block + 1][column].set_title(f"taken for {answer}", fontsize=8, color=colour)
        rows[2 * block][0].set_ylabel(f"{method}\nclean", fontsize=8)
        rows[2 * block + 1][0].set_ylabel(f"{method}\nadversarial", fontsize=8)
    figure.savefig(path, dpi=110)
