"""``lit-modules demo synthia``: a small model of drawn objects learns to compose affordances along the curriculum."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole

if TYPE_CHECKING:
    from lit_modules.synthia.core.report import PairPictures

PRETRAIN, TUNE = "synthia/drawn_pretrain.yaml", "synthia/drawn.yaml"
MODES = {"random order": "random", "curriculum": "staged"}
BINS = ("easy", "medium", "hard")
SETS = {"trained": "2, of the curriculum", "pairs": "2, held out", "triples": "3, held out"}
COLUMNS = {
    "all": "both shown",
    "recall": "recall",
    "min": "least shown",
    "novelty": "novelty",
    "novelty_of_all": "novelty if shown",
    "single": "one object",
}
TRAIN_PAIRS, TEST_PAIRS, TRIPLES = 36, 24, 16


def affordances(folder: Path, seed: int) -> None:
    """Teach a model to draw existing things, tune it with and without the curriculum, and show what it composes.

    Args:
        folder: Folder of the run.
        seed: Seed of pictures, weights and order.
    """
    from lit_modules.synthia.core.report import plot_grid, table_rows, write_report

    demo = Demo(folder)
    console, recogniser, base, pairs = demo.console, folder / "recogniser.pt", folder / "base", folder / "pairs"
    model = base / "pretrained"
    common = [f"--seed_everything={seed}", f"--data.seed={seed}", f"--model.seed={seed}"]
    if not (folder / "triples" / "test.jsonl").exists():
        console.rule("1 of 5: the curriculum of the drawn objects")
        _write_curriculum(folder)
    if not recogniser.exists():
        console.rule("2 of 5: train a recogniser of parts, to measure with")
        report = _train_recogniser(recogniser, seed)
        console.print(
            f"On new drawings it finds {report['recall']:.1%} of the parts, and of what it finds "
            f"{report['precision']:.1%} is there."
        )
    if not (model / "unet" / "config.json").exists():
        console.rule("3 of 5: train a text-to-image model on existing concepts")
        demo.run("fit", "-c", PRETRAIN, *common, f"--trainer.callbacks.init_args.folder={model}", logs=base / "logs")
    tune = ["-c", TUNE, *common, f"--model.backbone.init_args.model={model}"]
    console.rule("4 of 5: fine-tune on pairs, in random order and along the curriculum")
    tuned: dict[str, Path | None] = {"frozen": None}
    for method, mode in MODES.items():
        tuned[method] = checkpoint = folder / mode / "tuned.ckpt"
        if not checkpoint.exists():
            data = [f"--data.curriculum={pairs}", f"--data.mode={mode}"]
            demo.run("fit", *tune, *data, logs=folder / mode / "logs").trainer.save_checkpoint(checkpoint)
    console.rule("5 of 5: draw new designs, and recognise what they offer")
    metric = {"class_path": "lit_modules.metrics.DrawnObjectScore", "init_args": {"recogniser": str(recogniser)}}
    results: dict[str, dict[str, dict[str, float]]] = {}
    for method, path in tuned.items():
        results[method] = {}
        for name in SETS:
            record = folder / "results" / f"{method.replace(' ', '_')}-{name}.json"
            if not record.exists():
                test = [f"--data.curriculum={folder / name}", f"--model.metric={json.dumps(metric)}"]
                test.append(f"--ckpt_path={path}" if path else "--trainer.callbacks=null")
                numbers = demo.run("test", *tune, *test, logs=record.with_suffix("")).model.results()
                write_whole(record, json.dumps(numbers, indent=1) + "\n")
            results[method][name] = json.loads(record.read_text(encoding="utf-8"))
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    _print_table(console, results)
    shown = [
        picture
        for name, number in (("trained", 6), ("pairs", 3))
        for picture in _pictures(folder / name, number, model, tuned=tuned, recogniser=recogniser)
    ]
    rows = [
        row
        for name, label in list(SETS.items())[:2]
        for method, sets in results.items()
        for row in table_rows(f"{method}, {label}", sets[name], list(COLUMNS), BINS)
    ]
    write_report(folder / "report.html", "New designs of drawn objects", rows, shown)
    plot_grid(folder / "report.png", shown)
    demo.finish(f"Report: {folder / 'report.html'}; picture: {folder / 'report.png'}")


def _write_curriculum(folder: Path) -> None:
    """Write the curriculum, and beside it two with other test sets: its own pairs, and three affordances at a time."""
    from itertools import combinations
    from random import Random

    from lit_modules.datamodules import DrawnObjects
    from lit_modules.synthia import Ontology, build_curriculum

    path = folder / "ontology.json"
    DrawnObjects.write_ontology(str(path))
    things = Ontology.from_file(path)
    curriculum = build_curriculum(things, num_pairs=TRAIN_PAIRS, num_test_pairs=TEST_PAIRS)
    for name in SETS:
        curriculum.save(folder / name)
    stages = [folder / "trained" / f"stage{number}.jsonl" for number in range(curriculum.num_stages)]
    write_whole(folder / "trained" / "test.jsonl", "".join(stage.read_text("utf-8") for stage in stages))
    known = {frozenset(pair.pos_prompts): pair for pair in (*curriculum.train, *curriculum.test)}
    tested = set(curriculum.test)
    names = sorted({name for pair in known for name in pair})
    rows: list[dict[str, Any]] = []
    for three in combinations(names, 3):
        twos = [frozenset(two) for two in combinations(three, 2)]
        # no two of the three were trained on together
        if any(two in known and known[two] not in tested for two in twos):
            continue
        pairs = [known[two] for two in twos if two in known]
        if not pairs:
            continue
        owners = sorted({things.concept(path).name for name in three for path in things.concepts_with(name)})
        spread = sum(pair.tdistance for pair in pairs) / len(pairs)
        rows.append({"pair_id": len(rows), "pos_prompts": three, "neg_prompts": owners, "tdistance": spread})
    chosen = Random(0).sample(rows, min(TRIPLES, len(rows)))
    write_whole(folder / "triples" / "test.jsonl", "".join(json.dumps(row) + "\n" for row in chosen))


def _train_recogniser(path: Path, seed: int) -> dict[str, float]:
    """Train and write the recogniser; return its accuracy on new drawings."""
    from lit_modules.datamodules import DrawnObjects, drawn
    from lit_modules.networks import PartRecogniser, recogniser_report, save_recogniser, train_recogniser
    from lit_modules.utils.random_state import preserved_random_state

    data = DrawnObjects()
    drawings = drawn.objects.labelled_drawings(20_000, seed=seed)
    fresh = drawn.objects.labelled_drawings(2000, seed=seed + 1)
    with preserved_random_state(seed=seed):
        recogniser = PartRecogniser(len(data.parts))
    train_recogniser(recogniser, drawings["image"], drawings["parts"], drawings["single"], seed=seed)
    save_recogniser(path, recogniser, data.seen_by, data.concept_parts, data.affordances, data.concepts)
    return recogniser_report(recogniser, fresh["image"], fresh["parts"], fresh["single"], data.parts)


def _print_table(console: Any, results: dict[str, dict[str, dict[str, float]]]) -> None:
    from rich.table import Table

    for name, label in SETS.items():
        table = Table(title=f"New designs for affordances: {label}")
        table.add_column("pairs")
        table.add_column("model", no_wrap=True)
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        for group in ("all", *BINS) if name != "triples" else ("all",):
            for method, sets in results.items():
                values = [sets[name][column if group == "all" else f"{column}/{group}"] for column in COLUMNS]
                table.add_row(group, method, *("-" if math.isnan(value) else f"{value:.3f}" for value in values))
            table.add_section()
        console.print(table)


def _pictures(
    pairs: Path, number: int, model: Path, *, tuned: dict[str, Path | None], recogniser: Path
) -> "list[PairPictures]":
    """Draw designs of each method for some test pairs, beside a reference and the nearest existing concept."""
    import torch

    from lit_modules.callbacks import EMA
    from lit_modules.datamodules import DrawnObjects
    from lit_modules.metrics.affordances import affordance_scores, nearest_concept
    from lit_modules.networks import load_recogniser
    from lit_modules.synthia import PixelDiffusion, Synthia
    from lit_modules.synthia.core.report import PairPictures, Picture
    from lit_modules.utils.checkpoints import open_checkpoint

    data = DrawnObjects(str(pairs), task="pairs")
    data.setup("test")
    tested: Any = data.split("test")  # of pairs, as the task says
    saved = load_recogniser(recogniser)
    order = sorted(range(len(tested)), key=lambda index: tested.rows[index]["tdistance"])
    modules = {}
    for method, checkpoint in tuned.items():
        modules[method] = Synthia(PixelDiffusion(str(model)))
        modules[method].configure_model()
        if checkpoint is not None:  # the averaged weights
            state = open_checkpoint(checkpoint)["callbacks"][EMA().state_key]
            modules[method].load_state_dict(state["averages"], strict=False)
    shown = []
    for index in order[:: max(1, len(order) // number)][:number]:
        batch = tested[[index]]
        wanted = batch["affordances"][0]
        columns = [saved.affordances.index(name) for name in wanted]
        grids: dict[str, list[Picture]] = {}
        for method, module in modules.items():
            images = module.generate(wanted, 4, seed=0)
            scores, _ = saved.recogniser.scores(images * 2 - 1)
            offered = affordance_scores(scores, saved.seen_by)[:, columns]
            grids[method] = [
                Picture(image, scores=dict(zip(wanted, row.tolist(), strict=True)))
                for image, row in zip(images, offered, strict=True)
            ]
        _, nearest = nearest_concept(scores, saved.concept_parts.float(), batch["owners"].expand(len(scores), -1))
        concept = int(torch.mode(nearest).values)
        grids["reference"] = [Picture(batch["pos"][0] / 2 + 0.5)]
        grids["nearest concept"] = [Picture(tested.existing[concept, 0], saved.concepts[concept])]
        name = BINS[int(batch["stage"][0])] + (", held out" if pairs.name == "pairs" else "")
        shown.append(PairPictures(wanted, name, grids, float(batch["tdistance"][0])))
    return shown
