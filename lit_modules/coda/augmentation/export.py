"""Writing accepted synthetic images as a training folder, in the layout of few-shot data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.augmentation.inputs import PairTask, shard_tasks
from lit_modules.coda.core.concepts import Concept, safe_name
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
    """Write the accepted images of a kind as ``train/metadata.jsonl`` and one folder for each class.

    All names of files are made here, from hashes and numbers; a class that occurs in several pairs has the images of
    each. ``concepts.jsonl``, ``pairs.json``, which lists each pair once, and ``features.json`` with the attributes of
    the prompts are written beside.

    Args:
        store: Store of a run.
        folder: Folder to write; files that are there already and fit are left alone.
        tasks: Pairs to export.
        kind: Kind of features whose images to take.
        allow_short: Whether a concept may have fewer images than the run wanted.
        pair_ids: What the real data calls the pairs, by their folder names; others keep these.

    Returns:
        Number of images.

    Raises:
        ValueError: If a concept has no images, or too few, or an image is not what its record says.
    """
    root = Path(folder)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    files: list[tuple[str, bytes]] = []
    unique = shard_tasks(tasks)
    called = {task.pair.pair_id: (pair_ids or {}).get(task.pair.pair_id, task.pair.pair_id) for task in unique}
    features: list[dict[str, Any]] = []
    for task in unique:
        pair = task.pair
        for concept, other in ((pair.target, pair.confusable), (pair.confusable, pair.target)):
            place = [pair.pair_id, safe_name(concept.name), kind]
            record = store.read_json([*place, "images.json"])
            if record is None or not record["accepted"]:
                problems.append(f"{concept.name} against {other.name} has no accepted images")
                continue
            if record["short"] and not allow_short:
                problems.append(f"{concept.name} against {other.name} lacks {record['short']} images")
                continue
            for index in record["accepted"]:
                data = store.read_file([*place, "images", f"{index}.png"], record["files"][f"{index}.png"])
                if data is None:
                    problems.append(f"image {index} of {concept.name} against {other.name} is not what was made")
                    continue
                name = f"{safe_name(concept.name)}/{pair.pair_id}-{int(index)}.png"
                files.append((name, data))
                facts = store.read_json([*place, "images", f"{index}.json"]) or {}
                rows.append(_row(name, concept, called[pair.pair_id], kind, facts))
            features.append({"target": concept.name, "confusable": other.name, "features": record["attributes"]})
    if problems:
        raise ValueError(f"The images cannot be exported: {'; '.join(problems)}.")
    concepts = {concept.name: concept for task in unique for concept in (task.pair.target, task.pair.confusable)}
    write_training_folder(root, rows, files, concepts)
    pairs = [
        {
            "pair_id": called[task.pair.pair_id],
            "target": task.pair.target.name,
            "confusable": task.pair.confusable.name,
            "error_rate": task.pair.error_rate,
            "target_dir": safe_name(task.pair.target.name),
            "confusable_dir": safe_name(task.pair.confusable.name),
        }
        for task in unique
    ]
    write_whole(root / "pairs.json", json.dumps(pairs, indent=1) + "\n")
    write_whole(root / "features.json", json.dumps(features, indent=1) + "\n")
    return len(rows)


def write_training_folder(
    folder: str | Path,
    rows: Sequence[dict[str, Any]],
    files: Sequence[tuple[str, bytes]],
    concepts: Mapping[str, Concept],
) -> None:
    """Write images and what is known of them as ``train/metadata.jsonl``, ``train/CLASS/*`` and ``concepts.jsonl``.

    Args:
        folder: Folder to write; files that are there already and fit are left alone.
        rows: What is known of each image.
        files: Path below ``train`` and content of each image.
        concepts: Concepts by name.
    """
    root = Path(folder)
    for name, data in files:
        path = root / "train" / name
        if not path.is_file() or path.read_bytes() != data:
            write_whole(path, data)
    _write_lines(root / "train" / "metadata.jsonl", rows)
    listed = [{**concept.record(), "dir": safe_name(name)} for name, concept in sorted(concepts.items())]
    _write_lines(root / "concepts.jsonl", listed)


def _row(name: str, concept: Concept, pair_id: str, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "file_name": name,
        "class_name": concept.name,
        "source": "synthetic",
        "supercategory": concept.supercategory,
        "split_role": "support",
        "pair_id": pair_id,
        "kind": kind,
        **{field: facts.get(field) for field in ("prompt", "seed", "generator", "score", "sha256")},
    }


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
