"""Drawn species: creatures made from a seed, to teach new concepts offline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from PIL import Image

from lit_modules.utils.arguments import Unpack, without_own
from lit_modules.utils.files import write_whole
from lit_modules.utils.folders import whole_folder
from lit_modules.utils.images import MAX_PIXELS
from lit_modules.utils.progress import shown, track

from ..common.checks import check_at_least
from ..few_shot.few_shot import FewShotArguments, FewShotPairs
from ..few_shot.pairs import ConfusablePair, write_pairs
from ..few_shot.questions import OFFICIAL_EVALUATION_QUESTION
from .creatures import ATTRIBUTES, HABITATS, PHRASES, draw, phrases, random_attributes

MANIFEST = "drawn_species.json"
VERSION = 1
_STARTS = "vel tar mor gri sul ban dok pel zan kir lom fen hax jur nib wos".split()  # noqa: SIM905 - one line
_MIDDLES = ["a", "e", "i", "o", "u", "an", "or", "il", "ub", "em"]
_ENDS = ["nip", "mor", "dak", "lin", "gus", "rex", "tol", "ven", "bit", "zoo", "pax", "kel"]


class DrawnSpecies(FewShotPairs):
    """Drawn creatures: known species, and novel ones that differ from a known one in one or two attributes.

    A creature has 12 attributes, all visible: body, colour, pattern, belly, horns, ears, eyes, mouth, back, wings, legs
    and tail; :data:`~datamodules.drawn.creatures.PHRASES` lists their values and the phrases of these in texts. Pose,
    place, size, light and background vary from picture to picture. Everything is a function of ``world_seed``.
    ``prepare_data`` writes the pictures as files in the canonical layout, with captions and attributes, and a manifest
    of the arguments that they were drawn with; they are then read as photographs are.

    Batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`, of pairs of a novel species and its
    known one. ``retention.json`` in ``root`` lists pairs of other known species.

    Args:
        root: Folder to write to and to read; ``None`` takes ``data/drawn_species``.
        num_known: Known species.
        num_novel: Novel species.
        train_images: Training pictures of each species.
        validation_images: Validation pictures of each species.
        test_images: Test pictures of each species.
        drawn_size: Side of the drawn pictures in pixels, at least 16.
        habitats: Chance that a training picture of a concept of a pair shows the one habitat that is the concept's
            own, which is a shortcut that does not hold in the pictures asked about: these, and all others, show any
            habitat. ``None`` draws plain backgrounds.
        world_seed: Seed of species and pictures.
        n_query: Most pictures of each concept to ask about; ``None`` takes all.
        shared: Arguments of :class:`~datamodules.few_shot.few_shot.FewShotPairs`, by name.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` holds anything else.

    Example:
        >>> import tempfile
        >>> data = DrawnSpecies(tempfile.mkdtemp(), num_known=4, num_novel=2, train_images=5, test_images=2)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"][0].size, len(batch["prompt"]), batch["label"].shape
        ((64, 64), 5, torch.Size([5]))
    """

    home = "data/drawn_species"
    kind = "animal"
    attributes: ClassVar[Mapping[str, tuple[str, ...]]] = ATTRIBUTES
    licence = "drawn pictures, under the licence of this software, Apache-2.0"

    def __init__(
        self,
        root: str | None = None,
        num_known: int = 24,
        num_novel: int = 6,
        train_images: int = 20,
        validation_images: int = 10,
        test_images: int = 15,
        drawn_size: int = 64,
        habitats: float | None = None,
        world_seed: int = 0,
        n_query: int | None = None,
        **shared: Unpack[FewShotArguments],
    ) -> None:
        check_at_least(1, num_novel=num_novel, train_images=train_images)
        check_at_least(1, validation_images=validation_images, test_images=test_images)
        check_at_least(16, drawn_size=drawn_size)
        if habitats is not None and not 0 <= habitats <= 1:
            raise ValueError(f"habitats must lie in [0, 1] or be None, got {habitats}.")
        self.species: list[Species] = invent_species(num_known, num_novel, world_seed)
        shared = without_own(
            shared,
            layout="auto",
            folders=None,
            annotations=None,
            download=False,
            query_from="auto",
            near_duplicates=False,
            max_pixels=MAX_PIXELS,
        )
        super().__init__(
            root=root,
            n_query=n_query,
            layout="auto",
            folders=None,
            annotations=None,
            download=False,
            query_from="auto",
            near_duplicates=False,  # creatures of two species that differ in a detail may look nearly alike
            max_pixels=MAX_PIXELS,
            **shared,
        )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words of names, attributes, captions and questions, sorted; without punctuation."""
        texts = [phrase for values in PHRASES.values() for phrase in values.values()]
        texts += [species.name for species in self.species] + ["A has and or no", OFFICIAL_EVALUATION_QUESTION]
        texts += [self.hparams["question"], self.hparams["eval_question"] or ""]
        words = {word.strip(".,:;?!") for text in texts for word in text.replace("{options}", " ").split()}
        return tuple(sorted(words - {""}))

    @staticmethod
    def draw(attributes: Mapping[str, str], seed: int | str = 0, size: int = 64) -> Image.Image:
        """Draw a creature with some attributes, see :func:`~datamodules.drawn.creatures.draw`."""
        return draw(attributes, seed, size)

    def prepare_data(self) -> None:
        """Draw the pictures and write them, unless they are there."""
        images = {split: self.hparams[f"{split}_images"] for split in ("train", "validation", "test")}
        size, habitats, seed = (self.hparams[name] for name in ("drawn_size", "habitats", "world_seed"))
        with shown(self.trainer):
            write_species(self.root, self.species, images, image_size=size, habitats=habitats, seed=seed)


@dataclass(frozen=True)
class Species:
    """Species of creatures.

    Args:
        name: Name.
        attributes: Value of each attribute.
        confusable: Known species that a novel one resembles; ``None`` for known ones.
        differs_in: Attributes in which it differs from its confusable.
        supercategory: Group; a novel species is in that of its confusable.
    """

    name: str
    attributes: Mapping[str, str]
    confusable: str | None = None
    differs_in: tuple[str, ...] = ()
    supercategory: str = ""

    @property
    def known(self) -> bool:
        """True for a known species."""
        return self.confusable is None


def invent_species(num_known: int = 24, num_novel: int = 6, seed: int = 0) -> list[Species]:
    """Invent known species, and novel ones that each differ from a known one in one or two attributes.

    Known species differ from each other in at least four attributes. A novel species differs in at least two from
    every other species but its confusable. No two novel species share a confusable. Colour and body stay those of the
    confusable, so that novel species are not told at a glance.

    Args:
        num_known: Known species, at least ``num_novel`` and 2.
        num_novel: Novel species.
        seed: Seed.

    Returns:
        Known species, then novel ones.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> species = invent_species(8, 2)
        >>> [kind.known for kind in species].count(False), len(species[-1].differs_in) in (1, 2)
        (2, True)
    """
    if not 2 <= num_known <= 400:
        raise ValueError(f"num_known must be from 2 to 400, got {num_known}.")
    if not 0 <= num_novel <= num_known:
        raise ValueError(f"num_novel must be from 0 to num_known, {num_known}, got {num_novel}.")
    random = Random(f"{seed}/species/{VERSION}")
    names = every_name()
    random.shuffle(names)
    known: list[Species] = []
    while len(known) < num_known:
        attributes = random_attributes(random)
        if all(len(differences(attributes, other.attributes)) >= 4 for other in known):
            group = "Walkers" if attributes["wings"] == "none" else "Flyers"
            known.append(Species(names[len(known)], attributes, supercategory=group))
    novel: list[Species] = []
    free = [name for name in ATTRIBUTES if name not in ("body", "colour")]
    for index, parent in enumerate(random.sample(known, num_novel)):
        while len(novel) == index:
            changed = tuple(sorted(random.sample(free, random.choice((1, 2)))))
            attributes = dict(parent.attributes)
            for name in changed:
                attributes[name] = random.choice([value for value in ATTRIBUTES[name] if value != attributes[name]])
            others = [other for other in (*known, *novel) if other is not parent]
            if all(len(differences(attributes, other.attributes)) >= 2 for other in others):
                name = names[num_known + index]
                novel.append(
                    Species(name, attributes, parent.name, differs_in=changed, supercategory=parent.supercategory)
                )
    return [*known, *novel]


def every_name() -> list[str]:
    """Return all names that a species may have, in a fixed order."""
    return [f"{start}{middle}{end}".capitalize() for start in _STARTS for middle in _MIDDLES for end in _ENDS]


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the attributes in which two creatures differ."""
    return [name for name in ATTRIBUTES if one[name] != other[name]]


def caption(name: str, attributes: Mapping[str, str]) -> str:
    """Return a sentence that says what a creature looks like.

    Example:
        >>> caption("Velanip", {"tail": "curled", "horns": "two"})
        'A Velanip has a curled tail and two horns.'
    """
    parts = phrases(attributes)
    return f"A {name} has " + " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) + "."


def known_pairs(species: Sequence[Species]) -> list[ConfusablePair]:
    """Return pairs of known species that resemble each other and no novel one, to measure what is retained."""
    confusables = {each.confusable for each in species}
    free = [each for each in species if each.known and each.name not in confusables]
    pairs = []
    while len(free) > 1:
        one = free.pop(0)
        other = min(free, key=lambda each: len(differences(one.attributes, each.attributes)))
        free.remove(other)
        pairs.append(ConfusablePair(one.name, other.name))
    return pairs


def habitats_of(species: Sequence[Species], seed: int = 0) -> dict[str, str]:
    """Return the habitat of each concept of a pair; that of a novel species is another than its confusable's."""
    homes: dict[str, str] = {}
    for each in species:
        if each.confusable is not None:
            random = Random(f"{seed}/habitats/{each.name}")
            homes |= dict(zip((each.name, each.confusable), random.sample(list(HABITATS), 2), strict=True))
    return homes


def write_species(
    folder: str | Path,
    species: Sequence[Species],
    images: Mapping[str, int],
    image_size: int = 64,
    habitats: float | None = None,
    seed: int = 0,
) -> None:
    """Write pictures of species in the canonical layout, whole or not at all; one written alike is left as it is.

    The folder holds ``SPLIT/SPECIES/0000.png``, ``SPLIT/metadata.jsonl`` with ``attributes`` and ``caption``,
    ``concepts.jsonl``, ``pairs.json``, ``retention.json`` and the manifest ``drawn_species.json``.

    Args:
        folder: Folder, new or empty.
        species: Species.
        images: Pictures of each species in each split.
        image_size: Side of the pictures in pixels.
        habitats: Chance that a training picture shows the habitat of its species, see :class:`DrawnSpecies`.
        seed: Seed of the pictures.

    Raises:
        ValueError: If the folder holds anything else.
    """
    folder = Path(folder)
    settings = {"seed": seed, "image_size": image_size, "habitats": habitats, "images": dict(images)}
    listed = [asdict(each) for each in species]
    manifest = json.loads(json.dumps({"version": VERSION, **settings, "species": listed}))
    if _is_written(folder, manifest):
        return
    homes = habitats_of(species, seed)
    try:
        with whole_folder(folder) as part:
            for split, number in images.items():
                rows = []
                for each in track(species, f"drawing {split} pictures"):
                    (part / split / each.name).mkdir(parents=True)
                    for index in range(number):
                        row, key = _picture_row(each, index), f"{seed}/{split}/{each.name}/{index}"
                        if habitats is not None:
                            random = Random(f"{key}/habitat")
                            own = split == "train" and each.name in homes and random.random() < habitats
                            row["habitat"] = homes[each.name] if own else random.choice(list(HABITATS))
                        picture = draw(each.attributes, key, image_size, row.get("habitat"))
                        picture.save(part / split / row["file_name"], compress_level=1)
                        rows.append(row)
                _write_lines(part / split / "metadata.jsonl", rows)
            _write_lines(part / "concepts.jsonl", [_concept_row(each) for each in species])
            pairs = [ConfusablePair(each.name, each.confusable) for each in species if each.confusable is not None]
            write_pairs(part / "pairs.json", pairs)
            write_pairs(part / "retention.json", known_pairs(species))
            write_whole(part / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    except OSError:
        if not _is_written(folder, manifest):  # another process may have been faster
            raise


def _is_written(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a folder holds what a manifest lists, ``False`` if there is none or it is empty.

    Raises:
        ValueError: If it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds other files than DrawnSpecies writes; give another folder.") from error
    if written != manifest:
        other = [name for name in manifest if not isinstance(written, dict) or written.get(name) != manifest[name]]
        raise ValueError(f"{folder} was drawn with another {' and '.join(other)}; give another folder or remove it.")
    return True


def _picture_row(species: Species, index: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file_name": f"{species.name}/{index:04d}.png",
        "class_name": species.name,
        "source": "drawn",
    }
    row |= {"supercategory": species.supercategory, "attributes": dict(species.attributes)}
    return {**row, "caption": caption(species.name, species.attributes)}


def _concept_row(species: Species) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": species.name,
        "dir": species.name,
        "supercategory": species.supercategory,
        "known": species.known,
    }
    row |= {"kind": "animal", "attributes": dict(species.attributes), "features": phrases(species.attributes)}
    return row if species.known else {**row, "confusable": species.confusable, "differs_in": list(species.differs_in)}


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
