"""What a few-shot datamodule gives to CoDA: concepts, pairs, and the support images of each."""

from pathlib import Path, PurePosixPath
from typing import Any

from lit_modules.coda.augmentation.inputs import PairTask
from lit_modules.coda.core.concepts import Concept, ConfusablePair
from lit_modules.datamodules import few_shot
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.images import FORMATS


def concept_of(found: Any, kind: str | None) -> Concept:
    """Return a concept of a folder as CoDA knows it.

    Args:
        found: Concept of the datamodule.
        kind: What it is if the data does not say it.
    """
    text = found.fields.get("knowledge_text")
    aliases = dict.fromkeys(name for name in found.aliases if name != found.name)
    return Concept(
        found.name,
        found.supercategory or "",
        found.kind or kind or "animal",
        tuple(aliases),
        text if isinstance(text, str) else "",
        found.known is not False,
    )


def pair_tasks(data: Any, folder: str | Path) -> list[PairTask]:
    """Return the pairs of a datamodule with the support images of its few-shot protocol, and no others.

    Args:
        data: Datamodule, with its files written.
        folder: Where pictures are written that are parts of another file, such as those of Parquet.

    Raises:
        ValueError: If a concept has too few images; lists all such.
        FileNotFoundError: If there are no pairs.
    """
    given = data.hparams
    shots = max(given["n_real"], given["n_source"] or 0)
    if shots < 1:
        raise ValueError(f"The stages look at real images: n_real must be at least 1, got {given['n_real']}.")
    pairs = data.pairs  # says it if there is no pair file, or no folder
    rates = _error_rates(data)
    tasks, short = [], {}
    for pair in pairs:
        both = []
        for concept in (pair.target, pair.confusable):
            pool = data.support(concept)[:shots]
            if len(pool) < shots:
                short[concept.name] = len(pool)
            both.append(tuple(_path(picture, Path(folder)) for picture in pool))
        target, confusable = (concept_of(concept, data.kind) for concept in (pair.target, pair.confusable))
        if all(both):
            tasks.append(PairTask(ConfusablePair(target, confusable, rates.get(pair.pair_id)), *both))
    if short:
        found = ", ".join(f"{name} has {number}" for name, number in sorted(short.items()))
        raise ValueError(f"{shots} training images of each concept are needed, and {found}; lower n_real or add some.")
    return tasks


def _error_rates(data: Any) -> dict[str, float | None]:
    """Return what the pair file says that the datamodule itself has no use for."""
    source = data.hparams["pairs"]
    if source is None:
        source = next(data.root / name for name in ("pairs.json", "config.json") if (data.root / name).is_file())
    return {pair.pair_id: pair.error_rate for pair in few_shot.pairs.read_pairs(source)}


def _path(picture: Any, folder: Path) -> str:
    if picture.read is None:
        return str(picture.path)
    suffix = PurePosixPath(picture.name).suffix.lower()
    place = folder / f"{stable_hash(picture.name)[:16]}{suffix if suffix in FORMATS else ''}"
    data = picture.data()
    if not place.is_file() or place.read_bytes() != data:
        write_whole(place, data)
    return str(place)
