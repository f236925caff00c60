"""Folders of labelled pictures in the layouts that few-shot data comes in, read into one form."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml

from lit_modules.utils.images import FORMATS, NOT_READ
from lit_modules.utils.suggestions import did_you_mean

from .images import Picture
from .pairs import is_inside, name_problem, plain_name, read_objects

Layout = Literal["auto", "imagefolder", "readme", "inaturalist", "sun"]
SPLITS = {
    "train": ("train", "train_mini", "2021_train", "2021_train_mini"),
    "validation": ("validation", "val", "valid", "2021_valid"),
    "test": ("test",),
}
"""Names of the folder of a split."""
SOURCES = {
    "inaturalist": "inat",
    "inat": "inat",
    "novelspecies": "novel_species",
    "novel_species": "novel_species",
    "sun": "sun",
    "sun397": "sun",
}
"""Names of the sources of pictures, and their short names."""
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
_LABELS = ("class_name", "label", "species", "class")
_Columns = dict[str, str | list[str]]
"""Columns of a dataset that hold images, as ``image``, or labels, as the list of their names."""
_SPLIT_OF = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


@dataclass
class Concept:
    """Class of pictures.

    Args:
        key: Folder below that of the split, or the class name that ``metadata.jsonl`` gives.
        name: Name to show.
        scientific_name: Latin name.
        supercategory: Group of the concept.
        source: ``novel_species``, ``inat``, ``sun`` or another.
        kind: ``animal``, ``scene`` or another.
        known: Whether models know it; ``None`` if nothing says so.
        aliases: Other names that are right answers.
        dirs: Folders of its pictures.
        fields: Its row of ``concepts.jsonl``.
        pictures: Pictures of each split, by name.
        has_display_name: Whether the data itself gives the name to show, so that a pair file does not.
    """

    key: str
    name: str
    scientific_name: str | None = None
    supercategory: str | None = None
    source: str | None = None
    kind: str | None = None
    known: bool | None = None
    aliases: tuple[str, ...] = ()
    dirs: set[str] = field(default_factory=set)
    fields: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    has_display_name: bool = False

    def names(self) -> set[str]:
        """Return all names it goes by, as they are compared."""
        names = {self.name, *self.folders(), *self.aliases, self.scientific_name}
        return {plain_name(name) for name in names if name}

    def folders(self) -> set[str]:
        """Return the names of its folder: the ends of its path, from each level on."""
        parts = self.key.split("/")
        return {"/".join(parts[level:]) for level in range(len(parts))}


@dataclass
class ConceptFolder:
    """Content of a folder.

    Args:
        root: Folder.
        concepts: Concepts by key, sorted.
        splits: Splits that have pictures.
        problems: What is wrong with it, a sentence each.
    """

    root: Path
    concepts: dict[str, Concept]
    splits: tuple[str, ...]
    problems: list[str]

    def find(self, name: str, folder: str | None = None) -> Concept | str:
        """Return the concept of a name and folder, or why there is none, or several."""
        concepts = list(self.concepts.values())
        matches: list[Concept] = []
        if folder is not None:
            path = folder.replace("\\", "/").strip("/")
            matches = [each for each in concepts if path in {each.key, *each.dirs}]
            matches = matches or [
                each for each in concepts if any(d.endswith(f"/{path}") for d in {each.key, *each.dirs})
            ]
        if not matches:
            plain = plain_name(name)
            matches = [each for each in concepts if plain in each.names()]
            # an own name is stronger than an alias
            matches = [each for each in matches if plain in map(plain_name, (each.name, each.key))] or matches
        if len(matches) == 1:
            return matches[0]
        shown = repr(name) if folder is None else f"{name!r} (folder {folder!r})"
        if matches:
            return f"{shown} may be {' or '.join(each.key for each in matches)}; give its folder."
        hint = did_you_mean(name, [each.name for each in concepts])
        return f"{shown} is not among the {len(concepts)} classes{hint}"


def read_folder(
    root: str | Path,
    layout: Layout = "auto",
    folders: Mapping[str, str] | None = None,
    annotations: str | None = None,
) -> ConceptFolder:
    """List the pictures of each class in a folder; no picture is opened.

    ``imagefolder`` is a folder per class, or ``metadata.jsonl`` beside the pictures, in the folder of each split.
    ``readme`` is the published tree, a folder per source, then the class, for SUN below its first letter, with or
    without a folder ``images``. ``inaturalist`` are folders such as ``05129_Animalia_..._Vipera_berus``, ``sun``
    those such as ``c/campus`` and ``s/stadium/football``. ``auto`` takes each folder for what it looks like; a level
    above the class is the super-category. Parquet files are read if they hold labels. Without folders of splits, all
    pictures are training pictures.

    Args:
        root: Folder; what it holds may be in ``root/data``.
        layout: Layout of its folders.
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
        raise no_folder(root)
    problems: list[str] = []
    concepts: dict[str, Concept] = {}
    split_folders = _split_folders(root, folders, problems)
    if not split_folders:
        for split, labels, picture in parquet_rows(root):
            concept = _interpret(labels, "auto")
            if isinstance(concept, str):
                problems.append(f"{picture.name} {concept}")
            else:
                concepts.setdefault(concept.key, concept).pictures.setdefault(split, []).append(picture)
    if not concepts:
        split_folders = split_folders or {"train": root}
    # folders with metadata first: they say which concept a folder is of
    for split, folder in sorted(split_folders.items(), key=lambda item: _metadata(item[1]) is None):
        if _metadata(folder) is None:
            _read_tree(folder, split, layout, concepts=concepts, problems=problems)
        else:
            _read_metadata(folder, split, concepts, problems=problems)
    if annotations is not None:
        _name_categories(Path(annotations), concepts)
    if (root / "concepts.jsonl").is_file():
        _describe(root / "concepts.jsonl", concepts, problems)
    for concept in concepts.values():
        for pictures in concept.pictures.values():
            pictures.sort(key=lambda picture: picture.name)  # never the order in which a system lists them
    splits = tuple(name for name in SPLITS if any(name in concept.pictures for concept in concepts.values()))
    return ConceptFolder(root, dict(sorted(concepts.items())), splits, problems)


def no_folder(root: Path, more: str = "") -> FileNotFoundError:
    """Return the error of a folder that is not there; ``more`` is another way out."""
    return FileNotFoundError(
        f"There is no folder {root}; it must hold train/CLASS/*.jpg and validation/CLASS/*.jpg, Parquet files with "
        f"labels, or another layout that datamodules.few_shot.layouts.read_folder lists{more}."
    )


def _split_folders(root: Path, folders: Mapping[str, str] | None, problems: list[str]) -> dict[str, Path]:
    """Return the folder of each split."""
    if folders:
        unknown = [name for name in folders if name not in SPLITS]
        if unknown:
            raise ValueError(f"folders must be of {', '.join(SPLITS)}, got {unknown[0]!r}.")
        paths = {name: root / folder for name, folder in folders.items()}
        problems += [
            f"there is no folder {path} for the split {name}; give another in `folders`."
            for name, path in paths.items()
            if not path.is_dir()
        ]
        return {name: path for name, path in paths.items() if path.is_dir()}
    for base in (base for base in (root, root / "data") if base.is_dir()):
        names = {entry.name for entry in os.scandir(base) if entry.is_dir()}
        present: dict[str, Path] = {}
        for split, aliases in SPLITS.items():
            same = sorted(name for name in names if name.lower() in aliases)
            if len(same) > 1:
                problems.append(f"{base} holds {' and '.join(same)}; say in `folders` which is the split {split}.")
            if same and any((base / same[0]).rglob("*")):
                present[split] = base / same[0]
        if present and not any(_only_parquet(folder) for folder in present.values()):
            return present
    return {}


def _only_parquet(folder: Path) -> bool:
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return bool(names) and all(name.endswith(".parquet") for name in names)


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()), None)


def _read_tree(folder: Path, split: str, layout: Layout, *, concepts: dict[str, Concept], problems: list[str]) -> None:
    by_folder = {path: concept for concept in concepts.values() for path in concept.dirs}
    for parts, names in _class_folders(folder, ()):
        inner = parts[:-1] if parts and parts[-1] == "images" else parts
        shown = "/".join((split, *parts))
        refused = [name for name in names if Path(name).suffix.lower() in NOT_READ]
        problems += [f"{shown}/{name} has a suffix that is not read; {', '.join(FORMATS)} are." for name in refused]
        names = [name for name in names if name not in refused]
        if not names:
            continue
        path = "/".join(inner)
        concept = by_folder.get(path) or _interpret(inner, layout)
        if isinstance(concept, str):
            problems.append(f"{shown} {concept}")
            continue
        concept = concepts.setdefault(concept.key, concept)
        concept.dirs.add(path)
        pictures = [Picture(folder.joinpath(*parts, name), "/".join((split, *parts, name))) for name in names]
        concept.pictures.setdefault(split, []).extend(pictures)


def _class_folders(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield folders that hold pictures, with the names of these."""
    with os.scandir(folder) as entries:
        shown = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    names = [name for name, is_dir in shown if not is_dir and Path(name).suffix.lower() in (*FORMATS, *NOT_READ)]
    if names:
        yield parts, names
    if len(parts) < 8:
        for name in (name for name, is_dir in shown if is_dir):
            yield from _class_folders(folder / name, (*parts, name))


def _interpret(parts: tuple[str, ...], layout: Layout) -> Concept | str:
    """Return the concept of a folder below a split, or the problem with it."""
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


def _read_metadata(folder: Path, split: str, concepts: dict[str, Concept], *, problems: list[str]) -> None:
    metadata = _metadata(folder)
    assert metadata is not None
    shown = f"{split}/{metadata.name}"
    if metadata.suffix == ".csv":
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        malformed: list[str] = []
        rows = read_objects(metadata, malformed)
        problems += [f"{split}/{problem}" for problem in malformed]
    listed: set[str] = set()
    for number, row in enumerate(rows, 1):
        path = _checked_path(row, split, f"{shown} row {number}", problems)
        if path is None:
            continue
        if path in listed:
            problems.append(f"{shown} row {number}: {path} comes twice.")
            continue
        listed.add(path)
        if not (folder / path).is_file():
            problems.append(f"{split}/{path} is missing; {shown} row {number} names it.")
        label = str(row["class_name"])
        concept = concepts.setdefault(label, Concept(label, _shown(label)))
        parent = str(PurePosixPath(path).parent).removesuffix("/images")
        concept.dirs |= {parent} - {"."}
        for key in ("scientific_name", "supercategory", "source"):
            if getattr(concept, key) is None and row.get(key):
                setattr(concept, key, str(row[key]))
        if row.get("common_name") and not concept.has_display_name:
            concept.aliases = tuple(dict.fromkeys((*concept.aliases, str(row["common_name"]))))
        concept.pictures.setdefault(split, []).append(Picture(folder / path, f"{split}/{path}", row))
    for parts, names in _class_folders(folder, ()):
        for name in names:
            if "/".join((*parts, name)) not in listed:
                problems.append(f"{'/'.join((split, *parts, name))} is not in {shown}; add it or move it away.")


def _checked_path(row: Mapping[str, Any], split: str, shown: str, problems: list[str]) -> str | None:
    """Return the file that a row of metadata names, or ``None`` if the row is malformed."""
    name, role = row.get("file_name"), row.get("split_role")
    if not isinstance(name, str) or not name or not is_inside(name):
        problems.append(f"{shown}: file_name must be a file below {split}, got {name!r}.")
    elif (problem := name_problem(row.get("class_name"))) is not None:
        problems.append(f"{shown}: class_name {problem}")
    else:
        if role not in (None, "", "support", "query"):
            problems.append(f"{shown}: split_role must be 'support' or 'query', got {role!r}.")
        return str(PurePosixPath(name.replace("\\", "/")))
    return None


def _name_categories(path: Path, concepts: dict[str, Concept]) -> None:
    """Take common names and super-categories from iNaturalist's annotations."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no annotation file {path}; it is iNaturalist's JSON with categories.")
    try:
        categories = {row["image_dir_name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["categories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be iNaturalist's JSON: categories, each with image_dir_name.") from error
    for concept in concepts.values():
        row = categories.get(concept.key.rpartition("/")[2], {})
        concept.name = str(row.get("common_name") or concept.name)
        if row.get("supercategory"):
            concept.supercategory = str(row["supercategory"])


def _describe(path: Path, concepts: dict[str, Concept], problems: list[str]) -> None:
    """Take names and other fields from ``concepts.jsonl``."""
    folder = ConceptFolder(path.parent, concepts, (), [])
    for number, row in enumerate(read_objects(path, problems), 1):
        problem = _row_problem(row)
        if problem is not None:
            problems.append(f"{path.name} row {number}: {problem}")
            continue
        name, aliases = str(row["name"]), row.get("aliases") or []
        concept = folder.find(name, row.get("dir"))
        if isinstance(concept, str):
            if "may be" in concept:
                problems.append(f"{path.name} row {number}: {concept}")
            continue  # a concept without pictures matters only to a pair, which says so
        concept.name = str(row.get("display_name") or _shown(name))
        concept.has_display_name = True
        concept.aliases = tuple(dict.fromkeys((*concept.aliases, name, *map(str, aliases))))
        concept.known = row.get("known", concept.known)
        for key in ("scientific_name", "supercategory", "source", "kind"):
            if row.get(key):
                setattr(concept, key, str(row[key]))
        concept.fields = row


def _row_problem(row: Mapping[str, Any]) -> str | None:
    aliases, shown = row.get("aliases") or [], row.get("display_name")
    if (problem := name_problem(row.get("name"))) is not None:
        return f"name {problem}"
    if not isinstance(aliases, list) or any(name_problem(alias) for alias in aliases):
        return f"aliases must be a list of names, got {aliases!r}."
    if row.get("known") not in (None, True, False):
        return f"known must be true or false, got {row['known']!r}."
    if shown is not None and (problem := name_problem(shown)) is not None:
        return f"display_name {problem}"
    return None


def parquet_rows(root: Path) -> Iterator[tuple[str, tuple[str, ...], Picture]]:
    """Yield split, folder or label of the class, and picture of each row of the Parquet files in a folder.

    The class is in a column of labels, whose names the file or the dataset's card ``README.md`` gives, or in the path
    that is stored with each picture. The order of rows says nothing about it. The columns are ``image`` and
    ``class_name``, ``label``, ``species`` or ``class``, else the one that is described as images or as labels.

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
        import pyarrow.parquet  # noqa: F401 - asked for before the first file, which names the way out
    except ImportError as error:
        raise ImportError(
            f'{root} holds Parquet files, and reading these needs pyarrow: pip install "lit-modules[parquet]".'
        ) from error
    for path in files:
        yield from _parquet_file(path, root)


def _parquet_file(path: Path, root: Path) -> Iterator[tuple[str, tuple[str, ...], Picture]]:
    import pyarrow.parquet

    name = path.relative_to(root).as_posix()
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
    except Exception as error:  # pyarrow has errors of its own, and OSError
        raise ValueError(f"{name} is no Parquet file: {error}.") from error
    columns = _file_columns(schema.metadata)
    if not any(isinstance(kind, list) for kind in columns.values()):
        columns = _card_columns(root / "README.md") | columns
    images = ["image", *(each for each, kind in columns.items() if kind == "image")]
    image = next((each for each in images if each in schema.names), None)
    if image is None:
        raise ValueError(f"{name} must have a column image, got {', '.join(schema.names)}.")
    labelled = {each: kind for each, kind in columns.items() if isinstance(kind, list)}
    column = next((label for label in (*_LABELS, *labelled) if label in schema.names), None)
    names = labelled.get(column or "")
    split = _split_of(PurePosixPath(name))
    number = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=[f"{image}.path", *([column] if column else [])])
        paths = [(row or {}).get("path") for row in table.column(image).to_pylist()]
        labels = table.column(column).to_pylist() if column else [None] * len(paths)
        for row, (stored, label) in enumerate(zip(paths, labels, strict=True)):
            if isinstance(label, int) and names is not None and 0 <= label < len(names):
                label = names[label]
            parts = (label,) if isinstance(label, str) and label else _stored_folder(stored)
            if not parts:
                why = f"no column of labels, only {', '.join(schema.names)}"
                if column is not None:
                    why = f"no names for its {column}, nor has README.md one list of them"
                raise ValueError(
                    f"{name} cannot be read, as its pictures have no labels: it has {why}, and the stored path "
                    f"{stored!r} names no folder of a class. Labels are never guessed from the order of rows; give a "
                    "folder tree train/SOURCE/CLASS/*.jpg, or train/metadata.jsonl with file_name and class_name."
                )
            tail = PurePosixPath(str(stored or "")).name
            read = partial(_picture_bytes, path, group, row=row, image=image)
            yield split, parts, Picture(path, f"{name}#{number:06d}/{tail}", read=read)
            number += 1


def _picture_bytes(path: Path, group: int, *, row: int, image: str) -> bytes:
    data = _group(path, group, image)[row]
    if not isinstance(data, bytes):
        raise ValueError(f"{path.name} row {row} of group {group} holds no picture.")
    return data


@lru_cache(maxsize=2)
def _group(path: Path, group: int, image: str) -> list[Any]:
    import pyarrow.parquet

    column = pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[f"{image}.bytes"]).column(image)
    return [(row or {}).get("bytes") for row in column.to_pylist()]


def _file_columns(metadata: dict[bytes, bytes] | None) -> _Columns:
    """Return the columns of images and of labels that the library datasets has noted in a Parquet file."""
    try:
        described = json.loads((metadata or {})[b"huggingface"])["info"]["features"].items()
        images = {column: "image" for column, feature in described if feature.get("_type") == "Image"}
        return images | {column: [*map(str, feature["names"])] for column, feature in described if "names" in feature}
    except (AttributeError, KeyError, TypeError, ValueError):  # notes of another form
        return {}


def _card_columns(card: Path) -> _Columns:
    """Return the columns of images and of labels in a dataset's card, but for those of which it gives several lists.

    Raises:
        ValueError: If the card's head is no YAML.
    """
    if not card.is_file():
        return {}
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8-sig"), re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(f"The head of {card} must be YAML, and is not: {' '.join(str(error).split())}.") from error
    infos: Any = content.get("dataset_info") if isinstance(content, dict) else None
    listed: dict[str, list[Any]] = {}
    try:
        for info in infos if isinstance(infos, list) else [infos]:
            for feature in info.get("features", []):
                found = _described(feature["dtype"])
                if found is not None and found not in listed.setdefault(feature["name"], []):
                    listed[feature["name"]].append(found)
    except (AttributeError, KeyError, TypeError):  # a card of another form
        return {}
    return {column: found[0] for column, found in listed.items() if len(found) == 1}


def _described(dtype: Any) -> str | list[str] | None:
    """Return ``image``, or the names of labels in their order, from a list or a mapping without gaps by number."""
    if dtype == "image":
        return "image"
    if not isinstance(dtype, dict) or "class_label" not in dtype:
        return None
    names = dtype["class_label"]["names"]
    by_number = {str(number): name for number, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    ordered = [by_number.get(str(number)) for number in range(len(names))]
    return None if None in ordered else [str(name) for name in ordered]


def _split_of(name: PurePosixPath) -> str:
    for word in (name.name.split("-")[0].split(".")[0], *name.parts[:-1]):
        if word.lower() in _SPLIT_OF:
            return _SPLIT_OF[word.lower()]
    return "train"


def _stored_folder(stored: Any) -> tuple[str, ...]:
    """Return the folder of the class in a stored path, or nothing."""
    if not isinstance(stored, str):
        return ()
    path = stored.replace("\\", "/")
    parts = [part for part in path.split("/")[:-1] if part not in ("", ".", "..")]
    splits = [index for index, part in enumerate(parts) if part.lower() in _SPLIT_OF]
    sources = [index for index, part in enumerate(parts) if part.lower() in SOURCES]
    if sources:
        parts = parts[sources[-1] :]
    elif splits:
        parts = parts[splits[-1] + 1 :]
    elif path.startswith("/") or ":" in path:
        return ()  # a folder on the machine of whoever wrote the file says nothing about the class
    return tuple(parts[:-1] if parts and parts[-1] == "images" else parts)
