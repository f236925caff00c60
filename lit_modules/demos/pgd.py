"""``lit-modules demo pgd``: a standard and a robust classifier under attack, and what the input distribution does."""

import json
from pathlib import Path
from typing import Any

from lit_modules.demos.record import Claim
from lit_modules.demos.stages import Demo
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole

EPSILON = 0.15
EPSILONS = (0.0, 0.025, 0.05, 0.075, 0.1, EPSILON, 0.2, 0.25, 0.3)
TEST_IMAGES = 100
"""Test images that PGD-100 and AutoAttack are run on."""
VARIANTS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "as they are": None,
    "saturated": ("Saturate", {"p": 8.0}),
    "smoothed": ("Smooth", {"kernel_size": 2}),
}
"""Class in :mod:`datamodules.variants` and its arguments."""
RECIPES = {"standard": "pgd/digits_standard.yaml", "PGD": "pgd/digits.yaml"}
COLOURS = {"standard": ("#9ecae1", "#2171b5"), "PGD": ("#fdbe85", "#d94701")}
"""By training: colour of the clean accuracy, and of the robust one."""
EXAMPLES = 6
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Training on what PGD finds keeps accuracy under AutoAttack where standard training loses it "
        "(Madry et al., arXiv 1706.06083); holds at 20 points more.",
        ("standard, clean", "standard, AutoAttack", "PGD, clean", "PGD, AutoAttack"),
        lambda numbers: numbers["PGD, AutoAttack"] - numbers["standard, AutoAttack"] >= 0.2,
    ),
    Claim(
        "A change of the images that standard training hardly notices (within 5 points) moves the robust accuracy of "
        "PGD training by 20 points or more (Ding et al., arXiv 1902.08336).",
        (
            "standard, clean",
            "standard, clean, smoothed",
            "PGD, AutoAttack",
            "PGD, AutoAttack, smoothed",
            "PGD, AutoAttack, saturated",
        ),
        lambda numbers: (
            abs(numbers["standard, clean"] - numbers["standard, clean, smoothed"]) <= 0.05
            and abs(numbers["PGD, AutoAttack"] - numbers["PGD, AutoAttack, smoothed"]) >= 0.2
        ),
    ),
)
Models = dict[str, dict[str, Any]]
"""By training: the accuracy at each epsilon, and a few adversarial images with the answers to them."""


def adversarial(folder: Path, seed: int) -> dict[str, float]:
    """Train standard and robust classifiers on digits and on two variants of them, attack all, and draw the outcome.

    Args:
        folder: Folder of the run.
        seed: Seed of weights, order and attacks.

    Returns:
        Accuracies by training, attack and variant, as `CLAIMS` names them.
    """
    from rich.table import Table

    demo = Demo(folder)
    records: dict[str, dict[str, dict[str, Any]]] = {variant: {} for variant in VARIANTS}
    checkpoints: dict[str, Path] = {}
    stages = [(variant, training) for variant in VARIANTS for training in RECIPES]
    for stage, (variant, training) in enumerate(stages, 1):
        demo.console.rule(f"{stage} of {len(stages)}: {training} training, digits {variant}")
        name = f"{training.lower()}-{variant.replace(' ', '-')}"
        records[variant][training], checkpoint = _train_and_attack(
            demo, folder / name, RECIPES[training], variant, seed
        )
        checkpoints.setdefault(training, checkpoint)
    demo.console.rule("accuracy against epsilon")
    models = {training: _attack_at_each_epsilon(path) for training, path in checkpoints.items()}
    accuracies = {training: model["accuracies"] for training, model in models.items()}
    results = {"epsilons": EPSILONS, "accuracies": accuracies, "records": records}
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    _plot(folder / "report.png", records, models)
    table = Table(title=f"Accuracy in %, Linf {EPSILON}; trained and tested on the same variant")
    for heading in ("digits", "training", "clean", "PGD-100", "AutoAttack"):
        table.add_column(heading)
    for variant, training in stages:
        record = records[variant][training]
        values = (_accuracy(record, attack) for attack in ("clean", "pgd", "autoattack"))
        table.add_row(variant, training, *(f"{100 * value:.0f}" for value in values))
    demo.console.print(table)
    demo.finish(f"Picture: {folder / 'report.png'}; numbers: {folder / 'results.json'}")
    return {
        f"{training}, {'clean' if attack == 'clean' else 'AutoAttack'}{'' if change is None else f', {variant}'}": (
            _accuracy(records[variant][training], attack)
        )
        for variant, change in VARIANTS.items()
        for training in RECIPES
        for attack in ("clean", "autoattack")
    }


def _train_and_attack(demo: Demo, folder: Path, recipe: str, variant: str, seed: int) -> tuple[dict[str, Any], Path]:
    """Return the record of the test and the checkpoint; what the folder holds is not done again."""
    fit, test = folder / "fit", folder / "test"
    common = ["-c", recipe, f"--seed_everything={seed}"]
    change = VARIANTS[variant]
    if change is not None:
        value = {"class_path": f"lit_modules.datamodules.variants.{change[0]}", "init_args": change[1]}
        common.append(f"--data.variant={json.dumps(value)}")
    if not (fit / "finished").exists():
        last = fit / "checkpoints" / "last.ckpt"
        demo.run("fit", *common, *([f"--ckpt_path={last}"] if last.exists() else []), logs=fit)
        write_whole(fit / "finished", "")
    best = fit / "checkpoints" / "best.ckpt"
    if not (test / "robustness.json").exists():
        limit = [f"--data.eval_batch_size={TEST_IMAGES // 2}", "--trainer.limit_test_batches=2"]
        demo.run("test", *common, *limit, f"--ckpt_path={best}", logs=test)
    return json.loads((test / "robustness.json").read_text(encoding="utf-8")), best


def _accuracy(record: dict[str, Any], attack: str) -> float:
    """Return the accuracy of a record under an attack, or ``clean``."""
    return float(record["clean"]["accuracy"] if attack == "clean" else record["attacks"][attack]["robust_accuracy"])


def _attack_at_each_epsilon(checkpoint: Path) -> dict[str, Any]:
    """Return ``accuracies`` under PGD at each epsilon, and ``adversarial`` images and ``answers`` at `EPSILON`."""
    import torch

    from lit_modules.attacks import LinfPGD
    from lit_modules.networks import LeNet5
    from lit_modules.utils.checkpoints import open_checkpoint

    image, label = _test_images("as they are")
    weights = open_checkpoint(checkpoint)["state_dict"]
    model = LeNet5("small", image_size=8)
    model.load_state_dict({k.removeprefix("classifier."): v for k, v in weights.items() if k.startswith("classifier.")})
    model.eval()
    outcome: dict[str, Any] = {"accuracies": []}
    for eps in EPSILONS:
        result = LinfPGD(eps=eps, steps=40, step_size=max(eps, 1e-3) / 10).run(model, image, label)
        outcome["accuracies"].append(1 - float(result.success.float().mean()))
        if eps == EPSILON:
            with torch.no_grad():
                outcome["answers"] = model(result.adversarial[:EXAMPLES]).argmax(1).tolist()
            outcome["adversarial"] = result.adversarial[:EXAMPLES, 0]
    return outcome


def _test_images(variant: str) -> tuple[Any, Any]:
    """Return the 397 test images of a variant, ``(image, 1, 8, 8)``, and their labels."""
    from lit_modules.datamodules import Digits, variants

    change = VARIANTS[variant]
    data = Digits(variant=None if change is None else getattr(variants, change[0])(**change[1]))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    return batch["image"], batch["label"]


@figure_style()
def _plot(path: Path, records: dict[str, dict[str, dict[str, Any]]], models: Models) -> None:
    """Draw accuracy against epsilon, the variants, and example images."""
    figure = new_figure(13, 9.5)
    rows: Any = figure.subfigures(2, 1, height_ratios=[1, 0.9])
    top, bottom = rows
    left, right = top.subplots(1, 2)
    for training, model in models.items():
        percent = [100 * accuracy for accuracy in model["accuracies"]]
        left.plot(EPSILONS, percent, marker="o", color=COLOURS[training][1], label=f"{training} training")
    left.axvline(EPSILON, color="grey", linewidth=0.8, linestyle=":")
    left.annotate(f"epsilon {EPSILON}:\ntrained and\ntested there", (EPSILON + 0.004, 80), color="grey", fontsize=9)
    left.set(xlabel="largest change of a pixel (epsilon, Linf)", ylabel="accuracy under PGD-40, %", ylim=(0, 100))
    left.set_title("Adversarial training withstands larger attacks")
    left.legend(loc="lower left")
    width = 0.2
    for number, (training, attack) in enumerate((t, a) for t in RECIPES for a in ("clean", "autoattack")):
        heights = [100 * _accuracy(record[training], attack) for record in records.values()]
        positions = [index + (number - 1.5) * width for index in range(len(VARIANTS))]
        label = f"{training} training, {'clean' if attack == 'clean' else 'AutoAttack'}"
        bars = right.bar(positions, heights, width, label=label, color=COLOURS[training][attack != "clean"])
        right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set_xticks(range(len(VARIANTS)), list(VARIANTS))
    right.set(ylabel="accuracy, %", ylim=(0, 100))
    right.set_title(f"The input distribution decides, too (epsilon {EPSILON})", pad=52)
    right.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.03))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    blocks: Any = bottom.subfigures(1, 2, wspace=0.04)
    image, label = _test_images("as they are")
    labels = label[:EXAMPLES].tolist()
    attacked: list[tuple[str, Any, list[str]]] = [("clean", image[:EXAMPLES, 0], [str(k) for k in labels])]
    for training, model in models.items():
        attacked.append((f"attack on\n{training}", model["adversarial"], [f"seen as {k}" for k in model["answers"]]))
    _draw_rows(blocks[0], attacked, labels, f"Adversarial images, epsilon {EPSILON}; errors in red")
    changed = [(variant, _test_images(variant)[0][:EXAMPLES, 0], [""] * EXAMPLES) for variant in VARIANTS]
    _draw_rows(blocks[1], changed, labels, "The same digits in three distributions")
    save_figure(figure, path)


def _draw_rows(figure: Any, rows: list[tuple[str, Any, list[str]]], labels: list[int], title: str) -> None:
    """Draw rows of images with a name each, and a title on each image: red where it ends on another digit."""
    figure.suptitle(title)
    axes = figure.subplots(len(rows), EXAMPLES)
    for line, (name, images, titles) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for cell, image, text, label in zip(line, images, titles, labels, strict=True):
            cell.imshow(image, cmap="gray", vmin=0, vmax=1)
            cell.set_xticks([])
            cell.set_yticks([])
            cell.set_title(text, fontsize=8, color="black" if text.endswith(str(label)) else "crimson")
