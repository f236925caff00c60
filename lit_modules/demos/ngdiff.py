"""``lit-modules demo ngdiff``: GDiff and NGDiff unlearn at bad and good learning rates, with and without AdaptiveLR."""

import json
from pathlib import Path
from typing import Any

from lit_modules.demos.record import Claim
from lit_modules.demos.stages import Demo
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole

MEMORISE, UNLEARN = "ngdiff/lume_synthetic_memorise.yaml", "ngdiff/lume_synthetic.yaml"
DOCUMENTS = 4
"""Documents of each set and task."""
MODEL = {"hidden_size": 96, "num_layers": 2}
MEMORISE_STEPS, STEPS = 300, 120
RATES = (1e-5, 2e-4, 1e-2)
"""Initial learning rates: far too small, good, and far too large."""
METHODS = {"GDiff": "lit_modules.GradientDifference", "NGDiff": "lit_modules.NGDiff"}
ADAPTIVE = {"class_path": "lit_modules.callbacks.AdaptiveLR", "init_args": {"period": 2}}
RECORDS = [{"class_path": f"lit_modules.callbacks.{name}"} for name in ("ResultRecord", "GenerationLog")]
VARIANTS: dict[str, list[dict[str, Any]]] = {"": [], " + AdaptiveLR": [ADAPTIVE]}
"""Callbacks of a run by the end of its name."""
COLOURS = {"GDiff": "#d94701", "NGDiff": "#2171b5"}
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "NGDiff unlearns better than GDiff at the same learning rates (Bu et al., arXiv 2410.22086): the mean task "
        "aggregate over the rates, without AdaptiveLR, is higher by 0.05.",
        (*(f"{method}, {rate:g}" for method in METHODS for rate in RATES), "GDiff, mean", "NGDiff, mean"),
        lambda numbers: numbers["NGDiff, mean"] - numbers["GDiff, mean"] >= 0.05,
    ),
    Claim(
        "With AdaptiveLR the initial rate hardly matters (same paper): over the rates the task aggregate of NGDiff "
        "differs by at most 0.1, where it differs by 0.5 or more without.",
        (
            *(f"NGDiff + AdaptiveLR, {rate:g}" for rate in RATES),
            "NGDiff, spread",
            "NGDiff + AdaptiveLR, spread",
        ),
        lambda numbers: numbers["NGDiff + AdaptiveLR, spread"] <= 0.1 and numbers["NGDiff, spread"] >= 0.5,
    ),
    Claim(
        "NGDiff with AdaptiveLR, from its worst initial rate, is not behind GDiff at its best, at a fixed rate or "
        "with AdaptiveLR (same paper; within 0.02).",
        ("GDiff, best", "GDiff + AdaptiveLR, best", "NGDiff + AdaptiveLR, worst"),
        lambda numbers: (
            numbers["NGDiff + AdaptiveLR, worst"]
            >= max(numbers["GDiff, best"], numbers["GDiff + AdaptiveLR, best"]) - 0.02
        ),
    ),
)
Runs = dict[tuple[str, float], Path]
"""Folder of each run by its method, with or without AdaptiveLR, and its initial rate."""


def unlearning(folder: Path, seed: int) -> dict[str, float]:
    """Memorise invented documents, unlearn half of them in each way, and draw the outcome.

    Args:
        folder: Folder of the run.
        seed: Seed of data, weights and order.

    Returns:
        Task aggregates by method and initial rate, and their mean, spread, best and worst, as `CLAIMS` names them.
    """
    from lit_modules.unlearning.core.report import table

    demo = Demo(folder)
    console, target = demo.console, folder / "target"
    data = [f"--data.root={folder / 'data'}", f"--data.num_documents={DOCUMENTS}", f"--data.data_seed={seed}"]
    data.append(f"--seed_everything={seed}")
    if not (target / "tokenizer.json").exists():
        console.rule("memorise the forget and the retain set")
        _memorise(demo, target, data)
    common = ["-c", UNLEARN, f"--model.model={target}", *data]
    if not (folder / "before" / "results.json").exists():
        console.rule("evaluate the model that remembers")
        demo.run("test", *common, logs=folder / "before")
    runs: Runs = {}
    for rate in RATES:
        for method in METHODS:
            for variant in VARIANTS:
                run = folder / f"{method}{variant.replace(' + ', '-')}-{rate:g}"
                runs[method + variant, rate] = run
                if not (run / "results.json").exists():
                    console.rule(f"unlearn with {method}{variant} from rate {rate:g}")
                    _unlearn(demo, run, ["-c", UNLEARN, f"--model={METHODS[method]}", *common[2:]], variant, rate)
    before, *results = [_read(path) for path in (folder / "before", *runs.values())]
    aggregates = {
        name: float(result["harmonic-mean-task-aggregate"]) for name, result in zip(runs, results, strict=True)
    }
    best = max((run for run in runs if run[0] == "NGDiff + AdaptiveLR"), key=lambda run: aggregates[run])
    console.print(table(before, _read(runs[best])))
    questions = _questions(folder, runs)
    _print_answers(demo, questions)
    named = {f"{name}, {rate:g}": value for (name, rate), value in aggregates.items()}
    write_whole(folder / "results.json", json.dumps({"aggregates": named, "questions": questions}, indent=2) + "\n")
    _plot(folder / "report.png", runs, aggregates, questions)
    demo.finish(f"Picture: {folder / 'report.png'}; numbers: {folder / 'results.json'}")
    for name in (method + variant for method in METHODS for variant in VARIANTS):
        values = [aggregates[name, rate] for rate in RATES]
        named[f"{name}, mean"] = sum(values) / len(values)
        named[f"{name}, spread"] = max(values) - min(values)
        named[f"{name}, best"], named[f"{name}, worst"] = max(values), min(values)
    return named


def _memorise(demo: Demo, target: Path, data: list[str]) -> None:
    """Train a small Llama on both sets, and save it."""
    size = [f"--model.model.init_args.{name}={value}" for name, value in MODEL.items()]
    steps = [f"--trainer.max_steps={MEMORISE_STEPS}", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0"]
    schedule = [f"--model.scheduler.init_args.T_max={MEMORISE_STEPS}", "--model.optimizer.init_args.lr=4e-3"]
    saving = ["--trainer.callbacks=lit_modules.callbacks.SavePretrained"]
    saving.append(f"--trainer.callbacks.init_args.folder={target}")
    demo.run("fit", "-c", MEMORISE, *data, *size, *steps, *schedule, *saving, logs=target.parent / "memorise")


def _unlearn(demo: Demo, run: Path, common: list[str], variant: str, rate: float) -> None:
    """Unlearn for the same number of steps as every run, and test."""
    steps = [f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=null"]
    steps.append(f"--trainer.val_check_interval={STEPS}")
    callbacks = json.dumps([*VARIANTS[variant], *RECORDS])
    fit = demo.run(
        "fit", *common, *steps, f"--model.optimizer.init_args.lr={rate}", f"--trainer.callbacks={callbacks}", logs=run
    )
    fit.trainer.test(fit.model, fit.datamodule, verbose=False)


def _read(folder: Path) -> dict[str, Any]:
    """Return the LUME record of a test."""
    record: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return record


def _questions(folder: Path, runs: Runs) -> list[dict[str, Any]]:
    """Return a question about a document to forget and one about a document to keep, with all answers to them.

    Each is the first of its set in the order of the rows' names; both are about private persons.
    """
    answers = {"before": _answers(folder / "before")}
    answers |= {f"{name}, {rate:g}": _answers(run) for (name, rate), run in runs.items()}
    chosen = []
    for split in ("forget", "retain"):
        rows = {key: row for key, row in answers["before"].items() if key[0] == split and row["kind"] == "qa"}
        key = min(key for key, row in rows.items() if row["task"] == "Task2")
        row = rows[key]
        said = {name: rows_of[key]["generation"].strip() for name, rows_of in answers.items()}
        chosen.append({"split": split, "question": row["prompt"], "target": row["target"], "answers": said})
    return chosen


def _answers(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of a test by set and name."""
    lines = (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    return {(row["split"], row["id"]): row for row in map(json.loads, lines)}


def _print_answers(demo: Demo, questions: list[dict[str, Any]]) -> None:
    """Print both questions with the answers before and after."""
    from rich.table import Table

    table = Table(title="Two questions, before and after")
    for heading in (
        "run",
        *(f"to {'keep' if each['split'] == 'retain' else 'forget'}: {each['question']}" for each in questions),
    ):
        table.add_column(heading)
    table.add_row("(true answer)", *(each["target"] for each in questions), end_section=True)
    for name in questions[0]["answers"]:
        table.add_row(name, *(_shorten(each["answers"][name]) for each in questions))
    demo.console.print(table)


def _shorten(text: str, length: int = 60) -> str:
    """Return the beginning of an answer, or what says that it is empty."""
    text = " ".join(text.split()) or "(no answer)"
    return text if len(text) <= length else text[: length - 3] + "..."


@figure_style()
def _plot(path: Path, runs: Runs, aggregates: dict[tuple[str, float], float], questions: list[dict[str, Any]]) -> None:
    """Draw task aggregates and learning rates, and the questions with their answers."""
    from lit_modules.unlearning.core.report import read_metrics

    figure = new_figure(13, 8.5)
    rows: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    left, middle, right = rows[0].subplots(1, 3)
    for method, colour in COLOURS.items():
        for variant in VARIANTS:
            name = method + variant
            values = [aggregates[name, rate] for rate in RATES]
            style = {"linestyle": "-" if variant else "--", "marker": "o" if variant else "x", "color": colour}
            left.plot(RATES, values, label=name, **style)
            for rate in RATES:
                points = read_metrics(runs[name, rate])
                forget, retain = (points[f"val/{split}_loss"][-1][1] for split in ("forget", "retain"))
                middle.plot(forget, retain, **style | {"linestyle": ""})
                if variant:
                    right.plot(*zip(*points["train/lr"], strict=True), color=colour)
    left.set(xscale="log", xlabel="initial learning rate", ylabel="LUME task aggregate (wanted: 1)", ylim=(-0.02, 1.02))
    left.set_title("Outcome against the initial rate")
    rows[0].legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS) * len(VARIANTS))
    middle.set(xscale="log", yscale="log", xlabel="NLL of the forget set (wanted high)")
    middle.set(ylabel="NLL of the retain set (wanted low)", title="Forgetting against damage")
    right.set(yscale="log", xlabel="optimizer step", ylabel="learning rate", title="The rate that AdaptiveLR finds")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    for block, question in zip(rows[1].subfigures(1, 2), questions, strict=True):
        _write_answers(block.subplots(), question)
    save_figure(figure, path)


def _write_answers(axes: Any, question: dict[str, Any]) -> None:
    """Write a question and its answers as a table, in red what is not wanted."""
    forgets = question["split"] == "forget"
    axes.axis("off")
    title = (
        f"A question to {'forget' if forgets else 'keep'}: {question['question']}\ntrue answer: {question['target']}"
    )
    axes.set_title(title, fontsize=10)
    answers = {name: _shorten(text, 44) for name, text in question["answers"].items()}
    table = axes.table(list(map(list, answers.items())), cellLoc="left", bbox=[0, 0, 1, 1], colWidths=[0.4, 0.6])
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("lightgrey")
        knows = question["target"].strip() in list(question["answers"].values())[row]
        if column == 1 and row:
            cell.get_text().set_color("crimson" if knows == forgets else "black")
