"""Drawn species: invented kinds of creatures and the folder of pictures of them."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..few_shot.pairs import ConfusablePair, write_json, write_pairs
from .species_renderer import ATTRIBUTES, draw, phrases, random_attributes

MANIFEST = "drawn_species.json"
VERSION = 1
_STARTS = (
    "vel",
    "tar",
    "mor",
    "gri",
    "sul",
    "ban",
    "dok",
    "pel",
    "zan",
    "kir",
    "lom",
    "fen",
    "hax",
    "jur",
    "nib",
    "wos",
)
_MIDDLES = ("a", "e", "i", "o", "u", "an", "or", "il", "ub", "em")
_ENDS = ("nip", "mor", "dak", "lin", "gus", "rex", "tol", "ven", "bit", "zoo", "pax", "kel")


@dataclass(frozen=True)
class Species:
    """A kind of creature.

    Args:
        name: Name.
        attributes: Value of each attribute.
        confusable: Known species that a novel one resembles; ``None`` for known ones.
        differs_in: Attributes in which it differs from that.
        supercategory: Group; a novel species is in that of its confusable.
    """

    name: str
    attributes: Mapping[str, str]
    confusable: str | None = None
    differs_in: tuple[str, ...] = ()
    supercategory: str = ""

    @property
    def known(self) -> bool:
        """Whether it is a known species."""
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
        look = random_attributes(random)
        if all(len(differences(look, other.attributes)) >= 4 for other in known):
            group = "Walkers" if look["wings"] == "none" else "Flyers"
            known.append(Species(names[len(known)], look, supercategory=group))
    novel: list[Species] = []
    free = [name for name in ATTRIBUTES if name not in ("body", "colour")]
    for place, parent in enumerate(random.sample(known, num_novel)):
        while len(novel) == place:
            changed = tuple(sorted(random.sample(free, random.choice((1, 2)))))
            look = dict(parent.attributes)
            for name in changed:
                look[name] = random.choice([value for value in ATTRIBUTES[name] if value != look[name]])
            others = [other for other in (*known, *novel) if other is not parent]
            if all(len(differences(look, other.attributes)) >= 2 for other in others):
                name = names[num_known + place]
                novel.append(Species(name, look, parent.name, changed, parent.supercategory))
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
    """Return pairs of known species that resemble each other and no novel one, to ask what is retained."""
    taken = {kind.confusable for kind in species}
    free = [kind for kind in species if kind.known and kind.name not in taken]
    pairs = []
    while len(free) > 1:
        one = free.pop(0)
        other = min(free, key=lambda kind: len(differences(one.attributes, kind.attributes)))
        free.remove(other)
        pairs.append(ConfusablePair(one.name, other.name))
    return pairs


def write_species(
    folder: str | Path,
    species: Sequence[Species],
    images: Mapping[str, int],
    image_size: int = 64,
    seed: int = 0,
) -> None:
    """Write pictures of species in the canonical layout; a folder that was written alike is left alone.

    It holds ``SPLIT/SPECIES/0000.png``, ``SPLIT/metadata.jsonl`` with ``attributes`` and ``caption``,
    ``concepts.jsonl``, ``pairs.json``, ``retention.json`` and the manifest ``drawn_species.json``. It appears whole or
    not at all.

    Args:
        folder: Folder, new or empty.
        species: Species.
        images: Pictures of each species in each split.
        image_size: Side of the pictures in pixels.
        seed: Seed of the pictures.

    Raises:
        ValueError: If the folder holds anything else.
    """
    folder = Path(folder)
    asked = {
        "version": VERSION,
        "seed": seed,
        "image_size": image_size,
        "images": dict(images),
        "species": [asdict(kind) for kind in species],
    }
    asked = json.loads(json.dumps(asked))
    if is_written(folder, asked):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    whole = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, number in images.items():
            rows = [row for kind in species for row in _draw_kind(whole / split, kind, number, split, image_size, seed)]
            _write_lines(whole / split / "metadata.jsonl", rows)
        _write_lines(whole / "concepts.jsonl", [_concept(kind) for kind in species])
        pairs = [ConfusablePair(kind.name, kind.confusable) for kind in species if kind.confusable is not None]
        write_pairs(whole / "pairs.json", pairs)
        write_pairs(whole / "retention.json", known_pairs(species))
        write_json(whole / MANIFEST, asked)
        whole.chmod(0o755)
        try:
            os.replace(whole, folder)
        except OSError:  # another process was faster, or something else lies there
            if not is_written(folder, asked):
                raise
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def is_written(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether a folder holds what is asked for, and ``False`` if there is none or it is empty.

    Raises:
        ValueError: If it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds other files than DrawnSpecies writes; give another folder.") from error
    if found != asked:
        differ = [name for name in asked if not isinstance(found, dict) or found.get(name) != asked[name]]
        raise ValueError(f"{folder} was drawn with another {' and '.join(differ)}; give another folder or remove it.")
    return True


def _draw_kind(place: Path, kind: Species, number: int, split: str, image_size: int, seed: int) -> list[dict[str, Any]]:
    (place / kind.name).mkdir(parents=True)
    rows = []
    for index in range(number):
        key = f"{seed}/{split}/{kind.name}/{index}"
        name = f"{kind.name}/{index:04d}.png"
        draw(kind.attributes, key, image_size).save(place / name, compress_level=1)
        row = {"file_name": name, "class_name": kind.name, "source": "drawn", "supercategory": kind.supercategory}
        rows.append(row | {"attributes": dict(kind.attributes), "caption": caption(kind.name, kind.attributes)})
    return rows


def _concept(kind: Species) -> dict[str, Any]:
    row = {"name": kind.name, "dir": kind.name, "supercategory": kind.supercategory, "known": kind.known}
    row |= {"kind": "animal", "attributes": dict(kind.attributes), "features": phrases(kind.attributes)}
    return row | ({} if kind.known else {"confusable": kind.confusable, "differs_in": list(kind.differs_in)})


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
