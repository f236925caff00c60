"""Pairs of a target and the concept it is taken for, and the files that list them and their attributes."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_modules.utils.files import write_whole
from lit_modules.utils.json_lines import numbered_lines, parse_json

OFFICIAL_KEYS = {
    "ground_truth": "target",
    "confusing_class": "confusable",
    "rate_of_error": "error_rate",
    "ground_truth_full_name": "target_dir",
    "confusing_class_full_name": "confusable_dir",
}
OFFICIAL_FOLDERS = {"real_images_path": "train", "val_images_path": "validation", "synthetic_images_path": "synthetic"}
Features = dict[tuple[str, str], tuple[str, ...]]
"""Attributes of one concept that another lacks, by their names as :func:`plain_name` writes them."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class ConfusablePair:
    """A directed pair.

    Args:
        target: Name of the concept to learn.
        confusable: Name of the known concept that a model takes it for.
        error_rate: Share of the target's pictures that were answered so, in [0, 1], if it was measured.
        target_dir: Folder of the target, if its name does not say it.
        confusable_dir: Folder of the confusable.
        pair_id: Name of the pair that is safe as the name of a folder; by default :func:`pair_id` of the names.
        fields: Further entries of the file.
    """

    target: str
    confusable: str
    error_rate: float | None = None
    target_dir: str | None = None
    confusable_dir: str | None = None
    pair_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        """Name the pair."""
        if not self.pair_id:
            object.__setattr__(self, "pair_id", pair_id(self.target, self.confusable))


def pair_id(target: str, confusable: str) -> str:
    """Return a name for a directed pair that holds no separator and no markup, and differs for other names.

    It is the names in lower-case letters, digits and hyphens, and the first 8 digits of the SHA-256 of the two names as
    a JSON list.

    Example:
        >>> pair_id("Puff Adder", "../<b>")
        'puff-adder--b-fe7d39be'
    """
    digest = hashlib.sha256(json.dumps([target, confusable]).encode()).hexdigest()[:8]
    return f"{_slug(target)}--{_slug(confusable)}-{digest}"


def plain_name(name: str) -> str:
    """Return a name as it is compared: without case, with blanks for underscores, in Unicode's normal form."""
    return " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").casefold().split())


def read_pairs(source: str | Path | Sequence[Mapping[str, Any]]) -> list[ConfusablePair]:
    """Read pairs from a JSON file or a list, with our keys or the official ones.

    A file holds a list, or an object with a list at ``pairs``, as the official ``config.json`` does. A pair listed
    twice alike is taken once.

    Args:
        source: File, or the list itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or its entries are malformed; the message lists all that is wrong.

    Example:
        >>> read_pairs([{"ground_truth": "Adder", "confusing_class": "Grass Snake"}])[0].target
        'Adder'
    """
    name, entries = _entries(source)
    problems: list[str] = []
    pairs: dict[tuple[str, ...], ConfusablePair] = {}
    ids: dict[str, int] = {}
    for number, entry in enumerate(entries):
        pair = _pair(entry)
        if isinstance(pair, list):
            problems += [f"pair {number}: {problem}" for problem in pair]
            continue
        key = (plain_name(pair.target_dir or pair.target), plain_name(pair.confusable_dir or pair.confusable))
        if key in pairs:
            if pairs[key] != pair:
                problems.append(f"pair {number}: {pair.target!r} and {pair.confusable!r} come twice, and not alike.")
            continue
        if pair.pair_id in ids:
            problems.append(f"pair {number}: pair_id {pair.pair_id!r} is that of pair {ids[pair.pair_id]} already.")
        ids.setdefault(pair.pair_id, number)
        pairs[key] = pair
    if problems:
        raise ValueError("\n".join([f"{name} has {len(problems)} problem{'s'[: len(problems) > 1]}:", *problems]))
    if not pairs:
        raise ValueError(f"{name} must list at least one pair, got none.")
    return list(pairs.values())


def write_pairs(path: str | Path, pairs: Iterable[ConfusablePair], **facts: Any) -> None:
    """Write a pair file, whole or not at all.

    Args:
        path: File.
        pairs: Pairs.
        facts: Further entries, such as ``model``, as confusions belong to a model.
    """
    names = ("pair_id", "target", "confusable", "error_rate", "target_dir", "confusable_dir")
    rows = [{**pair.fields, **{name: getattr(pair, name) for name in names}} for pair in pairs]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    write_whole(path, json.dumps({**facts, "pairs": rows}, indent=1, ensure_ascii=False) + "\n")


def official_folders(path: str | Path) -> dict[str, str]:
    """Return the folders that an official ``config.json`` names: ``train``, ``validation``, ``synthetic``."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # read_pairs says what is wrong with it
    if not isinstance(content, dict):
        return {}
    named = {ours: content.get(official) for official, ours in OFFICIAL_FOLDERS.items()}
    return {name: folder for name, folder in named.items() if isinstance(folder, str)}


def read_objects(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file; what is wrong with it is added to ``problems``."""
    rows = []
    try:
        lines = numbered_lines(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    for place, line in lines:
        try:
            row = parse_json(line, place)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"{Path(place).name} must be a JSON object, got {line[:60]!r}.")
    return rows


def read_features(path: str | Path) -> Features:
    """Read the attributes that tell concepts apart.

    Args:
        path: JSON list or JSON lines of objects with ``target``, ``confusable`` and ``features``, the attributes of
            the former that the latter lacks.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an entry is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file of features {path}; `lit-modules coda export` writes it.")
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        entries = read_objects(Path(path), [])
    features: Features = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            names, texts = (entry["target"], entry["confusable"]), entry["features"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"features entry {number} must have target, confusable and features.") from error
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in (*names, *texts)):
            raise ValueError(f"features entry {number} must list texts, got {texts!r}.")
        features[plain_name(names[0]), plain_name(names[1])] = tuple(texts)
    return features


def _entries(source: str | Path | Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    if not isinstance(source, (str, Path)):
        return "The list of pairs", list(source)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no pair file {path}; it is a JSON list of objects with target and confusable, or the official "
            "config.json with pairs."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error
    entries = content.get("pairs") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of pairs, or an object with a list at 'pairs'.")
    return str(path), entries


def _pair(entry: Any) -> ConfusablePair | list[str]:
    """Return a pair, or its problems."""
    if not isinstance(entry, Mapping):
        return [f"must be an object, got {entry!r}."]
    twice = [(name, ours) for name, ours in OFFICIAL_KEYS.items() if name in entry and ours in entry]
    problems = [f"{name} and {ours} mean the same; give one." for name, ours in twice]
    row: dict[str, Any] = {OFFICIAL_KEYS.get(key, str(key)): value for key, value in entry.items()}
    names = {name: row.pop(name, None) for name in ("target", "confusable")}
    for name, value in names.items():
        if (problem := name_problem(value)) is not None:
            problems.append(f"{name} {problem}")
    folders = {name: row.pop(name, None) for name in ("target_dir", "confusable_dir")}
    for name, value in folders.items():
        if value is not None and (not isinstance(value, str) or not value or not is_inside(value)):
            problems.append(f"{name} must be a folder below the root, got {value!r}.")
    rate = row.pop("error_rate", None)
    is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate is not None and not (is_number and math.isfinite(rate) and 0 <= rate <= 1):
        problems.append(f"error_rate must be from 0 to 1, got {rate!r}.")
    identity = row.pop("pair_id", "")
    if identity != "" and (not isinstance(identity, str) or not _SAFE.fullmatch(identity)):
        problems.append(f"pair_id must be letters, digits, '.', '_' and '-', got {identity!r}.")
    if not problems:
        keys = [(folders[f"{role}_dir"] or names[role]) for role in ("target", "confusable")]
        if plain_name(keys[0]) == plain_name(keys[1]):
            problems.append(f"target and confusable must differ, got {keys[0]!r} twice.")
    return problems or ConfusablePair(**names, **folders, error_rate=rate, pair_id=identity, fields=row)


def name_problem(name: Any) -> str | None:
    """Return the problem of a concept's name, if there is one; separators and markup are allowed."""
    if not isinstance(name, str) or not name.strip():
        return f"must be a name, got {name!r}."
    if len(name) > 200:
        return f"must have at most 200 characters, got {len(name)}."
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return f"must have no line breaks or control characters, got {name!r}."
    return None


def is_inside(path: str) -> bool:
    """Return whether a relative path, read on any system, stays below where it starts."""
    parts = re.split(r"[/\\]", path)
    absolute = path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path) is not None
    return not absolute and ".." not in parts and "\0" not in path


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "x"
