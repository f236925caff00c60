"""Concepts, their names and their pictures."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .images import Picture
from .pairs import plain_name

SOURCES = {
    "inaturalist": "inat",
    "inat": "inat",
    "novelspecies": "novel_species",
    "novel_species": "novel_species",
    "sun": "sun",
    "sun397": "sun",
}
"""Names of the sources of pictures, and what they are called here."""


@dataclass
class Concept:
    """A class of pictures.

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
        fields: What else ``concepts.jsonl`` says.
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
        given = {self.name, *self.folders(), *self.aliases, self.scientific_name}
        return {plain_name(name) for name in given if name}

    def folders(self) -> set[str]:
        """Return what its folder may be called: the ends of its path, from each level on."""
        parts = self.key.split("/")
        return {"/".join(parts[level:]) for level in range(len(parts))}


@dataclass
class ConceptFolder:
    """What a folder holds.

    Args:
        root: Folder.
        concepts: Concepts by key, sorted.
        splits: Splits that there are.
        problems: What is wrong with it, a sentence each.
    """

    root: Path
    concepts: dict[str, Concept]
    splits: tuple[str, ...]
    problems: list[str]

    def find(self, name: str, folder: str | None = None) -> tuple[Concept | None, str]:
        """Return the concept of a name and folder, or ``None`` and why there is none."""
        found: list[Concept] = []
        if folder is not None:
            wanted = folder.replace("\\", "/").strip("/")
            places = {concept.key: {concept.key, *concept.dirs} for concept in self.concepts.values()}
            found = [self.concepts[key] for key, dirs in places.items() if wanted in dirs]
            found = found or [
                self.concepts[key] for key, dirs in places.items() if any(d.endswith("/" + wanted) for d in dirs)
            ]
        if not found:
            plain = plain_name(name)
            found = [concept for concept in self.concepts.values() if plain in concept.names()]
            # an own name is stronger than an alias
            own = [concept for concept in found if plain in (plain_name(concept.name), plain_name(concept.key))]
            found = own or found
        if len(found) == 1:
            return found[0], ""
        what = repr(name) if folder is None else f"{name!r} (folder {folder!r})"
        if found:
            return None, f"{what} may be {' or '.join(concept.key for concept in found)}; give its folder."
        close = difflib.get_close_matches(name, [concept.name for concept in self.concepts.values()], 3, 0.6)
        return None, f"{what} is not among the {len(self.concepts)} classes" + (
            f"; did you mean {' or '.join(close)}?" if close else "."
        )
