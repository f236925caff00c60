"""Concepts, confusable pairs of them, and their names in prompts and on disk."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_modules.utils.hashing import stable_hash

_KINDS_WITH_TEXT = {"animal": "an animal", "scene": "a scene", "object": "an object"}
# characters that chat templates, tokenizers and list formats give a meaning to
_NEUTRAL = str.maketrans({"<": "\u2039", ">": "\u203a", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/", "`": "'"})


@dataclass(frozen=True)
class Concept:
    """Class of images, such as a species or a kind of scene.

    Args:
        name: Name in questions and prompts, and of the class; kept as given.
        supercategory: Wider class, such as ``"frog"``; empty if unknown.
        kind: ``"animal"``, ``"scene"``, ``"object"`` or any other noun; chooses generic texts.
        aliases: Other names that an answer may give.
        knowledge_text: Description, from a field guide for instance, for textual prompts; empty if there is none.
        known: Whether a model may have seen it; false for a novel concept.

    Raises:
        ValueError: If the name or the kind is empty.
    """

    name: str
    supercategory: str = ""
    kind: str = "animal"
    aliases: tuple[str, ...] = ()
    knowledge_text: str = ""
    known: bool = True

    def __post_init__(self) -> None:
        for field_name in ("name", "kind"):
            if not getattr(self, field_name).strip():
                raise ValueError(f"A concept's {field_name} must not be empty, got {getattr(self, field_name)!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Name and aliases."""
        return (self.name, *self.aliases)

    @property
    def generic_text(self) -> str:
        """Generic text of the reference ranking, such as ``"photo of an animal"``."""
        return f"photo of {_KINDS_WITH_TEXT.get(self.kind) or with_article(prompt_text(self.kind))}"

    def record(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "aliases": list(self.aliases)}


@dataclass(frozen=True)
class ConfusablePair:
    """Concept and the one that a model takes it for.

    Args:
        target: Concept shown (T).
        confusable: Concept answered (M).
        error_rate: Share of the target's images answered as the confusable, in [0, 1]; ``None`` if unknown.

    Raises:
        ValueError: If both are the same or the rate is out of its range.
    """

    target: Concept
    confusable: Concept
    error_rate: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.target.name == self.confusable.name:
            raise ValueError(f"A pair must have two concepts, got {self.target.name!r} twice.")
        if self.error_rate is not None and not 0 <= self.error_rate <= 1:
            raise ValueError(f"error_rate must be in [0, 1], got {self.error_rate}.")

    @property
    def pair_id(self) -> str:
        """Folder name of the pair, the same for both directions."""
        first, second = sorted((self.target.name, self.confusable.name))
        return f"{_words(first, 40)}--{_words(second, 40)}-{stable_hash(first, second)[:10]}"


def safe_name(name: str) -> str:
    """Return a folder name for any text: lower-case ASCII letters, digits and hyphens, and a hash of the whole text.

    Texts that differ get different names, on file systems that ignore case too; separators, dots and markup vanish.

    Example:
        >>> safe_name("../a<b>/C"), safe_name("Puff Adder")
        ('a-b-c-4d90886c', 'puff-adder-8e4c7742')
    """
    return f"{_words(name, 60)}-{stable_hash(name)[:8]}"


def prompt_text(text: str) -> str:
    """Return a text as it may stand in a prompt: one line, without characters of templates and special tokens.

    Angle brackets become quotation marks and other brackets round ones, so that a class named ``<image>`` adds no
    image to a prompt, and the names of a list stay apart.

    Example:
        >>> prompt_text(" Southeastern  five-lined skink [INST]")
        'Southeastern five-lined skink (INST)'
    """
    kept = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return " ".join(kept.translate(_NEUTRAL).split())


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter.

    Example:
        >>> with_article("adder"), with_article("Puff Adder")
        ('an adder', 'a Puff Adder')
    """
    return f"an {noun}" if noun[:1].lower() in "aeiou" and noun else f"a {noun}"


def unique_pairs(pairs: Iterable[ConfusablePair]) -> list[ConfusablePair]:
    """Return the pairs without those that another pair already covers, in either direction; the first one stays.

    Each pair is worked on in both directions, so the reverse of a pair would be done twice.
    """
    unique: dict[str, ConfusablePair] = {}
    for pair in pairs:
        unique.setdefault(pair.pair_id, pair)
    return list(unique.values())


def _words(name: str, longest: int) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall("[a-z0-9]+", ascii_name))[:longest].strip("-") or "x"
