"""Folders of labelled pictures in the layouts that few-shot data comes in, read into one form."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from lit_modules.utils.images import FORMATS, NOT_READ

from .concepts import SOURCES, Concept, ConceptFolder
from .images import Picture
from .pairs import is_inside, name_problem, read_lines

Layout = Literal["auto", "imagefolder", "readme", "inaturalist", "sun"]
SPLITS = {
    "train": ("train", "train_mini", "2021_train", "2021_train_mini"),
    "validation": ("validation", "val", "valid", "2021_valid"),
    "test": ("test",),
}
"""Names that the folder of a split may have."""
SUPERCATEGORIES = {
    "Actinopterygii": "Ray-finned Fishes",
    "Amphibia": "Amphibians",
    "Arachnida": "Arachnids",
    "Aves": "Birds",
    "Fungi": "Fungi",
    "Insecta": "Insects",
    "Mammalia": "Mammals",
    "Mollusca": "Mollusks",
    "Plantae": "Plants",
    "Reptilia": "Reptiles",
}
_INAT = re.compile(r"\d{5}_[^_]+(?:_[^_]+){6}")


def read_folder(
    root: str | Path,
    layout: Layout = "auto",
    folders: Mapping[str, str] | None = None,
    annotations: str | None = None,
) -> ConceptFolder:
    """Read which pictures of which classes a folder holds; no picture is opened.

    ``imagefolder`` is a folder per class, or ``metadata.jsonl`` beside the pictures, in the folder of each split.
    ``readme`` is the published tree, a folder per source, then the class, for SUN below its first letter, with or
    without a folder ``images``. ``inaturalist`` are folders such as ``05129_Animalia_..._Vipera_berus``, ``sun``
    those such as ``c/campus`` and ``s/stadium/football``. ``auto`` takes each folder for what it looks like; a level
    above the class is the super-category. Parquet files are read if they hold labels. Without folders of splits, all
    pictures are training pictures.

    Args:
        root: Folder; what it holds may be in ``root/data``.
        layout: What its folders must look like.
        folders: Folder of each split, below the root or absolute, where the usual names do not find it.
        annotations: iNaturalist's JSON with ``categories``, from which common names are taken.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If ``layout`` or a split of ``folders`` is unknown, or Parquet files hold no labels.
    """
    root = Path(root)
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(map(repr, get_args(Layout)))}, got {layout!r}.")
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}; it must hold train/CLASS/*.jpg and validation/CLASS/*.jpg, or another layout "
            "that datamodules.few_shot.layouts.read_folder lists."
        )
    problems: list[str] = []
    places = _splits(root, folders, problems)
    if not places:
        from .parquet import parquet_rows  # needs pyarrow, which only such data does

        concepts: dict[str, Concept] = {}
        for split, labels, picture in parquet_rows(root):
            reading = _interpret(labels, "auto")
            if isinstance(reading, str):
                problems.append(f"{picture.name} {reading}")
                continue
            concept = concepts.setdefault(reading.key, reading)
            concept.pictures.setdefault(split, []).append(picture)
        if concepts:
            return _finished(root, concepts, problems, annotations)
        places = {"train": root}
    concepts = {}
    # folders with metadata first: they say which concept a folder is of
    for split, place in sorted(places.items(), key=lambda item: _metadata(item[1]) is None):
        metadata = _metadata(place)
        if metadata is None:
            _read_tree(place, split, layout, concepts, problems)
        else:
            _read_metadata(place, metadata, split, concepts, problems)
    return _finished(root, concepts, problems, annotations)


def _finished(root: Path, concepts: dict[str, Concept], problems: list[str], annotations: str | None) -> ConceptFolder:
    if annotations is not None:
        _name_categories(Path(annotations), concepts, problems)
    if (root / "concepts.jsonl").is_file():
        _describe(root / "concepts.jsonl", concepts, problems)
    for concept in concepts.values():
        for pictures in concept.pictures.values():
            pictures.sort(key=lambda picture: picture.name)  # never the order in which a system lists them
    splits = tuple(name for name in SPLITS if any(name in concept.pictures for concept in concepts.values()))
    return ConceptFolder(root, dict(sorted(concepts.items())), splits, problems)


def _splits(root: Path, folders: Mapping[str, str] | None, problems: list[str]) -> dict[str, Path]:
    """Return the folder of each split."""
    if folders:
        unknown = [name for name in folders if name not in SPLITS]
        if unknown:
            raise ValueError(f"folders must be of {', '.join(SPLITS)}, got {unknown[0]!r}.")
        given = {name: root / folder for name, folder in folders.items()}
        for name, place in given.items():
            if not place.is_dir():
                problems.append(f"there is no folder {place} for the split {name}; give another in `folders`.")
        return {name: place for name, place in given.items() if place.is_dir()}
    for base in (root, root / "data"):
        if not base.is_dir():
            continue
        names = {entry.name for entry in os.scandir(base) if entry.is_dir()}
        found: dict[str, Path] = {}
        for split, aliases in SPLITS.items():
            present = sorted(name for name in names if name.lower() in aliases)
            if len(present) > 1:
                problems.append(f"{base} holds {' and '.join(present)}; say in `folders` which is the split {split}.")
            if present and any((base / present[0]).rglob("*")):
                found[split] = base / present[0]
        if found and not any(place.glob("*.parquet") for place in found.values() if _only_parquet(place)):
            return found
    return {}


def _only_parquet(place: Path) -> bool:
    files = [entry.name for entry in os.scandir(place)]
    return bool(files) and all(name.endswith(".parquet") or name.startswith(".") for name in files)


def _metadata(place: Path) -> Path | None:
    return next((place / name for name in ("metadata.jsonl", "metadata.csv") if (place / name).is_file()), None)


def _read_tree(place: Path, split: str, layout: Layout, concepts: dict[str, Concept], problems: list[str]) -> None:
    by_folder = {folder: concept.key for concept in concepts.values() for folder in concept.dirs}
    for parts, names in _class_folders(place, ()):
        inner = parts[:-1] if parts and parts[-1] == "images" else parts
        shown = "/".join((split, *parts))
        refused = [name for name in names if Path(name).suffix.lower() in NOT_READ]
        problems += [f"{shown}/{name} has a suffix that is not read; {', '.join(FORMATS)} are." for name in refused]
        names = [name for name in names if name not in refused]
        if not names:
            continue
        folder = "/".join(inner)
        if folder in by_folder:
            concept = concepts[by_folder[folder]]
        else:
            reading = _interpret(inner, layout)
            if isinstance(reading, str):
                problems.append(f"{shown} {reading}")
                continue
            concept = concepts.setdefault(reading.key, reading)
        concept.dirs.add(folder)
        pictures = [Picture(place.joinpath(*parts, name), "/".join((split, *parts, name))) for name in names]
        concept.pictures.setdefault(split, []).extend(pictures)


def _class_folders(place: Path, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield folders that hold pictures, with the names of these."""
    folders, names = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif Path(entry.name).suffix.lower() in (*FORMATS, *NOT_READ):
                names.append(entry.name)
    if names:
        yield parts, sorted(names)
    if len(parts) < 8:
        for name in sorted(folders):
            yield from _class_folders(place / name, (*parts, name))


def _interpret(parts: tuple[str, ...], layout: Layout) -> Concept | str:
    """Return the concept that a folder below a split is of, or why it is of none."""
    key = "/".join(parts)
    source = SOURCES.get(parts[0].lower()) if parts else None
    if source is not None and layout != "imagefolder":
        parts = parts[1:]
    if not parts:
        return "holds pictures outside of the folder of a class."
    if layout == "readme" and source is None:
        return f"must lie in a folder of iNaturalist, NovelSpecies or SUN, got {key!r}."
    if layout == "imagefolder" and len(parts) > 1:
        return f"lies {len(parts)} levels deep, and layout 'imagefolder' has one; give another layout."
    if _INAT.fullmatch(parts[-1]):
        _, kingdom, phylum, rank_of_class, _, _, genus, species = parts[-1].split("_")
        category = next(
            (SUPERCATEGORIES[rank] for rank in (rank_of_class, phylum, kingdom) if rank in SUPERCATEGORIES), "Animalia"
        )
        name = f"{genus} {species}"
        return Concept(key, name, name, category, source or "inat", "animal" if kingdom == "Animalia" else "organism")
    if layout == "inaturalist" and source is None and len(parts) != 2:
        return f"must be named as 05129_Animalia_..._Vipera_berus is, got {key!r}."
    letter = len(parts) > 1 and len(parts[0]) == 1 and parts[0].isalpha()
    if layout == "sun" and not letter:
        return f"must lie in the folder of its first letter, as c/campus does, got {key!r}."
    if letter and (layout in ("auto", "sun", "readme")):
        name = _shown(" ".join(parts[1:]))
        aliases = (_shown(" ".join(reversed(parts[1:]))), "/".join(parts[1:]))
        return Concept(key, name, None, None, source or "sun", "scene", aliases=aliases if len(parts) > 2 else ())
    group = _shown("/".join(parts[:-1]))
    return Concept(key, _shown(parts[-1]), None, group or None, source, {"sun": "scene"}.get(source or ""))


def _shown(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _read_metadata(place: Path, metadata: Path, split: str, concepts: dict[str, Concept], problems: list[str]) -> None:
    where = f"{split}/{metadata.name}"
    if metadata.suffix == ".csv":
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        rows, wrong = read_lines(metadata)
        problems += [f"{split}/{problem}" for problem in wrong]
    listed: set[str] = set()
    for number, row in enumerate(rows, 1):
        name, label = row.get("file_name"), row.get("class_name")
        if not isinstance(name, str) or not name or not is_inside(name):
            problems.append(f"{where} row {number}: file_name must be a file below {split}, got {name!r}.")
            continue
        if (problem := name_problem(label)) is not None:
            problems.append(f"{where} row {number}: class_name {problem}")
            continue
        role = row.get("split_role")
        if role not in (None, "", "support", "query"):
            problems.append(f"{where} row {number}: split_role must be 'support' or 'query', got {role!r}.")
        path = str(PurePosixPath(name.replace("\\", "/")))
        if path in listed:
            problems.append(f"{where} row {number}: {path} comes twice.")
            continue
        listed.add(path)
        if not (place / path).is_file():
            problems.append(f"{split}/{path} is missing; {where} row {number} names it.")
        concept = concepts.setdefault(str(label), Concept(str(label), _shown(str(label))))
        folder = str(PurePosixPath(path).parent).removesuffix("/images")
        concept.dirs.add("" if folder == "." else folder)
        concept.dirs.discard("")
        for key in ("scientific_name", "supercategory", "source"):
            if getattr(concept, key) is None and row.get(key):
                setattr(concept, key, str(row[key]))
        if row.get("common_name") and not concept.has_display_name:
            concept.aliases = tuple(dict.fromkeys((*concept.aliases, str(row["common_name"]))))
        concept.pictures.setdefault(split, []).append(Picture(place / path, f"{split}/{path}", row))
    for parts, names in _class_folders(place, ()):
        for name in names:
            if "/".join((*parts, name)) not in listed:
                problems.append(f"{'/'.join((split, *parts, name))} is not in {where}; add it or move it away.")


def _name_categories(path: Path, concepts: dict[str, Concept], problems: list[str]) -> None:
    """Take common names and super-categories from iNaturalist's annotations."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no annotation file {path}; it is iNaturalist's JSON with categories.")
    try:
        categories = {row["image_dir_name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["categories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be iNaturalist's JSON: categories, each with image_dir_name.") from error
    for concept in concepts.values():
        row = categories.get(concept.key.rpartition("/")[2], {})
        if row.get("common_name"):
            concept.name = str(row["common_name"])
        if row.get("supercategory"):
            concept.supercategory = str(row["supercategory"])


def _describe(path: Path, concepts: dict[str, Concept], problems: list[str]) -> None:
    """Take what ``concepts.jsonl`` says."""
    rows, wrong = read_lines(path)
    problems += wrong
    folder = ConceptFolder(path.parent, concepts, (), [])
    for number, row in enumerate(rows, 1):
        name = row.get("name")
        if (problem := name_problem(name)) is not None:
            problems.append(f"{path.name} row {number}: name {problem}")
            continue
        aliases = row.get("aliases") or []
        if not isinstance(aliases, list) or any(name_problem(alias) for alias in aliases):
            problems.append(f"{path.name} row {number}: aliases must be a list of names, got {aliases!r}.")
            continue
        if row.get("known") not in (None, True, False):
            problems.append(f"{path.name} row {number}: known must be true or false, got {row['known']!r}.")
            continue
        shown = row.get("display_name")
        if shown is not None and (problem := name_problem(shown)) is not None:
            problems.append(f"{path.name} row {number}: display_name {problem}")
            continue
        concept, reason = folder.find(str(name), row.get("dir"))
        if concept is None:
            if "may be" in reason:
                problems.append(f"{path.name} row {number}: {reason}")
            continue  # a concept without pictures matters only to a pair, which says so
        concept.name = str(shown or _shown(str(name)))
        concept.has_display_name = True
        concept.aliases = _unique((*concept.aliases, str(name), *map(str, aliases)))
        concept.known = row.get("known", concept.known)
        for key in ("scientific_name", "supercategory", "source", "kind"):
            if row.get(key):
                setattr(concept, key, str(row[key]))
        concept.fields = row


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
