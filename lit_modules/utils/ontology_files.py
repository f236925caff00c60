"""Reader of ontology files: YAML and JSON without repeated keys, the schema, and the layout of three maps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lit_modules.utils.suggestions import did_you_mean

SCHEMA_VERSION = 1
BUNDLED = ("household",)
"""Ontologies that come with the package, by the name that :func:`load_mapping` takes in place of a path."""
THREE_MAPS = ("coarse_parts", "coarse_affordance", "coarse_parts_affordance")
"""Keys of a superordinate in the layout of three maps."""


@dataclass(frozen=True)
class Concept:
    """An existing object of an ontology.

    Args:
        superordinate: Name of the category it belongs to.
        name: Name of the object, unique in its category.
        main: Affordances of the object as a whole.
        sub: Further affordances of the whole; the split from ``main`` has no effect on distances.
        parts: Affordances of each part, by its name.

    Example:
        >>> sofa = Concept("furniture", "sofa", ("sit",), ("rest",), {"leg": ("support",), "cushion": ("rest",)})
        >>> sofa.path, sorted(sofa.affordances), sorted(sofa.part_affordances)
        ('furniture/sofa', ['rest', 'sit'], ['rest', 'support'])
    """

    superordinate: str
    name: str
    main: tuple[str, ...]
    sub: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]

    @property
    def path(self) -> str:
        """Superordinate and name, joined by a slash: the same name may stand under two superordinates."""
        return f"{self.superordinate}/{self.name}"

    @property
    def affordances(self) -> frozenset[str]:
        """Affordances of the whole, ``A(c)``."""
        return frozenset((*self.main, *self.sub))

    @property
    def part_affordances(self) -> frozenset[str]:
        """Affordances of all parts together, ``B(c)``."""
        return frozenset(name for names in self.parts.values() for name in names)


def normalise(name: str) -> str:
    """Return a name in lower case with single spaces; underscores stay.

    Example:
        >>> normalise("  Coffee_Maker   Lid ")
        'coffee_maker lid'
    """
    return " ".join(name.lower().split())


def load_mapping(file: str | Path) -> Any:
    """Read a YAML or JSON file; a key that stands twice in one mapping is an error.

    Args:
        file: Path that ends in ``.yaml``, ``.yml`` or ``.json``, or the name of a bundled ontology.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text, no YAML or JSON, or repeats a key; names the file and where.
    """
    if str(file) in BUNDLED:
        text = files("lit_modules.utils").joinpath("data", f"{file}.yaml").read_text(encoding="utf-8")
        return yaml.load(text, _UniqueKeys)
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"An ontology must be a YAML or JSON file, or the name of a bundled one ({', '.join(BUNDLED)}); "
            f"{str(file)!r} {what}."
        )
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"An ontology file must end in .yaml, .yml or .json, got {str(file)!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique) if suffix == ".json" else yaml.load(text, _UniqueKeys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8; save the file in UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: line {error.lineno} is not JSON: {error.msg}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else "the file"
        raise ValueError(f"{file}: {where} is not YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, _RepeatedKey) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}.") from None


def is_three_maps(data: Any) -> bool:
    """Return whether data has the layout of three maps: superordinates, each with maps keyed by concept."""
    return (
        isinstance(data, Mapping)
        and "schema_version" not in data
        and any(isinstance(value, Mapping) and set(THREE_MAPS) & set(value) for value in data.values())
    )


def convert_three_maps(data: Mapping[str, Any], name: str = "converted") -> tuple[dict[str, Any], list[str]]:
    """Turn the layout of three maps into the schema.

    Each superordinate holds ``coarse_parts`` (part names by concept), ``coarse_affordance`` and
    ``coarse_parts_affordance`` (``{"main": [...], "sub": [...]}`` by concept, and by concept and part). The main and
    sub affordances of a part are joined.

    Args:
        data: Superordinates by name.
        name: Name of the ontology.

    Returns:
        Data for :func:`read_concepts`, and what is wrong with the layout itself, a sentence each with its path.

    Example:
        >>> lamp = {
        ...     "coarse_parts": {"lamp": ["bulb"]},
        ...     "coarse_affordance": {"lamp": {"main": ["shine"]}},
        ...     "coarse_parts_affordance": {"lamp": {"bulb": {"main": ["glow"], "sub": ["heat"]}}},
        ... }
        >>> convert_three_maps({"light": lamp}, "lamps")[0]["superordinates"]
        {'light': {'lamp': {'affordances': {'main': ['shine']}, 'parts': {'bulb': ['glow', 'heat']}}}}
    """
    problems: list[str] = []
    superordinates: dict[str, Any] = {}
    for category, maps in data.items():
        if not isinstance(maps, Mapping):
            problems.append(f"{category}: must be a mapping of {', '.join(THREE_MAPS)}, got {_kind(maps)}.")
            continue
        problems += _unknown_keys(maps, THREE_MAPS, category)
        parts, whole, by_part = (_map(maps.get(key, {}), f"{category}/{key}", problems) for key in THREE_MAPS)
        concepts: dict[str, Any] = {concept: {} for concept in (*whole, *parts)}
        for concept, value in concepts.items():
            if concept in whole:
                value["affordances"] = whole[concept]
            names, names_path = parts.get(concept, []), f"{category}/coarse_parts/{concept}"
            if not isinstance(names, list) or not all(isinstance(part, str) for part in names):
                problems.append(f"{names_path}: must be a list of part names, got {_kind(names)}.")
                continue
            owners, owners_path = by_part.get(concept, {}), f"{category}/coarse_parts_affordance/{concept}"
            if not isinstance(owners, Mapping):
                problems.append(f"{owners_path}: must be a mapping of parts, got {_kind(owners)}.")
                continue
            known, affordances = [normalise(part) for part in names], _by_name(owners, owners_path, "a part", problems)
            problems += [
                f"{owners_path}/{part}: unknown part{did_you_mean(part, known)} Add it to {names_path}."
                for part in affordances
                if part not in known
            ]
            value["parts"] = {part: _joined(affordances.get(part, [])) for part in known}
        problems += [
            f"{category}/coarse_parts_affordance/{concept}: unknown concept{did_you_mean(concept, concepts)}"
            for concept in by_part
            if concept not in concepts
        ]
        superordinates[category] = concepts
    return {"schema_version": SCHEMA_VERSION, "name": name, "superordinates": superordinates}, problems


def read_concepts(data: Any) -> tuple[str, list[Concept], list[str]]:
    """Read data in the schema.

    Args:
        data: ``{"schema_version": 1, "name": ..., "superordinates": {superordinate: {concept: {"affordances":
            {"main": [...], "sub": [...]}, "parts": {part: [affordance, ...]}}}}}``; ``sub`` and ``parts`` may be left
            out.

    Returns:
        The name, the concepts in order, and everything that is wrong, a sentence each with its path.

    Example:
        >>> read_concepts({"schema_version": 1, "name": "x", "superordinates": {"tool": {"saw": {}}}})[2]
        ['tool/saw: has no affordance; a concept needs at least one.']
    """
    if not isinstance(data, Mapping):
        problems = [f"An ontology must be a mapping with schema_version, name and superordinates, got {_kind(data)}."]
        return "", [], problems
    problems = list(_unknown_keys(data, ("schema_version", "name", "superordinates"), ""))
    version = data.get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        problems.append(f"schema_version: must be {SCHEMA_VERSION}, got {version!r}.")
    name = data.get("name")
    if not isinstance(name, str) or not name.strip():
        problems.append(f"name: must be a text that is not empty, got {name!r}.")
    concepts = []
    seen: set[str] = set()
    categories = data.get("superordinates")
    if not isinstance(categories, Mapping) or not categories:
        problems.append(f"superordinates: must be a mapping with at least one entry, got {_kind(categories)}.")
        categories = {}
    for key, members in categories.items():
        category = _name(key, "superordinates", "a superordinate", problems)
        if category is None:
            continue
        if category in seen:
            problems.append(f"{category}: this superordinate occurs twice; names differ by more than case and spaces.")
        seen.add(category)
        if not isinstance(members, Mapping) or not members:
            problems.append(f"{category}: must be a mapping of concepts with at least one entry, got {_kind(members)}.")
            continue
        for key, value in members.items():
            concept = _concept(category, key, value, problems)
            if concept is None:
                continue
            if concept.path in seen:
                problems.append(f"{concept.path}: this concept occurs twice in its superordinate.")
            seen.add(concept.path)
            concepts.append(concept)
    return str(name), concepts, problems


def _concept(category: str, key: Any, value: Any, problems: list[str]) -> Concept | None:
    name = _name(key, category, "a concept", problems)
    if name is None:
        return None
    path = f"{category}/{name}"
    if not isinstance(value, Mapping):
        problems.append(f"{path}: must be a mapping with affordances and parts, got {_kind(value)}.")
        return None
    before = len(problems)
    problems += _unknown_keys(value, ("affordances", "parts"), path)
    whole, parts = value.get("affordances", {}), value.get("parts", {})
    if not isinstance(whole, Mapping):
        problems.append(f"{path}/affordances: must be a mapping with main and sub, got {_kind(whole)}.")
        whole = {}
    problems += _unknown_keys(whole, ("main", "sub"), f"{path}/affordances")
    main, sub = (_names(whole.get(key, []), f"{path}/affordances/{key}", problems) for key in ("main", "sub"))
    if not isinstance(parts, Mapping):
        problems.append(f"{path}/parts: must be a mapping of part names to lists of affordances, got {_kind(parts)}.")
        parts = {}
    read: dict[str, tuple[str, ...]] = {}
    for part_key, names in parts.items():
        part = _name(part_key, f"{path}/parts", "a part", problems)
        if part is None:
            continue
        if part in read:
            problems.append(f"{path}/{part}: this part occurs twice.")
        read[part] = _names(names, f"{path}/{part}", problems)
    concept = Concept(category, name, main, tuple(a for a in sub if a not in main), read)
    if len(problems) == before and not concept.affordances and not concept.part_affordances:
        problems.append(f"{path}: has no affordance; a concept needs at least one.")
    return concept


def _names(entries: Any, path: str, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        problems.append(f"{path}: must be a list of affordances, got {_kind(entries)}.")
        return ()
    read = (_name(entry, path, "an affordance", problems, slash=True) for entry in entries)
    return tuple(dict.fromkeys(name for name in read if name is not None))


def _name(value: Any, path: str, what: str, problems: list[str], slash: bool = False) -> str | None:
    """Return a normalised name, or ``None`` with a problem noted."""
    if isinstance(value, bool):
        reason = f"must be a text, got {value}: YAML reads on, off, yes and no as truth values; put it in quotes."
    elif not isinstance(value, str):
        reason = f"must be a text, got {_kind(value)}; put it in quotes."
    elif not value.strip():
        reason = "has an empty name."
    elif "/" in value and not slash:
        reason = f"must not contain a slash, got {value!r}: slashes separate the names of a path."
    else:
        return normalise(value)
    problems.append(f"{path}: {what} {reason}")
    return None


def _unknown_keys(data: Mapping[Any, Any], known: Sequence[str], path: str) -> Iterator[str]:
    begin = f"{path}: " if path else ""
    return (f"{begin}unknown key {key!r}{did_you_mean(str(key), known)}" for key in data if key not in known)


def _map(value: Any, path: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return _by_name(value, path, "a concept", problems)
    problems.append(f"{path}: must be a mapping keyed by concept, got {_kind(value)}.")
    return {}


def _by_name(mapping: Mapping[Any, Any], path: str, what: str, problems: list[str]) -> dict[str, Any]:
    """Return a mapping by normalised names, so that the maps meet; a name that occurs twice is noted."""
    result: dict[str, Any] = {}
    for name, value in mapping.items():
        key = _name(name, path, what, problems)
        if key in result:
            problems.append(f"{path}/{key}: occurs twice; names differ by more than case and spaces.")
        elif key is not None:
            result[key] = value
    return result


def _joined(value: Any) -> Any:
    """Return main and sub of a part as one list; anything else as it is, for the schema to refuse."""
    if not isinstance(value, Mapping) or not set(value) <= {"main", "sub"}:
        return value
    lists = [value.get(key, []) for key in ("main", "sub")]
    wrong = [entry for entry in lists if not isinstance(entry, list)]
    return wrong[0] if wrong else [*lists[0], *lists[1]]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"the list {value!r}" if len(value) < 9 else f"a list of {len(value)}"
    return repr(value)


class _RepeatedKey(ValueError):
    """A key stands twice in one mapping."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _RepeatedKey(f"the key {key!r} occurs twice in one mapping")
        result[key] = value
    return result


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings hold each key once; PyYAML alone keeps the last and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping after its own keys were compared."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise _RepeatedKey(f"line {line}: the key {key.value!r} occurs twice in one mapping")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
