"""Drawn world in which CoDA is tested: its pictures, the limits of its generator, and the synthetic pictures."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.augmentation.pipeline import PipelineResult
from lit_modules.datamodules import DrawnSpecies, drawn
from lit_modules.demos.coda.models import IMAGE_SIZE
from lit_modules.demos.stages import quiet

NOVEL = 12
SHOTS, MOST_SYNTHETIC = 5, 5
"""Real pictures of each concept, and synthetic ones beside them."""
_UNFILTERED: dict[str, Any] = {"filtered_kinds": (), "verification": "none", "score_levels": None}
_D = {**_UNFILTERED, "filtered_kinds": ("textual_contrastive",), "trials_per_group": 0}
_D_G = {**_D, "trials_per_group": 5}
AUGMENTED: dict[str, tuple[FeatureKind, dict[str, Any]]] = {
    "no contrast": ("textual_plain", _UNFILTERED),
    "contrast": ("textual_contrastive", _UNFILTERED),
    "contrast + D": ("textual_contrastive", _D),
    "contrast + D + G": ("textual_contrastive", _D_G),
    "CoDA": ("textual_contrastive", {**_D_G, "verification": "clip", "score_levels": (0.5,), "max_attempts": 20}),
}
"""Kind of features and settings of each row with synthetic pictures; ``CoDA`` is contrast + D + G + verification."""


@dataclass(frozen=True)
class World:
    """Drawn world, with the limits of the models that list features and generate pictures.

    Args:
        habitats: Chance that a support shows the one habitat of its concept; ``None`` draws plain backgrounds.
        capacity: Most phrases of a prompt that the generator obeys, the first ones; ``None`` sets no limit.
        undrawable: Share of the values of attributes that it cannot draw.
        relatives: Whether it takes a novel species for its known relative.
        likeness: Chance that what a prompt does not say is drawn as in the species that it names, else at random.
        inventions: Chance that an attribute which tells nothing gets into a contrastive list.
        novel: Pairs of a novel species and its known relative.
    """

    habitats: float | None = 1.0
    capacity: int | None = 3
    undrawable: float = 0.2
    relatives: bool = True
    likeness: float = 0.8
    inventions: float = 0.15
    novel: int = field(default_factory=lambda: NOVEL)

    def data(self, root: Path, seed: int, **arguments: Any) -> DrawnSpecies:
        """Return the data: pairs of a novel species and its known relative; ``arguments`` are further ones."""
        return DrawnSpecies(
            str(root),
            num_novel=self.novel,
            train_images=SHOTS,
            validation_images=1,
            test_images=30,
            drawn_size=IMAGE_SIZE,
            habitats=self.habitats,
            world_seed=seed,
            n_real=SHOTS,
            seed=seed,
            **arguments,
        )


def draw_world(world: World, root: Path, seed: int) -> None:
    """Draw the real pictures, unless they are there."""
    world.data(root, seed).prepare_data()


def augment(world: World, row: str, folder: Path, *, models: Path, seed: int) -> PipelineResult:
    """Run the stages of CoDA with the settings of a row, and export its pictures; see :func:`drawn_folder`.

    Args:
        world: The world, whose pictures lie in ``folder/data``.
        row: Row of `AUGMENTED`.
        folder: Folder of the run.
        models: Folder of the models.
        seed: Seed.
    """
    from lit_modules.cli.coda.data import pair_ids, pair_tasks
    from lit_modules.coda import ClipEmbedder, CoDAPipeline, CoDASettings, Store, export_images
    from lit_modules.demos.coda.field_guide import FieldGuide

    data = world.data(folder / "data", seed)
    concepts = str(folder / "data" / "concepts.jsonl")
    generator = drawn.DrawnCreatures(
        concepts=concepts,
        capacity=world.capacity,
        undrawable=world.undrawable,
        relatives=world.relatives,
        likeness=world.likeness,
        habitats=world.habitats is not None,
        world_seed=seed,
    )
    with quiet():
        embedder = ClipEmbedder(str(models / "clip"))
        scale = embedder.encoder.scale  # of its cosines; that of the released CLIP is 100
    kind, changes = AUGMENTED[row]
    settings = CoDASettings(
        seed=seed,
        kinds=(kind,),
        temperature=scale,
        min_features=1,
        resamples=100,
        num_images=MOST_SYNTHETIC,
        width=IMAGE_SIZE,
        height=IMAGE_SIZE,
        guards=False,  # they are for photographs: those of drawn creatures would add to the verification that is tested
        **changes,
    )
    tasks = pair_tasks(data, folder / "support")
    with Store(store_folder(folder, row)) as store:
        chat = FieldGuide(concepts, inventions=world.inventions)
        result = CoDAPipeline(store, settings, chat, generator=generator, embedder=embedder).run(tasks)
        if result.failures:  # of 100 pictures fewer than 5 pass: the concept has the first ones of the others too
            short = {unit.pair_id for unit in result.failures}
            relaxed = replace(settings, score_levels=(0.5, 0.0))
            again = [task for task in tasks if task.pair.pair_id in short]
            CoDAPipeline(store, relaxed, chat, generator=generator, embedder=embedder).run(again)
        export_images(store, drawn_folder(folder, row), tasks, kind, pair_ids=pair_ids(data, tasks))
    return result


def store_folder(folder: Path, row: str) -> Path:
    """Return the folder of a row's store."""
    return folder / "stores" / row.replace(" + ", "-").replace(" ", "-")


def drawn_folder(folder: Path, row: str) -> Path:
    """Return the folder of a row's accepted pictures."""
    return folder / "drawn" / store_folder(folder, row).name
