"""Pictures in Parquet files of Hugging Face datasets, where these say which class a picture is of."""

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .concepts import SOURCES
from .images import Picture

LABELS = ("class_name", "label", "species", "class")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


def parquet_rows(root: Path) -> Iterator[tuple[str, tuple[str, ...], Picture]]:
    """Yield split, label or folder of the class, and picture of each row of the Parquet files in a folder.

    The class is in a column of labels, whose names the file or the dataset's card ``README.md`` says, or in the path
    that is stored with each picture. The order of rows says nothing about it.

    Args:
        root: Folder that holds ``*.parquet``, ``data/*.parquet``, or a folder per split of them.

    Raises:
        ValueError: If there is neither a column of labels nor a path with a folder, or a file is damaged.
        ImportError: If there are Parquet files and pyarrow is missing.
    """
    files = sorted({path for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet") for path in root.glob(pattern)})
    if not files:
        return
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            f'{root} holds Parquet files, and reading these needs pyarrow: pip install "lit-modules[parquet]".'
        ) from error
    for path in files:
        yield from _rows(parquet, path, root)


def _rows(parquet: Any, path: Path, root: Path) -> Iterator[tuple[str, tuple[str, ...], Picture]]:
    name = path.relative_to(root).as_posix()
    try:
        file = parquet.ParquetFile(path)
        schema, groups = file.schema_arrow, file.num_row_groups
    except Exception as error:  # pyarrow has errors of its own, and OSError
        raise ValueError(f"{name} is no Parquet file: {error}.") from error
    if "image" not in schema.names:
        raise ValueError(f"{name} must have a column image, got {', '.join(schema.names)}.")
    column = next((label for label in LABELS if label in schema.names), None)
    names = _label_names(schema.metadata, column) or _card_names(root / "README.md", column)
    split = _split(PurePosixPath(name))
    number = 0
    for group in range(groups):
        table = file.read_row_group(group, columns=["image.path", *([column] if column else [])])
        paths = [(row or {}).get("path") for row in table.column("image").to_pylist()]
        labels = table.column(column).to_pylist() if column else [None] * len(paths)
        for place, (stored, label) in enumerate(zip(paths, labels, strict=True)):
            if isinstance(label, int) and names is not None and 0 <= label < len(names):
                label = names[label]
            parts = (label,) if isinstance(label, str) and label else _folder(stored)
            if not parts:
                raise ValueError(_reason(name, stored, column, schema.names))
            tail = PurePosixPath(str(stored or "")).name
            picture = Picture(path, f"{name}#{number:06d}/{tail}", read=_reader(path, group, place, name))
            yield split, parts, picture
            number += 1


def _reader(path: Path, group: int, place: int, name: str) -> Callable[[], bytes]:
    return partial(_bytes, path, group, place, name)


def _bytes(path: Path, group: int, place: int, name: str) -> bytes:
    data = _group(path, group)[place]
    if not isinstance(data, bytes):
        raise ValueError(f"{name} row {place} of group {group} holds no picture.")
    return data


@lru_cache(maxsize=2)
def _group(path: Path, group: int) -> list[Any]:
    parquet = import_module("pyarrow.parquet")
    column = parquet.ParquetFile(path).read_row_group(group, columns=["image.bytes"]).column("image")
    return [(row or {}).get("bytes") for row in column.to_pylist()]


def _label_names(metadata: dict[bytes, bytes] | None, column: str | None) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]


def _card_names(card: Path, column: str | None) -> list[str] | None:
    """Return the names of a column of labels in a dataset's card; ``None`` where it says none, or several lists.

    Raises:
        ValueError: If the card's head is no YAML.
    """
    if column is None or not card.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8-sig"), re.DOTALL)
    try:
        told = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(f"The head of {card} must be YAML, and is not: {' '.join(str(error).split())}.") from error
    infos = told.get("dataset_info") if isinstance(told, dict) else None
    found = []
    for info in infos if isinstance(infos, list) else [infos]:
        features = info.get("features") if isinstance(info, dict) else None
        for feature in features if isinstance(features, list) else []:
            try:
                names = feature["dtype"]["class_label"]["names"] if feature["name"] == column else None
            except (KeyError, TypeError):
                continue
            if isinstance(names, dict):
                by_number = {str(number): name for number, name in names.items()}
                names = [by_number.get(str(number)) for number in range(len(names))]
            if isinstance(names, list) and None not in names and names not in found:
                found.append(names)
    return [str(name) for name in found[0]] if len(found) == 1 else None


def _split(name: PurePosixPath) -> str:
    for word in (name.name.split("-")[0].split(".")[0], *name.parts[:-1]):
        if word.lower() in _SPLITS:
            return _SPLITS[word.lower()]
    return "train"


def _folder(stored: Any) -> tuple[str, ...]:
    """Return the folder of the class in a stored path, or nothing."""
    if not isinstance(stored, str):
        return ()
    path = stored.replace("\\", "/")
    parts = [part for part in path.split("/")[:-1] if part not in ("", ".", "..")]
    marks = [place for place, part in enumerate(parts) if part.lower() in _SPLITS]
    sources = [place for place, part in enumerate(parts) if part.lower() in SOURCES]
    if sources:
        parts = parts[sources[-1] :]
    elif marks:
        parts = parts[marks[-1] + 1 :]
    elif path.startswith("/") or ":" in path:
        return ()  # a folder on the machine of whoever wrote the file says nothing about the class
    return tuple(parts[:-1] if parts and parts[-1] == "images" else parts)


def _reason(name: str, stored: Any, column: str | None, columns: list[str]) -> str:
    why = f"no column of labels, only {', '.join(columns)}"
    if column is not None:
        why = f"no names for its {column}, nor has README.md one list of them"
    return (
        f"{name} cannot be read, as its pictures have no labels: it has {why}, and the stored path {stored!r} names no "
        "folder of a class. Labels are never guessed from the order of rows; give a folder tree "
        "train/SOURCE/CLASS/*.jpg, or train/metadata.jsonl with file_name and class_name."
    )
