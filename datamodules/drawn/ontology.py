"""Ontology of the drawn objects: concepts, their parts and affordances, and the parts that show an affordance.

A concept has a body, parts and affordances. Its affordances are those of the hand-made ontology of everyday objects
that a picture can show: each is seen by one of the concept's parts, as :data:`SEEN_BY` says. So a picture offers an
affordance if one of these parts is in it, and a recogniser of parts can measure that. The affordances of the parts
themselves (a leg supports, a handle is for gripping) only shape the distance between concepts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lit_modules.utils.suggestions import did_you_mean


@dataclass(frozen=True)
class Concept:
    """Everyday object.

    Args:
        superordinate: Kind of object.
        body: Shape of the body, of :data:`~datamodules.drawn.renderer.BODIES`.
        affordances: What the object is for.
        parts: Parts and what each is for.
        places: Places of parts that are not in their usual one.
    """

    superordinate: str
    body: str
    affordances: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    places: dict[str, str] = field(default_factory=dict)


CONCEPTS: dict[str, Concept] = {
    "chair": Concept("furniture", "plank", ("sit",), {"seat": ("sit",), "backrest": ("support",), "leg": ("support",)}),
    "sofa": Concept("furniture", "bench", ("sit", "rest"), {"cushion": ("rest",), "leg": ("support",)}),
    "cabinet": Concept(
        "furniture",
        "chest",
        ("store", "organize"),
        {"drawer": ("open", "close", "store"), "door": ("open", "close")},
    ),
    "bookshelf": Concept("furniture", "tower", ("store", "display", "organize"), {"shelf": ("hold",)}),
    "car": Concept("vehicle", "cabin", ("drive", "transport"), {"wheel": ("roll",), "door": ("open", "close")}),
    "wheelchair": Concept("vehicle", "box", ("sit", "transport"), {"wheel": ("roll",), "seat": ("sit",)}),
    "boat": Concept("vehicle", "bench", ("float", "transport"), {"hull": ("float",), "motor": ("propel",)}),
    "drone": Concept(
        "vehicle", "plank", ("fly", "film"), {"rotor": ("propel",), "camera": ("film",), "battery": ("power",)}
    ),
    "kettle": Concept(
        "kitchenware",
        "pot",
        ("pour",),
        {"spout": ("pour",), "handle": ("grip",), "lid": ("open", "close")},
    ),
    "lamp": Concept("appliance", "cone", ("illuminate",), {"bulb": ("illuminate",), "stand": ("support",)}),
    "fan": Concept("appliance", "round", ("cool", "blow"), {"blade": ("blow",), "stand": ("support",)}),
    "vacuum_cleaner": Concept("appliance", "dome", ("clean", "suck"), {"nozzle": ("suck",), "wheel": ("roll",)}),
    "drill": Concept("tool", "box", ("drill",), {"bit": ("cut",), "handle": ("grip",)}),
    "flashlight": Concept(
        "tool",
        "plank",
        ("illuminate", "search"),
        {"bulb": ("illuminate",), "handle": ("grip",), "battery": ("power",)},
        {"bulb": "right", "handle": "top", "battery": "left"},
    ),
    "toolbox": Concept("tool", "bench", ("carry",), {"lid": ("open", "close"), "handle": ("grip",)}, {"handle": "top"}),
    "watch": Concept("wearable", "round", ("measure", "display"), {"dial": ("display",), "strap": ("hold",)}),
    "umbrella": Concept("wearable", "post", ("shield", "carry"), {"canopy": ("shield",), "handle": ("grip",)}),
    "backpack": Concept("wearable", "sack", ("carry", "store"), {"strap": ("support",), "pocket": ("store",)}),
}
"""The concepts by name."""

SEEN_BY: dict[str, tuple[str, ...]] = {
    "blow": ("blade",),
    "carry": ("handle", "strap"),
    "clean": ("nozzle",),
    "cool": ("blade",),
    "display": ("dial", "shelf"),
    "drill": ("bit",),
    "drive": ("wheel",),
    "film": ("camera",),
    "float": ("hull",),
    "fly": ("rotor",),
    "illuminate": ("bulb",),
    "measure": ("dial",),
    "organize": ("drawer", "shelf"),
    "pour": ("spout",),
    "rest": ("cushion",),
    "search": ("bulb",),
    "shield": ("canopy",),
    "sit": ("seat", "cushion"),
    "store": ("drawer", "shelf", "pocket"),
    "suck": ("nozzle",),
    "transport": ("wheel", "hull"),
}
"""The parts by which each affordance is seen; any one is enough."""

AFFORDANCES: tuple[str, ...] = tuple(sorted(SEEN_BY))
"""The affordances, in the order of the columns of every table here."""

PARTS: tuple[str, ...] = tuple(sorted({part for concept in CONCEPTS.values() for part in concept.parts}))
"""The parts, in the order of the columns of every table here."""


def ontology() -> dict[str, Any]:
    """Return the ontology of the drawn objects in the layout of ontology files.

    Example:
        >>> ontology()["superordinates"]["furniture"]["sofa"]
        {'affordances': {'main': ['sit', 'rest'], 'sub': []}, 'parts': {'cushion': ['rest'], 'leg': ['support']}}
    """
    kinds: dict[str, dict[str, Any]] = {}
    for name, concept in CONCEPTS.items():
        kinds.setdefault(concept.superordinate, {})[name] = {
            "affordances": {"main": list(concept.affordances), "sub": []},
            "parts": {part: list(offered) for part, offered in concept.parts.items()},
        }
    return {"schema_version": 1, "name": "drawn", "superordinates": kinds}


def owners(affordances: Iterable[str]) -> tuple[str, ...]:
    """Return the concepts that have one of the affordances already.

    Raises:
        ValueError: If an affordance is unknown.

    Example:
        >>> owners(["pour", "float"])
        ('boat', 'kettle')
    """
    wanted = set(known_affordances(affordances))
    return tuple(name for name, concept in CONCEPTS.items() if wanted & set(concept.affordances))


def known_affordances(affordances: Iterable[str]) -> tuple[str, ...]:
    """Return the affordances, and refuse unknown ones and none at all.

    Raises:
        ValueError: If an affordance cannot be drawn, with the nearest one; or if there is none.
    """
    names = tuple(affordances)
    if not names:
        raise ValueError(f"There must be at least one affordance; those that can be drawn: {', '.join(AFFORDANCES)}.")
    for name in names:
        if name not in SEEN_BY:
            raise ValueError(f"The affordance {name!r} cannot be drawn{did_you_mean(name, AFFORDANCES, 0.5)}")
    return names


def composed_parts(affordances: Sequence[str], random: Random) -> tuple[str, ...]:
    """Choose parts that show all affordances and are not just those of an existing concept.

    Each affordance gets one of the parts it is seen by. If all chosen parts belong to one concept, a part from
    elsewhere is added that shows something else.

    Args:
        affordances: Affordances to show.
        random: Source of the choices.

    Raises:
        ValueError: If an affordance is unknown.
    """
    chosen: list[str] = []
    for affordance in known_affordances(affordances):
        candidates = SEEN_BY[affordance]
        if not set(candidates) & set(chosen):
            chosen.append(random.choice(candidates))
    homes = [concept for concept in CONCEPTS.values() if set(chosen) <= set(concept.parts)]
    if homes:
        taken = {part for concept in homes for part in concept.parts}
        chosen.append(random.choice([part for part in PARTS if part not in taken]))
    return tuple(chosen)
