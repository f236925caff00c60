"""Dependence of a result on the initial learning rate: fixed, with AdaptiveLR, and with the official code's rule.

    LIT_MODULES_DATA=FOLDER python benchmarks/adaptive_lr.py --folder runs/adaptive_lr

NGDiff on LUME and on TOFU text by `lit-modules compare` (`compare/lume_rates.yaml`, `compare/tofu_rates.yaml`), and a
plain classifier of digits: five initial rates from 1e-6 to 1e-2, three seeds, a probe at every second step. Prints a
table of each, the mean and sample deviation over seeds, and how far the means over seeds lie apart over the rates. A
second call runs what is missing.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lit_modules.callbacks import AdaptiveLR
from lit_modules.cli import main as lit_modules
from lit_modules.datamodules import Digits
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole

RATES, SEEDS, STEPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), (0, 1, 2), 64
RULES: dict[str, dict[str, Any] | None] = {
    "fixed": None,
    "AdaptiveLR": {"period": 2},
    "AdaptiveLR(official)": {"period": 2, "rule": "official"},
}
LANGUAGE = {
    "NGDiff": "fixed",
    "NGDiff + AdaptiveLR": "AdaptiveLR",
    "NGDiff + AdaptiveLR(official)": "AdaptiveLR(official)",
}
"""Names in the recipes of `compare`."""
COLUMNS = {
    "lume": {
        "task aggregate": "test/task_aggregate",
        "NLL forget": "val/forget_loss",
        "NLL retain": "val/retain_loss",
        "last rate": "train/lr",
    },
    "tofu": {
        "score": "score",
        "NLL forget": "val/forget_loss",
        "NLL retain": "val/retain_loss",
        "last rate": "train/lr",
    },
    "digits": {"accuracy": "accuracy", "NLL": "loss", "last rate": "rate"},
}
"""By data: columns of the table, the first of which decides, and their names in a row."""
Rows = list[dict[str, Any]]


class Classifier(LightningModule):
    """Two-layer network on 8 x 8 digits.

    Args:
        rate: Initial learning rate of AdamW.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.rate = rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return cross_entropy(self.network(batch["image"]), batch["label"])

    def probe_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the number of images."""
        loss = cross_entropy(self.network(batch["image"]), batch["label"], reduction="sum")
        return loss, torch.tensor(len(batch["label"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.0)


def classify() -> Iterator[dict[str, Any]]:
    """Yield a row for each run of the classifier."""
    for rule, arguments in RULES.items():
        for rate in RATES:
            for seed in SEEDS:
                seed_everything(seed, verbose=False)
                data, module = Digits(batch_size=64, num_workers=0, seed=seed), Classifier(rate)
                callbacks: Any = [] if arguments is None else [AdaptiveLR(**arguments)]
                quiet: dict[str, Any] = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "logger"), False)
                trainer = Trainer(
                    accelerator="cpu",
                    max_steps=STEPS,
                    callbacks=callbacks,
                    limit_val_batches=0,
                    enable_model_summary=False,
                    **quiet,
                )
                trainer.fit(module, data)
                data.setup("test")
                scores = []
                with torch.no_grad():
                    for batch in data.test_dataloader():
                        logits = module.network(batch["image"])
                        nll = cross_entropy(logits, batch["label"], reduction="none")
                        scores.append(torch.stack([(logits.argmax(1) == batch["label"]).float(), nll], 1))
                accuracy, loss = torch.cat(scores).mean(0).tolist()
                last = float(trainer.optimizers[0].param_groups[0]["lr"])
                yield {"rule": rule, "initial": rate, "seed": seed, "accuracy": accuracy, "loss": loss, "rate": last}


def unlearn(name: str, folder: Path) -> Rows:
    """Run a recipe of `compare`, or what is missing of it; return a row for each run."""
    lit_modules(["compare", "-c", f"compare/{name}_rates.yaml", "--folder", str(folder), "--workers", "1"])
    with (folder / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{**row, "rule": LANGUAGE[row["method"]], "initial": float(row["learning_rate"])} for row in found]


def table(rows: Rows, columns: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a Markdown table, and those of the spread of the first column."""
    yield f"| rule | initial rate | {' | '.join(columns)} |"
    yield "|" + " --- |" * (2 + len(columns))
    means: dict[str, list[list[float]]] = {rule: [] for rule in RULES}
    for rule in RULES:
        for rate in RATES:
            own = [row for row in rows if row["rule"] == rule and row["initial"] == rate]
            values = [[float(row[name]) for row in own] for name in columns.values()]
            cells = [f"{fmean(each):.3g} ± {stdev(each):.2g}" for each in values]
            yield f"| {rule} | {rate:g} | {' | '.join(cells)} |"
            means[rule].append([fmean(each) for each in values])
    yield ""
    first, *others = columns
    yield f"| rule | {first}: lowest | highest | spread | {' | '.join(f'{name} at the best rate' for name in others)} |"
    yield "|" + " --- |" * (4 + len(others))
    for rule, found in means.items():
        lowest, highest = min(found)[0], max(found)[0]
        best = " | ".join(f"{value:.3g}" for value in max(found)[1:])
        yield f"| {rule} | {lowest:.3f} | {highest:.3f} | {highest - lowest:.3f} | {best} |"


@figure_style()
def draw(path: Path, studies: dict[str, Rows]) -> None:
    """Draw the first column of each table against the initial rate."""
    figure = new_figure(4.2 * len(studies), 3.6)
    for axes, (name, rows) in zip(figure.subplots(1, len(studies), squeeze=False)[0], studies.items(), strict=True):
        label, column = next(iter(COLUMNS[name].items()))
        for rule in RULES:
            values = [[float(r[column]) for r in rows if r["rule"] == rule and r["initial"] == rate] for rate in RATES]
            axes.errorbar(
                RATES, [fmean(each) for each in values], [stdev(each) for each in values], marker="o", label=rule
            )
        axes.set(xscale="log", xlabel="initial learning rate", ylabel=label, ylim=(-0.03, 1.03), title=name)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    """Run all three, and print and write their tables and their picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=list(COLUMNS), nargs="+", default=list(COLUMNS))
    options = parser.parse_args()
    lines, studies = [], {}
    for name in options.only:
        path = options.folder / f"{name}.json"
        if name != "digits":
            rows = unlearn(name, options.folder / name)
        elif path.exists():
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            rows = list(classify())
            write_whole(path, json.dumps(rows) + "\n")
        lines += ["", f"### {name}", "", *table(rows, COLUMNS[name])]
        studies[name] = rows
    draw(options.folder / "study.png", studies)
    write_whole(options.folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
