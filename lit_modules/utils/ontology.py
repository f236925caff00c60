"""The ontology of existing objects: superordinate category, concept, part, affordance."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from lit_modules.utils.ontology_files import (
    SCHEMA_VERSION,
    Concept,
    convert_three_maps,
    is_three_maps,
    load_mapping,
    normalise,
    read_concepts,
)
from lit_modules.utils.suggestions import did_you_mean

Level = Literal["concept", "part", "all"]


class Ontology:
    """Existing objects, their parts, and what the objects and the parts are good for.

    An affordance is a function that an object offers as a whole (``sit`` of a sofa) or by one of its parts (``rest`` of
    its cushion). The ontology does not change once it is made.

    Args:
        concepts: The objects, in order; a path occurs once.
        name: Name of the ontology.

    Raises:
        ValueError: If there is no concept, or two have the same path.

    Example:
        >>> household = Ontology.from_file("household")
        >>> household
        Ontology('household', 36 concepts)
        >>> household.stats()["concepts"], household.concepts_with("fly")
        (36, ('vehicle/drone',))
        >>> sorted(household.affordances_of("sofa"))
        ['host', 'rest', 'sit']

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

    def __init__(self, concepts: Iterable[Concept], name: str) -> None:
        self.name = name
        self.concepts = tuple(concepts)
        self._by_path = {concept.path: concept for concept in self.concepts}
        if not self.concepts:
            raise ValueError("An ontology needs at least one concept.")
        if len(self._by_path) < len(self.concepts):
            paths = [concept.path for concept in self.concepts]
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"The concept {twice!r} occurs twice; each path must occur once.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.concepts)} concepts)"

    @classmethod
    def from_file(cls, file: str | Path) -> Self:
        """Read a YAML or JSON file in the schema or in the layout of three maps.

        Args:
            file: Path of the file, or ``"household"`` for the ontology that comes with the package.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file breaks the schema; says the file, the path in it and the reason.
        """
        return cls.from_dict(load_mapping(file), source=str(file))

    @classmethod
    def from_dict(cls, data: Any, source: str = "ontology") -> Self:
        """Read data in the schema or in the layout of three maps; ``source`` names it in errors.

        Data of three maps takes the last part of ``source``, without suffix, for its name.

        Raises:
            ValueError: If the data breaks the schema; says the source, the path in it and the reason.
        """
        name, concepts, problems = _read(data, source)
        if problems:
            more = f" There are {len(problems) - 1} further problems." if len(problems) > 1 else ""
            raise ValueError(f"{source}: {problems[0]}{more}")
        return cls(concepts, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the ontology in the schema."""
        categories: dict[str, Any] = {}
        for concept in self.concepts:
            categories.setdefault(concept.superordinate, {})[concept.name] = {
                "affordances": {"main": list(concept.main), "sub": list(concept.sub)},
                "parts": {part: list(names) for part, names in concept.parts.items()},
            }
        return {"schema_version": SCHEMA_VERSION, "name": self.name, "superordinates": categories}

    def to_json(self) -> str:
        """Return the ontology in the schema as JSON, which :meth:`from_file` reads."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @cached_property
    def graph(self) -> Any:
        """The ontology as a frozen ``networkx.DiGraph``.

        Nodes have a ``kind`` (``superordinate``, ``concept``, ``part`` or ``affordance``) and a ``name``. Their ids
        keep the path, as ``furniture/sofa/leg``; the id of an affordance is its name after a slash, as ``/sit``, which
        no path can be. Edges have the ``kind`` ``has_concept``, ``has_part`` or ``affords``.
        """
        import networkx as nx  # type: ignore[import-untyped]

        graph = nx.DiGraph(name=self.name)
        for concept in self.concepts:
            graph.add_node(concept.superordinate, kind="superordinate", name=concept.superordinate)
            graph.add_node(concept.path, kind="concept", name=concept.name)
            graph.add_edge(concept.superordinate, concept.path, kind="has_concept")
            owners = {concept.path: (*concept.main, *concept.sub)}
            for part, names in concept.parts.items():
                node = f"{concept.path}/{part}"
                graph.add_node(node, kind="part", name=part)
                graph.add_edge(concept.path, node, kind="has_part")
                owners[node] = names
            for owner, names in owners.items():
                for name in names:
                    graph.add_node(f"/{name}", kind="affordance", name=name)
                    graph.add_edge(owner, f"/{name}", kind="affords")
        return nx.freeze(graph)

    def concept(self, name: str) -> Concept:
        """Return a concept by its path, or by its name if only one superordinate has it.

        Raises:
            ValueError: If there is none, with the nearest name, or if the name stands under several superordinates.
        """
        key = normalise(name)
        if key in self._by_path:
            return self._by_path[key]
        namesakes = [concept for concept in self.concepts if concept.name == key]
        if len(namesakes) > 1:
            raise ValueError(f"The concept {name!r} is one of {', '.join(c.path for c in namesakes)}; give the path.")
        if not namesakes:
            known = {*self._by_path, *(concept.name for concept in self.concepts)}
            raise ValueError(f"There is no concept {name!r} in {self.name}{did_you_mean(key, known)}")
        return namesakes[0]

    def affordances(self, level: Level = "all") -> tuple[str, ...]:
        """Return the different affordances of concepts as a whole, of parts, or of all, in alphabetical order."""
        _check_level(level)
        return tuple(sorted(set().union(*(self._of(concept, level) for concept in self.concepts))))

    def affordances_of(self, concept: str, level: Level = "concept") -> frozenset[str]:
        """Return the affordances of a concept, given by :meth:`concept`: of the whole, of the parts, or all.

        Raises:
            ValueError: If there is no such concept or level.
        """
        _check_level(level)
        return self._of(self.concept(concept), level)

    def concepts_with(self, affordance: str, level: Level = "concept") -> tuple[str, ...]:
        """Return the paths of the concepts that own an affordance as a whole, by their parts, or either, in order.

        Raises:
            ValueError: If no concept and no part has it, with the nearest name, or if there is no such level.
        """
        _check_level(level)
        name = normalise(affordance)
        if name not in self._known:
            raise ValueError(f"There is no affordance {affordance!r} in {self.name}{did_you_mean(name, self._known)}")
        return tuple(concept.path for concept in self.concepts if name in self._of(concept, level))

    def parts_of(self, concept: str) -> dict[str, tuple[str, ...]]:
        """Return the affordances of each part of a concept, given as for :meth:`concept`."""
        return dict(self.concept(concept).parts)

    def stats(self) -> dict[str, int]:
        """Return how many superordinates, concepts, parts and affordances there are, different names where it says so.

        Example:
            >>> Ontology.from_file("household").stats()["part_names"]
            56
        """
        return {
            "superordinates": len({concept.superordinate for concept in self.concepts}),
            "concepts": len(self.concepts),
            "parts": sum(len(concept.parts) for concept in self.concepts),
            "part_names": len({part for concept in self.concepts for part in concept.parts}),
            "affordances": len(self.affordances()),
            "concept_affordances": len(self.affordances("concept")),
            "part_affordances": len(self.affordances("part")),
        }

    def validate(self) -> list[str]:
        """Return what the schema allows and a curriculum has no use for, a sentence each with its path."""
        remarks = []
        same: dict[tuple[frozenset[str], frozenset[str]], str] = {}
        for concept in self.concepts:
            if not concept.affordances:
                remarks.append(f"{concept.path}: only its parts have affordances, so it forms no pair.")
            remarks += [f"{concept.path}/{part}: has no affordance." for part, own in concept.parts.items() if not own]
            key = (concept.affordances, concept.part_affordances)
            if key in same:
                remarks.append(f"{concept.path}: has the affordances of {same[key]}, at a distance of 0.")
            same.setdefault(key, concept.path)
        by_words: dict[str, str] = {}
        for name in self.affordances():
            words = name.replace("_", " ").replace("-", " ")
            if words in by_words:
                remarks.append(f"The affordances {by_words[words]!r} and {name!r} differ in punctuation alone.")
            by_words.setdefault(words, name)
        return remarks

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.affordances())

    def _of(self, concept: Concept, level: Level) -> frozenset[str]:
        own = concept.affordances if level != "part" else frozenset()
        return own | concept.part_affordances if level != "concept" else own


def find_problems(data: Any, source: str = "ontology") -> list[str]:
    """Return everything that keeps the content of a file from being an ontology, a sentence each with its path.

    Example:
        >>> find_problems({"schema_version": 1, "name": "x", "superordinates": {"tool": {"saw": {"part": {}}}}})
        ["tool/saw: unknown key 'part'; did you mean 'parts'?"]
    """
    return _read(data, source)[2]


def _read(data: Any, source: str) -> tuple[str, list[Concept], list[str]]:
    conversion: list[str] = []
    if is_three_maps(data):
        data, conversion = convert_three_maps(data, Path(source).stem)
    name, concepts, problems = read_concepts(data)
    return name, concepts, conversion + problems


def _check_level(level: str) -> None:
    if level not in ("concept", "part", "all"):
        raise ValueError(f"level must be 'concept', 'part' or 'all', got {level!r}.")
