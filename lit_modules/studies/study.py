"""``lit-modules study``: methods x rates x seeds from one memorised start, on the text of a benchmark."""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

METHODS = ("GradientAscent", "GradientDifference", "NGDiff", "NGDiff + AdaptiveLR")
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
DESCENT_TOLERANCE = 1e-6
EPOCHS = 60  # of memorising


def main(args: list[str]) -> int:
    """Run the study of NGDiff on LUME.

    Args:
        args: Options; see ``lit-modules study --help``.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="lit-modules study",
        description="Unlearn the same memorised model with each method, rate and seed; a stopped study goes on.",
    )
    parser.add_argument("method", choices=("ngdiff",), help="study to run")
    parser.add_argument("--data", required=True, help="folder of forget.jsonl and retain.jsonl of LUME")
    parser.add_argument("--folder", default="runs/study-ngdiff", help="folder of the study (default: %(default)s)")
    parser.add_argument(
        "--documents", type=int, default=4, help="documents of each set and task (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=6, help="passes over the forget set (default: %(default)s)")
    parser.add_argument("--period", type=int, default=2, help="optimizer steps between probes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the data (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, of a thread each (default: %(default)s)"
    )
    options = parser.parse_args(args)
    for name in ("documents", "epochs", "period", "seeds", "workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}.")
    run_study(Path(options.folder), options)
    return 0


def run_study(folder: Path, options: argparse.Namespace) -> None:
    """Memorise, run what is missing, and write table and figure.

    Args:
        folder: Folder of the study; ``results.jsonl`` in it has a line for each finished run.
        options: The command's options.
    """
    from rich.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(options, name) for name in ("data", "documents", "epochs", "period")}
    settings = folder / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != asked:
        raise ValueError(
            f"{folder} holds a study with {settings.read_text().strip()}, and {asked} was asked for; "
            "give another --folder."
        )
    settings.write_text(json.dumps(asked) + "\n")
    pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"))
    start = folder / "start.json"
    if not start.exists():
        for name in ("forget.jsonl", "retain.jsonl"):
            if not Path(asked["data"], name).is_file():
                raise FileNotFoundError(
                    f"--data must be the folder of forget.jsonl and retain.jsonl; {asked['data']} has no {name}."
                )
        print("Memorise the forget and the retain set ...", flush=True)
        start.write_text(json.dumps(pool.submit(memorise, folder, asked).result()) + "\n")
    log = folder / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    finished = {(run["method"], run["rate"], run["seed"]) for run in done}
    wanted = [(m, rate, seed) for seed in range(options.seeds) for rate in RATES for m in METHODS]
    missing = [run for run in wanted if run not in finished]
    with Progress() as progress, pool, log.open("a") as lines:
        bar = progress.add_task("runs", total=len(wanted), completed=len(wanted) - len(missing))
        for future in as_completed([pool.submit(unlearn, folder, asked, *run) for run in missing]):
            done.append(future.result())
            lines.write(json.dumps(done[-1]) + "\n")
            lines.flush()
            progress.advance(bar)
    summary = summarise(done)
    text = markdown(summary, json.loads(start.read_text()))
    (folder / "table.md").write_text(text)
    draw(done, folder / "figure.png")
    print(text)
    print(folder)


def _data(folder: Path, asked: dict[str, Any], **arguments: Any) -> Any:
    from transformers import AutoTokenizer

    from lit_modules.datamodules import LUME

    settings = {
        "root": asked["data"],
        "max_documents": asked["documents"],
        "eval_batch_size": 40,
        "num_workers": 0,
        "document_seed": 0,  # every run has the documents that were memorised, whatever its order
    }
    tokenizer = AutoTokenizer.from_pretrained(folder / "start") if (folder / "start").is_dir() else None
    return LUME(**{**settings, "tokenizer": tokenizer, **arguments})


def _trainer(folder: Path, name: str, **arguments: Any) -> Any:
    import warnings

    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    quiet: dict[str, Any] = {"num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_checkpointing": False}
    return Trainer(**settings, **quiet, logger=CSVLogger(folder / "runs", name, version=""), **arguments)


def memorise(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Train a small Llama from scratch until it has memorised both sets, and save it as ``start``.

    Returns:
        The LUME record of the memorised model.
    """
    import torch
    from lightning.pytorch import seed_everything

    from lit_modules.datamodules import common
    from lit_modules.metrics import LUMEScore
    from lit_modules.networks import small_llama
    from lit_modules.unlearning import CausalLMFineTuning

    seed_everything(0, verbose=False)
    lines = [
        line
        for name in ("forget", "retain")
        for line in (Path(asked["data"]) / f"{name}.jsonl").read_text().splitlines()
    ]
    texts = ["{input} {output}".format(**json.loads(line)) for line in lines]
    tokenizer = common.bpe.train_bpe(texts, 2048)
    data = _data(folder, asked, tokenizer=tokenizer, subset="all", batch_size=8)
    data.prepare_data()
    data.setup("fit")
    steps = EPOCHS * len(data.train_dataloader())
    module = CausalLMFineTuning(
        small_llama(len(tokenizer)),
        metric=LUMEScore(),
        max_new_tokens=128,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )
    trainer = _trainer(folder, "memorise", max_epochs=EPOCHS, gradient_clip_val=1.0, check_val_every_n_epoch=EPOCHS)
    trainer.fit(module, datamodule=data)
    module.save_pretrained(str(folder / "start"))
    tokenizer.save_pretrained(folder / "start")
    trainer.test(module, datamodule=data, verbose=False)
    return module.results()


def unlearn(folder: Path, asked: dict[str, Any], method: str, rate: float, seed: int) -> dict[str, Any]:
    """Unlearn the memorised model once.

    Args:
        folder: Folder of the study.
        asked: Settings of the study.
        method: One of ``METHODS``.
        rate: Learning rate, or the initial one.
        seed: Seed of the order of the data.

    Returns:
        Method, rate, seed, LUME record, losses of both sets, and what the steps and probes did.
    """
    import torch
    from lightning.pytorch import seed_everything

    import lit_modules
    from lit_modules.callbacks import AdaptiveLR
    from lit_modules.metrics import LUMEScore
    from lit_modules.unlearning.core.report import read_metrics

    seed_everything(seed, verbose=False)
    name = method.split(" ")[0]
    probe = AdaptiveLR(period=asked["period"]) if "AdaptiveLR" in method else None
    module = getattr(lit_modules, name)(
        str(folder / "start"),
        metric=LUMEScore(),
        max_new_tokens=128,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0),
    )
    data = _data(folder, asked, batch_size=4, seed=seed)
    run = f"{method.replace(' + ', '-')}-{rate:g}-{seed}"
    trainer = _trainer(folder, run, max_epochs=asked["epochs"], callbacks=[probe] if probe else [])
    try:
        trainer.fit(module, datamodule=data)
    except FloatingPointError as error:
        return {"method": method, "rate": rate, "seed": seed, "failed": str(error)}
    losses = {split: float(trainer.callback_metrics[f"val/{split}_loss"]) for split in ("forget", "retain")}
    trainer.test(module, datamodule=data, verbose=False)
    series = read_metrics(folder / "runs" / run)
    descents = [value for _, value in series.get("train/retain_descent", [])]
    result = {
        "method": method,
        "rate": rate,
        "seed": seed,
        "record": module.results(),
        "losses": losses,
        "retain_curve": [value for _, value in series["val/retain_loss"]],
        "steps": trainer.global_step,
        "negative": sum(value < -DESCENT_TOLERANCE for value in descents) / len(descents) if descents else None,
        "last_rate": float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else rate,
    }
    if probe is not None:
        # Lightning repeats a logged value until the next one
        numbers = [value for _, value in series.get("adaptive_lr/probe", [])]
        changes = dict(zip(numbers, (value for _, value in series.get("adaptive_lr/change", [])), strict=True))
        falling = sum(change <= 0 for change in changes.values()) / max(1, len(changes))
        result |= {"probes": probe.probes, "accepted": probe.accepted, "falling": falling}
    return result


def scores(run: dict[str, Any]) -> dict[str, float]:
    """Return the task aggregate, and the mean of the six raw scores of each set."""
    from lit_modules.unlearning.core.report import twelve_numbers

    numbers = twelve_numbers(run["record"])
    means = {split: sum(v for k, v in numbers.items() if k.startswith(split)) / 6 for split in ("forget", "retain")}
    return {"aggregate": float(run["record"]["harmonic-mean-task-aggregate"] or 0.0), **means}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds for each method and rate."""
    from statistics import mean, pstdev

    rows = []
    for method in METHODS:
        for rate in RATES:
            group = [run for run in runs if (run["method"], run["rate"]) == (method, rate)]
            good = [run for run in group if "record" in run]
            if not group:
                continue
            row: dict[str, Any] = {"method": method, "rate": rate, "runs": len(group), "failed": len(group) - len(good)}
            for name in ("aggregate", "forget", "retain"):
                values = [scores(run)[name] for run in good]
                row[name] = (mean(values), pstdev(values)) if values else None
            for name in ("forget", "retain"):
                row[f"{name}_loss"] = mean(run["losses"][name] for run in good) if good else None
            for name in ("negative", "falling", "last_rate"):
                values = [run[name] for run in good if run.get(name) is not None]
                row[name] = mean(values) if values else None
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], start: dict[str, Any]) -> str:
    """Return the table of the study, and the spread of each method over its rates."""
    first = scores({"record": start})
    lines = [
        f"Start: forget {first['forget']:.3f}, retain {first['retain']:.3f}, task aggregate {first['aggregate']:.3f}.",
        "",
        "| method | rate | runs | forget (low) | retain (high) | aggregate | NLL forget | NLL retain "
        "| g_R.d<0 | probes that fall | last rate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def cell(value: Any, form: str = ".3f") -> str:
        if value is None:
            return "-"
        return f"{value[0]:{form}} +- {value[1]:{form}}" if isinstance(value, tuple) else f"{value:{form}}"

    for row in rows:
        finished = row["runs"] - row["failed"]
        runs = f"{finished} of {row['runs']}" if row["failed"] else str(finished)
        cells = [
            row["method"],
            f"{row['rate']:g}",
            runs,
            *(cell(row[name]) for name in ("forget", "retain", "aggregate")),
        ]
        cells += [
            cell(row["forget_loss"], ".2f"),
            cell(row["retain_loss"], ".2f"),
            cell(row["negative"]),
            cell(row["falling"]),
            cell(row["last_rate"], ".1e"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| method | task aggregate over the rates: lowest | highest | spread |", "| --- | --- | --- | --- |"]
    for method in METHODS:
        # a run that failed has forgotten nothing and kept nothing
        values = [
            row["aggregate"][0] * (1 - row["failed"] / row["runs"]) if row["aggregate"] else 0.0
            for row in rows
            if row["method"] == method
        ]
        if values:
            lines.append(f"| {method} | {min(values):.3f} | {max(values):.3f} | {max(values) - min(values):.3f} |")
    return "\n".join(lines) + "\n"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw forget against retain, a point for each run."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 6))
    colours = dict(zip(METHODS, ("tab:gray", "tab:red", "tab:blue", "tab:green"), strict=True))
    sizes = {rate: 25 + 45 * number for number, rate in enumerate(RATES)}
    for method in METHODS:
        points = [(scores(run), run["rate"]) for run in runs if run["method"] == method and "record" in run]
        if points:
            forget, retain = ([point[name] for point, _ in points] for name in ("forget", "retain"))
            area = [sizes[rate] for _, rate in points]
            axis.scatter(forget, retain, s=area, color=colours[method], alpha=0.55, label=method)
    axis.set(
        xlabel="forget set: mean of the six scores (wanted 0)",
        ylabel="retain set: mean of the six scores (wanted 1)",
        title="Each point a run; the larger, the larger its (initial) rate",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
