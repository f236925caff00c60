"""World of the demonstration: pairs of affordances, a model that draws existing things, and a recogniser of parts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lit_modules.demos.stages import Demo
    from lit_modules.networks import PartRecogniser
    from lit_modules.synthia.ontology.curriculum import Curriculum

BASE, RECOGNISER = "synthia/base", "synthia/recogniser"
"""Names of the shipped weights."""
PRETRAIN = "synthia/drawn_pretrain.yaml"
CYCLES = 2
"""Times that the base's recipe is run."""
TEST_PAIRS = 24
STAGES = ("easy", "medium", "hard")


def build_world(ontology: Path) -> "Curriculum":
    """Return the curriculum: some pairs held out, all others to train on.

    The held-out pairs are drawn as :func:`~lit_modules.synthia.build_curriculum` draws them beside 36 training pairs.
    Of the others, those that share something are cut into three stages; those that share nothing, at a distance of 1,
    join the last one.

    Args:
        ontology: File to write the ontology to.
    """
    from lit_modules.datamodules import DrawnObjects, drawn
    from lit_modules.synthia import AffordanceDistance, Ontology, build_curriculum
    from lit_modules.synthia.ontology.curriculum import (
        Curriculum,
        CurriculumPair,
        split_stages,
        transform,
        usable_pairs,
    )

    DrawnObjects.write_ontology(str(ontology))
    things = Ontology.from_file(ontology)
    held_out = build_curriculum(things, num_pairs=36, num_test_pairs=TEST_PAIRS).test
    names = {frozenset(pair.pos_prompts) for pair in held_out}
    pairs = AffordanceDistance()(things).pairs()
    usable = usable_pairs(pairs)
    spread = transform([pair.distance for pair in usable])
    kept = [index for index, pair in enumerate(usable) if frozenset(pair[:2]) not in names]
    stages = split_stages(spread[kept], len(STAGES))
    rows = [(usable[index], float(spread[index]), int(stage)) for index, stage in zip(kept, stages, strict=True)]
    rows += [(pair, 1.0, len(STAGES) - 1) for pair in pairs if pair not in usable]
    train = [
        CurriculumPair(number, pair[:2], drawn.ontology.owners(pair[:2]), pair.distance, tdistance, stage)
        for number, (pair, tdistance, stage) in enumerate(sorted(rows, key=lambda row: row[1]), len(held_out))
    ]
    return Curriculum(tuple(train), held_out, len(STAGES))


def write_pairs(folder: Path) -> Path:
    """Write the curriculum, ``stage0.jsonl`` and so on and ``test.jsonl``; return its folder."""
    build_world(folder / "ontology.json").save(folder)
    return folder


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the pairs of a file of the curriculum."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def typical_rows(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return as many pairs, evenly spread over the list."""
    return [rows[round((index + 0.5) * len(rows) / number - 0.5)] for index in range(number)]


def single_rows(affordances: Iterable[str]) -> list[dict[str, Any]]:
    """Return rows in the form of pairs, each of one affordance."""
    from lit_modules.datamodules import drawn

    return [{"pos_prompts": [name], "neg_prompts": list(drawn.ontology.owners([name]))} for name in affordances]


def write_base(folder: Path, weights: Path | None) -> Path:
    """Write the base model as a folder that ``PixelDiffusion`` loads.

    Args:
        folder: Folder to write.
        weights: Folder of `save_weights`; ``None`` takes the shipped weights.
    """
    from lit_modules.demos.shipped import load_weights
    from lit_modules.synthia import PixelDiffusion

    backbone = PixelDiffusion()
    backbone.load("network")
    backbone.network.load_state_dict(load_weights(BASE, weights))
    backbone.save_pretrained(str(folder), adapter=False)
    return folder


def load_parts_recogniser(weights: Path | None) -> "PartRecogniser":
    """Return the recogniser of parts in evaluation mode."""
    from lit_modules.datamodules import DrawnObjects
    from lit_modules.demos.shipped import load_weights
    from lit_modules.networks import PartRecogniser

    recogniser = PartRecogniser(len(DrawnObjects.parts))
    recogniser.load_state_dict(load_weights(RECOGNISER, weights))
    return recogniser.eval()


def train_world(demo: "Demo", pairs: Path, *, seed: int, weights: Path) -> None:
    """Train base and recogniser anew, and save their weights in the form of the shipped ones.

    Args:
        demo: Stages of the demonstration, in whose folder the base is trained.
        pairs: Folder of the curriculum, whose test pairs no picture of a nameless object shows.
        seed: Seed of pictures, weights and order.
        weights: Folder to save to.
    """
    from lit_modules.demos.shipped import save_weights

    if not (weights / f"{BASE}.safetensors").exists():
        save_weights(train_base(demo, pairs, seed), BASE, weights)
    recogniser, report = train_parts_recogniser(seed)
    demo.console.print(f"The recogniser finds {report['recall']:.1%} of the parts of new drawings.")
    save_weights(recogniser.state_dict(), RECOGNISER, weights)


def train_base(demo: "Demo", pairs: Path, seed: int, options: Sequence[str] = ()) -> "dict[str, Tensor]":
    """Train the base by its recipe, `CYCLES` times, and return its weights.

    Each cycle of the learning rate starts from the weights of the one before, on new pictures.

    Args:
        demo: Stages of the demonstration, in whose folder it is trained.
        pairs: Folder of the curriculum.
        seed: Seed of pictures, weights and order.
        options: More options of the fit.
    """
    from diffusers import UNet2DConditionModel

    folder = demo.folder / "base"
    start: list[str] = []
    for cycle in range(CYCLES):
        model = folder / f"cycle{cycle}"
        if not (model / "scheduler").exists():  # written last
            line = [
                "-c",
                PRETRAIN,
                *(f"--{name}={seed + cycle}" for name in ("seed_everything", "data.seed", "model.seed")),
            ]
            line += [*start, f"--data.curriculum={pairs}", f"--trainer.callbacks.init_args.folder={model}"]
            demo.run("fit", *line, *options, logs=folder / f"logs{cycle}")
        start = [f"--model.backbone.init_args.model={model}"]
    network: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    return dict(network.state_dict())


def train_parts_recogniser(
    seed: int, num_drawings: int = 20_000, num_steps: int = 1600
) -> "tuple[PartRecogniser, dict[str, float]]":
    """Return a recogniser trained on labelled drawings, and its accuracy on new ones."""
    from lit_modules.datamodules import DrawnObjects, drawn
    from lit_modules.networks import PartRecogniser, recogniser_report, train_recogniser
    from lit_modules.utils.random_state import preserved_random_state

    drawings = drawn.objects.labelled_drawings(num_drawings, seed=seed)
    fresh = drawn.objects.labelled_drawings(2000, seed=seed + 1)
    with preserved_random_state(seed=seed):
        recogniser = PartRecogniser(len(DrawnObjects.parts))
    labels = drawings["parts"], drawings["single"]
    train_recogniser(recogniser, drawings["image"], *labels, num_steps=num_steps, seed=seed)
    return recogniser, recogniser_report(
        recogniser, fresh["image"], fresh["parts"], fresh["single"], DrawnObjects.parts
    )
