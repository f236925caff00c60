"""``lit-modules demo coda``: a small model is taught creatures that it takes for others, from five pictures of each."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole
from lit_modules.utils.folders import whole_folder
from lit_modules.utils.json_lines import read_json_lines

PICTURES, IMAGE_SIZE = 24_000, 64
CLIP_STEPS, LLAVA_STEPS = 1000, 650
SOURCES = ("textual", "visual", "both")
FORMS = {
    "plain": ["--settings.verification=none"],
    "contrastive": ["--settings.verification=clip", "--settings.score_levels=[0.5]"],
}
"""Forms of features with their settings. Those without contrast and their pictures are taken unverified, the others are
verified by CLIP, as the tiny model that is to be taught is no judge."""
RELAXED = "--settings.score_levels=[0.5, 0.4, 0.3, 0.2, 0.1, 0.0]"
"""Lower least scores, where too few pictures passed in all attempts."""
RECIPE = "coda_augmentation/drawn.yaml"


def new_creatures(folder: Path, seed: int) -> None:
    """Train small models on a drawn world, find what they confuse, and teach them the difference.

    Args:
        folder: Folder of the run.
        seed: Seed of pictures, weights and order.
    """
    from lit_modules.coda.augmentation.report import write_report
    from lit_modules.coda.core.store import Store
    from lit_modules.datamodules import DrawnSpecies
    from lit_modules.demos.coda.update import print_table, run_updates

    demo = Demo(folder)
    console, data, models, store = demo.console, folder / "data", folder / "models", folder / "store"
    console.rule("1 of 5: draw known and novel species")
    species = DrawnSpecies(str(data), world_seed=seed)
    species.prepare_data()
    _write_field_guide(species)
    _train(console, species, models, seed=seed)
    console.rule("4 of 5: what the model confuses, what tells it apart, and pictures of that")
    common = ["-c", RECIPE, *_options(data, models, seed)]
    pairs = store / "pairs.json"
    if not pairs.exists() and (code := demo.run("coda", "pairs", *common, f"--store={store}")):
        raise SystemExit(code)
    for form, settings in FORMS.items():
        kinds = [f"{source}_{form}" for source in SOURCES]
        if all((folder / "drawn" / kind / "features.json").exists() for kind in kinds):
            continue
        line = [*common, f"--store={store if form == 'contrastive' else folder / 'store_plain'}"]
        line += [f"--data.pairs={pairs}", f"--settings.kinds={json.dumps(kinds)}", *settings]
        if demo.run("coda", "augment", *line):
            console.print("Too few pictures passed for some species: the least score is lowered.")
            line.append(RELAXED)
            demo.run("coda", "augment", *line)
        for kind in kinds:
            try:
                demo.run("coda", "export", *line, f"--kind={kind}", f"--output={folder / 'drawn' / kind}")
            except ValueError as error:
                console.print(f"{kind} is left out of the table. {error}", markup=False)
    console.rule("5 of 5: update the model, and ask it about other pictures")
    rows = run_updates(console, folder, models / "llava", seed=seed)
    write_whole(folder / "results.json", json.dumps(rows, indent=1) + "\n")
    print_table(console, rows)
    with Store(store, writable=False) as finished:
        write_report(finished, folder / "report.html", results=rows)
    demo.finish(f"Report: {folder / 'report.html'}")


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


def _train(console: Any, species: Any, models: Path, *, seed: int) -> None:
    """Train CLIP and the image-text model, or what is missing of them."""
    from transformers import AutoModel, AutoProcessor

    from lit_modules.demos.coda.lessons import Lessons, draw_world
    from lit_modules.networks import attribute_accuracy, build_clip, build_llava, train_clip, train_llava
    from lit_modules.utils.random_state import preserved_random_state

    done = [(models / name / "config.json").exists() for name in ("clip", "llava")]
    if all(done):
        return
    world = draw_world(species, PICTURES, IMAGE_SIZE, seed=seed)
    lessons, phrases = Lessons(world), [list(values.values()) for values in world.phrases.values()]
    if not done[0]:
        console.rule("2 of 5: train a CLIP to see attributes")
        with preserved_random_state(seed=seed):
            texts = [*lessons.texts(500), *(text for group in phrases for text in group)]
            clip, processor = build_clip(texts, IMAGE_SIZE)
        settings: dict[str, Any] = {"num_steps": CLIP_STEPS, "seed": seed}
        with _bar(console, CLIP_STEPS) as watch:
            train_clip(clip, processor, world.images, values=world.values, phrases=phrases, watch=watch, **settings)
        fresh = draw_world(species, 1000, IMAGE_SIZE, seed=seed + 1)
        right = attribute_accuracy(clip, processor, fresh.images, values=fresh.values, phrases=phrases)
        console.print(f"On new drawings it names {sum(right) / len(right):.1%} of the attributes.")
        _save(models / "clip", clip, processor)
    if not done[1]:
        console.rule("3 of 5: train a LLaVA-NeXT to talk about known species")
        load: Any = AutoProcessor
        clip, processor = AutoModel.from_pretrained(models / "clip"), load.from_pretrained(models / "clip")
        with preserved_random_state(seed=seed):
            llava, processor = build_llava(clip, processor, lessons.texts(), whole=lessons.fixed_texts())
        with _bar(console, LLAVA_STEPS) as watch:
            train_llava(llava, processor, world.images, lesson=lessons, num_steps=LLAVA_STEPS, seed=seed, watch=watch)
        _save(models / "llava", llava, processor)


def _write_field_guide(species: Any) -> None:
    """Add a passage on each novel species to the data's ``concepts.jsonl``, as its describers would have written one.

    It names 8 of its attributes, those among them that tell it apart.
    """
    from lit_modules.datamodules import drawn
    from lit_modules.demos.coda.lessons import TOLD

    path = species.root / "concepts.jsonl"
    rows = [row for _, row in read_json_lines(path)]
    for row in rows:
        if not row["known"]:
            attributes, differs = row["attributes"], row["differs_in"]
            named = {*differs, *[name for name in attributes if name not in differs][: TOLD - len(differs)]}
            row["knowledge_text"] = drawn.species.caption(
                row["name"], {key: attributes[key] for key in attributes if key in named}
            )
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def _bar(console: Any, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show the progress of a training, with its loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task("updates", total=total, loss=float("nan"))
        yield lambda number, loss: bar.update(task, completed=number, loss=loss)


def _save(folder: Path, model: Any, processor: Any) -> None:
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
