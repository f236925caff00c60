"""Export of accepted synthetic images as a training folder, in the layout of few-shot data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.core.concepts import Concept, PairTask, safe_name, shard_tasks
from lit_modules.coda.core.store import Store
from lit_modules.utils.files import write_whole


def export_images(
    store: Store,
    folder: str | Path,
    tasks: Sequence[PairTask],
    kind: FeatureKind,
    allow_short: bool = False,
    pair_ids: Mapping[str, str] | None = None,
) -> int:
    """Write the accepted images of a kind as ``train/metadata.jsonl`` and a folder for each class; return their number.

    File names are made here, from hashes and numbers; a class that occurs in several pairs has the images of each.
    ``concepts.jsonl``, ``pairs.json``, which lists each pair once, and ``features.json`` with the attributes of the
    prompts are written beside. Files that exist and fit are left alone.

    Args:
        store: Store of a run.
        folder: Folder to write.
        tasks: Pairs to export.
        kind: Kind of features whose images to take.
        allow_short: Whether a concept may have fewer images than the run wanted.
        pair_ids: What the real data calls the pairs, by their folder names; others keep these.

    Raises:
        ValueError: If a concept has no images, or too few, or an image is not what its record says.
    """
    root = Path(folder)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    files: list[tuple[str, bytes]] = []
    features: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    concepts: dict[str, Concept] = {}
    for task in shard_tasks(tasks):
        pair = task.pair
        pair_id = (pair_ids or {}).get(pair.pair_id, pair.pair_id)
        for concept, other, _, _ in task.directions():
            concepts[concept.name] = concept
            path = [pair.pair_id, safe_name(concept.name), kind]
            record = store.read_json([*path, "images.json"])
            against = f"{concept.name} against {other.name}"
            if record is None or not record["accepted"]:
                problems.append(f"{against} has no accepted images")
                continue
            if record["short"] and not allow_short:
                problems.append(f"{against} lacks {record['short']} images")
                continue
            for index, data in accepted_images(store, path, record):
                if data is None:
                    problems.append(f"image {index} of {against} is not what was made")
                    continue
                name = f"{safe_name(concept.name)}/{pair.pair_id}-{index}.png"
                files.append((name, data))
                facts = store.read_json([*path, "images", f"{index}.json"]) or {}
                made = {field: facts.get(field) for field in ("prompt", "seed", "generator", "score", "sha256")}
                rows.append(image_row(name, concept, kind, pair_id=pair_id, **made))
            features.append({"target": concept.name, "confusable": other.name, "features": record["attributes"]})
        pairs.append(
            {
                "pair_id": pair_id,
                "target": pair.target.name,
                "confusable": pair.confusable.name,
                "error_rate": pair.error_rate,
                "target_dir": safe_name(pair.target.name),
                "confusable_dir": safe_name(pair.confusable.name),
            }
        )
    if problems:
        raise ValueError(f"The images cannot be exported: {'; '.join(problems)}.")
    write_training_folder(root, rows, files, concepts=concepts)
    write_whole(root / "pairs.json", json.dumps(pairs, indent=1) + "\n")
    write_whole(root / "features.json", json.dumps(features, indent=1) + "\n")
    return len(rows)


def accepted_images(store: Store, path: Sequence[str], record: Mapping[str, Any]) -> Iterator[tuple[int, bytes | None]]:
    """Yield index and file of the accepted images of a unit; ``None`` for a file that is not what was made."""
    for index in map(int, record["accepted"]):
        yield index, store.read_file([*path, "images", f"{index}.png"], record["files"][f"{index}.png"])


def image_row(name: str, concept: Concept, kind: str, **more: Any) -> dict[str, Any]:
    """Return the row of a synthetic image in ``metadata.jsonl``."""
    return {
        "file_name": name,
        "class_name": concept.name,
        "source": "synthetic",
        "supercategory": concept.supercategory,
        "split_role": "support",
        "kind": kind,
        **more,
    }


def write_training_folder(
    folder: str | Path,
    rows: Sequence[dict[str, Any]],
    files: Sequence[tuple[str, bytes]],
    concepts: Mapping[str, Concept],
) -> None:
    """Write images and their rows as ``train/metadata.jsonl``, ``train/CLASS/*`` and ``concepts.jsonl``.

    Files, given by their path below ``train`` and content, that exist and fit are left alone.
    """
    root = Path(folder)
    for name, data in files:
        path = root / "train" / name
        if not path.is_file() or path.read_bytes() != data:
            write_whole(path, data)
    listed = [{**concept.record(), "dir": safe_name(name)} for name, concept in sorted(concepts.items())]
    for path, lines in ((root / "train" / "metadata.jsonl", rows), (root / "concepts.jsonl", listed)):
        write_whole(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
