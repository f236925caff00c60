"""Concepts, pairs and support images of a few-shot datamodule, as the augmentation takes them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lit_modules.coda.core.concepts import Concept, ConfusablePair, PairTask
from lit_modules.datamodules import few_shot
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.images import FORMATS


def concept_of(concept: Any, kind: str | None) -> Concept:
    """Return a concept of a datamodule as the augmentation takes it; ``kind`` is for data that does not say it."""
    text = concept.fields.get("knowledge_text")
    return Concept(
        concept.name,
        supercategory=concept.supercategory or "",
        kind=concept.kind or kind or "animal",
        aliases=tuple(dict.fromkeys(name for name in concept.aliases if name != concept.name)),
        knowledge_text=text if isinstance(text, str) else "",
        known=concept.known is not False,
    )


def pair_tasks(data: Any, folder: str | Path) -> list[PairTask]:
    """Return the pairs of a datamodule with the support images of its few-shot protocol, and no others."""
    shots = max(data.hparams["n_real"], data.hparams["n_source"] or 0)
    if shots < 1:
        raise ValueError(f"The stages look at real images: n_real must be at least 1, got {data.hparams['n_real']}.")
    tasks, short = [], {}
    pairs = data.pairs  # raises if there is no pair file, or no folder
    rates = _error_rates(data)
    for pair in pairs:
        images = []
        for concept in (pair.target, pair.confusable):
            support = data.support(concept)[:shots]
            if len(support) < shots:
                short[concept.name] = len(support)
            images.append(tuple(_path(image, Path(folder)) for image in support))
        if all(images):
            target, confusable = (concept_of(concept, data.kind) for concept in (pair.target, pair.confusable))
            tasks.append(PairTask(ConfusablePair(target, confusable, rates.get(pair.pair_id)), *images))
    if short:
        numbers = ", ".join(f"{name} has {number}" for name, number in sorted(short.items()))
        raise ValueError(
            f"{shots} training images of each concept are needed, and {numbers}; lower n_real or add some."
        )
    return tasks


def pair_ids(data: Any, tasks: Sequence[PairTask]) -> dict[str, str]:
    """Return what the data calls each pair; of both directions of a pair, the first."""
    names: dict[str, str] = {}
    for pair, task in zip(data.pairs, tasks, strict=True):
        names.setdefault(task.pair.pair_id, pair.pair_id)
    return names


def _error_rates(data: Any) -> dict[str, float | None]:
    """Return the error rates of the pair file, for which the datamodule has no use."""
    source = data.hparams["pairs"]
    if source is None:
        source = next(data.root / name for name in ("pairs.json", "config.json") if (data.root / name).is_file())
    return {pair.pair_id: pair.error_rate for pair in few_shot.pairs.read_pairs(source)}


def _path(image: Any, folder: Path) -> str:
    if image.read is None:
        return str(image.path)
    suffix = PurePosixPath(image.name).suffix.lower()
    path = folder / f"{stable_hash(image.name)[:16]}{suffix if suffix in FORMATS else ''}"
    data = image.data()
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
    return str(path)
