"""``lit-modules demo coda``: a small model is taught creatures that it takes for others, from five pictures of each."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_modules.demos.stages import say_and_run
from lit_modules.utils.files import write_whole

PICTURES, IMAGE_SIZE = 24_000, 64
CLIP_STEPS, LLAVA_STEPS = 1000, 650
SOURCES = ("textual", "visual", "both")
FORMS = {
    "plain": ["--settings.verification=none"],
    "contrastive": ["--settings.verification=clip", "--settings.score_levels=[0.5]"],
}
"""Forms of features, and settings: those without contrast are taken as they are, and so are their pictures. The others
are verified by CLIP, as the tiny model that is to be taught is no judge."""
RELAXED = "--settings.score_levels=[0.5, 0.4, 0.3, 0.2, 0.1, 0.0]"
"""Lowers the least score, where too few passed in all attempts."""
RECIPE = "coda_augmentation/drawn.yaml"


def new_creatures(folder: Path, seed: int) -> None:
    """Train small models on a drawn world, find what they confuse, and teach them the difference.

    Finding pairs and making synthetic pictures are commands that a user can type, which are printed. What the folder
    has already is not done again.

    Args:
        folder: Folder of the run.
        seed: Seed of pictures, weights and order.
    """
    from rich.console import Console

    from lit_modules.coda.augmentation.report import write_report
    from lit_modules.coda.core.store import Store
    from lit_modules.datamodules import DrawnSpecies
    from lit_modules.demos.coda.update import print_table, run_updates

    console = Console()
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    data, models, store = folder / "data", folder / "models", folder / "store"
    console.rule("1 of 5: draw known and novel species")
    drawn = DrawnSpecies(str(data), world_seed=seed)
    drawn.prepare_data()
    _write_field_guide(drawn)
    _train(console, drawn, models, seed)
    console.rule("4 of 5: what the model confuses, what tells it apart, and pictures of that")
    common = _options(data, models, seed)
    found = f"--data.pairs={store / 'pairs.json'}"
    if not (store / "pairs.json").exists():
        _run(console, ["coda", "pairs", "-c", RECIPE, f"--store={store}", *common])
    for form, more in FORMS.items():
        place = store if form == "contrastive" else folder / "store_plain"
        kinds = [f"{source}_{form}" for source in SOURCES]
        line = ["-c", RECIPE, f"--store={place}", *common, found, f"--settings.kinds={json.dumps(kinds)}", *more]
        if not all((folder / "drawn" / kind / "features.json").exists() for kind in kinds):
            if say_and_run(console, ["coda", "augment", *line]):
                console.print("Too few pictures passed for some species: the least score is lowered.")
                line.append(RELAXED)
                say_and_run(console, ["coda", "augment", *line])
            for kind in kinds:
                _export(console, line, kind, folder / "drawn" / kind)
    console.rule("5 of 5: update the model, and ask it about other pictures")
    rows = run_updates(console, folder, models / "llava", seed)
    write_whole(folder / "results.json", json.dumps(rows, indent=1) + "\n")
    print_table(console, rows)
    with Store(store, writable=False) as kept:
        write_report(kept, folder / "report.html", results=rows)
    console.print(f"{time.monotonic() - began:.0f} s. Report: {folder / 'report.html'}")
    print(folder)


def _options(data: Path, models: Path, seed: int) -> list[str]:
    from lit_modules.coda import ClipEmbedder

    scale = ClipEmbedder(str(models / "clip")).encoder.scale  # of its cosines; that of the released CLIP is 100
    return [
        f"--data.root={data}",
        f"--data.world_seed={seed}",
        f"--chat.model={models / 'llava'}",
        f"--embedder.model={models / 'clip'}",
        "--generator=lit_modules.datamodules.drawn.DrawnCreatures",
        f"--generator.concepts={data / 'concepts.jsonl'}",
        f"--settings.seed={seed}",
        f"--settings.temperature={scale:.4g}",
        "--settings.guards=false",  # random but for a few attributes, a picture is rarely like its concept to CLIP
        "--settings.max_attempts=10",
    ]


def _export(console: Any, line: list[str], kind: str, folder: Path) -> None:
    """Write the accepted pictures of a kind, or say why it has no place in the table."""
    try:
        say_and_run(console, ["coda", "export", *line, f"--kind={kind}", f"--output={folder}"])
    except ValueError as error:
        console.print(f"{kind} is left out of the table. {error}", markup=False)


def _run(console: Any, arguments: list[str]) -> None:
    code = say_and_run(console, arguments)
    if code:
        raise SystemExit(code)


def _train(console: Any, drawn: Any, models: Path, seed: int) -> None:
    """Train CLIP and the image-text model, or what is missing of them."""
    import torch

    from lit_modules.demos.coda.lessons import Lessons, draw_world, phrases_of
    from lit_modules.networks import attribute_accuracy, build_clip, build_llava, train_clip, train_llava

    done = [(models / name / "config.json").exists() for name in ("clip", "llava")]
    if all(done):
        return
    world = draw_world(drawn, PICTURES, IMAGE_SIZE, seed)
    lessons, phrases = Lessons(world), phrases_of(world)
    if not done[0]:
        console.rule("2 of 5: train a CLIP to see attributes")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip, seen = build_clip([*lessons.texts(500), *(text for group in phrases for text in group)], IMAGE_SIZE)
        with _bar(console, "updates", CLIP_STEPS) as told:
            train_clip(clip, seen, world.images, world.values, phrases, CLIP_STEPS, seed=seed, watch=told)
        fresh = draw_world(drawn, 1000, IMAGE_SIZE, seed + 1)
        right = attribute_accuracy(clip, seen, fresh.images, fresh.values, phrases)
        console.print(f"On new drawings it names {sum(right) / len(right):.1%} of the attributes.")
        _save(models / "clip", clip, seen)
    if not done[1]:
        console.rule("3 of 5: train a LLaVA-NeXT to talk about known species")
        from transformers import AutoModel, AutoProcessor

        load: Any = AutoProcessor
        clip, seen = AutoModel.from_pretrained(models / "clip"), load.from_pretrained(models / "clip")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            llava, processor = build_llava(clip, seen, lessons.texts(), lessons.fixed_texts())
        with _bar(console, "updates", LLAVA_STEPS) as told:
            train_llava(llava, processor, world.images, lessons, LLAVA_STEPS, seed=seed, watch=told)
        _save(models / "llava", llava, processor)


def _write_field_guide(drawn: Any) -> None:
    """Add a passage on each novel species to the data's ``concepts.jsonl``, as its describers would have written one.

    It tells 8 of its attributes, those among them that tell it apart.
    """
    from lit_modules.demos.coda.lessons import TOLD, passage

    path = drawn.root / "concepts.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if not row["known"]:
            look, differs = row["attributes"], row["differs_in"]
            others = [name for name in look if name not in differs]
            told = {*differs, *others[: TOLD - len(differs)]}
            row["knowledge_text"] = passage(row["name"], {name: look[name] for name in look if name in told})
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def _bar(console: Any, what: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show the progress of a training, with its loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task(what, total=total, loss=float("nan"))
        yield lambda number, loss: bar.update(task, completed=number, loss=loss)


def _save(folder: Path, model: Any, processor: Any) -> None:
    """Write a model so that its folder appears whole or not at all."""
    import shutil

    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.replace(folder)
