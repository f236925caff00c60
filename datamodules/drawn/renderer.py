"""Drawn objects as pictures: strokes, the parts and bodies made of them, designs, and their rendering.

Lengths are in the object's own units, y points up, and a body measures about 1. A part or body is a list of strokes,
painted in order.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from .ontology import CONCEPTS, PARTS, composed_parts

Colour = tuple[float, float, float]
Stroke = tuple[float, ...]
"""Trapezoid with rounded corners, such as a disc, a bar or a triangle; perhaps hollow, or cut off below a line.

Its numbers are: centre x and y; angle, to the left, in radians; half widths below and above; half height; rounding;
half thickness of the outline if hollow, else 0; least y that is kept, from the centre and before the turn; red, green
and blue in [0, 1]."""

NO_CUT = -99.0
WHITE: Colour = (0.97, 0.97, 0.97)
DARK: Colour = (0.13, 0.13, 0.16)
METAL: Colour = (0.62, 0.65, 0.70)
GLASS: Colour = (0.35, 0.65, 0.95)
GLOW: Colour = (1.0, 0.85, 0.15)
WOOD: Colour = (0.45, 0.28, 0.15)


@dataclass(frozen=True)
class Box:
    """Room for a part.

    Args:
        x: Centre.
        y: Centre.
        width: Half width.
        height: Half height.
        out: Direction away from the body: -1 at its left, 1 at its right, 0 elsewhere.
        joint: Height at which a part beside the body may be joined to it.
    """

    x: float
    y: float
    width: float
    height: float
    out: int = 0
    joint: float = 0.0


@dataclass(frozen=True)
class Paint:
    """Colours of one part.

    Args:
        main: Colour that varies from object to object.
        second: Another one beside it.
    """

    main: Colour
    second: Colour


def taper(
    x: float,
    y: float,
    bottom: float,
    top: float,
    height: float,
    colour: Colour,
    angle: float = 0.0,
    radius: float = 0.02,
) -> Stroke:
    """Return a trapezoid of half widths below and above, and a half height."""
    return (x, y, angle, bottom, top, height, radius, 0.0, NO_CUT, *colour)


def slab(
    x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0, radius: float = 0.03
) -> Stroke:
    """Return a rectangle of a half width and half height, rounding included."""
    radius = min(radius, width, height)
    return taper(x, y, width - radius, width - radius, height - radius, colour, angle, radius)


def disc(x: float, y: float, radius: float, colour: Colour, cut: float = NO_CUT) -> Stroke:
    """Return a disc, of which only what lies above ``y + cut`` is kept."""
    return (x, y, 0.0, 0.0, 0.0, 0.0, radius, 0.0, cut, *colour)


def ring(x: float, y: float, radius: float, thickness: float, colour: Colour) -> Stroke:
    """Return a circle whose line has a half thickness."""
    return (x, y, 0.0, 0.0, 0.0, 0.0, radius, thickness, NO_CUT, *colour)


def bar(x: float, y: float, to_x: float, to_y: float, radius: float, colour: Colour) -> Stroke:
    """Return a line with round ends from one point to another."""
    angle = math.atan2(to_y - y, to_x - x) - math.pi / 2
    length = math.hypot(to_x - x, to_y - y)
    return ((x + to_x) / 2, (y + to_y) / 2, angle, 0.0, 0.0, length / 2, radius, 0.0, NO_CUT, *colour)


def _wheel(box: Box, paint: Paint) -> list[Stroke]:
    radius = min(0.23, box.height * 1.05, box.width * 0.52)
    strokes = []
    for side in (-1, 1):
        x = box.x + side * (box.width - radius * 0.8)
        strokes += [
            disc(x, box.y, radius, DARK),
            disc(x, box.y, radius * 0.52, WHITE),
            disc(x, box.y, radius * 0.2, DARK),
        ]
    return strokes


def _leg(box: Box, paint: Paint) -> list[Stroke]:
    top, bottom = box.y + box.height, box.y - box.height
    return [
        bar(box.x + place * box.width, top, box.x + place * box.width * 1.12, bottom, 0.05, WOOD)
        for place in (-0.88, -0.3, 0.3, 0.88)
    ]


def _hull(box: Box, paint: Paint) -> list[Stroke]:
    return [
        taper(box.x, box.y, box.width * 0.7, box.width * 1.45, box.height * 0.8, paint.main),
        slab(box.x, box.y + box.height * 0.62, box.width * 1.4, 0.045, WHITE),
    ]


def _stand(box: Box, paint: Paint) -> list[Stroke]:
    bottom = box.y - box.height
    return [
        slab(box.x, box.y, 0.06, box.height, METAL),
        disc(box.x, bottom - 0.18, 0.34, METAL, cut=0.17),
        slab(box.x, bottom, box.width * 0.8, 0.05, DARK),
    ]


def _rotor(box: Box, paint: Paint) -> list[Stroke]:
    y, reach = box.y + box.height * 0.35, max(box.width, 0.34)
    strokes = [slab(box.x, box.y - box.height * 0.35, 0.05, box.height * 0.8, DARK)]
    if box.out:
        strokes.append(_arm(box, box.y - box.height, 0.05, DARK))
    for tilt in (-0.3, 0.3):
        x, rise = reach * math.cos(tilt), reach * math.sin(tilt)
        strokes.append(bar(box.x - x, y - rise, box.x + x, y + rise, 0.055, METAL))
    return [*strokes, disc(box.x, y, 0.1, DARK)]


def _canopy(box: Box, paint: Paint) -> list[Stroke]:
    radius = min(max(box.width * 1.2, 0.4), box.height * 2.4)
    y = box.y + box.height - radius * 0.75
    strokes = [bar(box.x, box.y - box.height * 1.1, box.x, y + 0.1, 0.04, DARK)]
    if box.out:
        strokes.append(_arm(box, box.y - box.height, 0.04, DARK))
    return [
        *strokes,
        disc(box.x, y, radius, paint.main, cut=0.0),
        taper(box.x, y + radius * 0.46, radius * 0.34, 0.04, radius * 0.46, paint.second),
        disc(box.x, y + radius, 0.05, DARK),
    ]


def _lid(box: Box, paint: Paint) -> list[Stroke]:
    foot, radius = box.y - box.height, max(box.width * 0.95, 0.25)
    rise = min(box.height * 1.2, radius)
    return [
        disc(box.x, foot - radius + rise, radius, paint.main, cut=radius - rise),
        slab(box.x, foot + 0.03, radius * 0.95, 0.04, DARK),
        disc(box.x, foot + rise + 0.07, 0.1, DARK),
    ]


def _battery(box: Box, paint: Paint) -> list[Stroke]:
    width, height = (0.17, 0.26) if box.out else (min(box.width * 0.45, 0.22), 0.24)
    strokes = [slab(box.x, box.y + height + 0.05, 0.07, 0.07, METAL), slab(box.x, box.y, width, height, DARK)]
    if box.out:
        strokes.insert(0, _arm(box, box.y, 0.05, METAL))
    return [
        *strokes,
        slab(box.x, box.y - height * 0.35, width - 0.04, height * 0.55, (0.2, 0.85, 0.25)),
        bar(box.x - 0.07, box.y + height * 0.6, box.x + 0.07, box.y + height * 0.6, 0.025, WHITE),
    ]


def _bulb(box: Box, paint: Paint) -> list[Stroke]:
    radius = min(box.height * 0.6, 0.19)
    y = box.y + box.height * 0.25
    strokes = [slab(box.x, box.y - box.height * 0.75, 0.09, box.height * 0.3, DARK)]
    if box.out:
        strokes.append(_arm(box, box.y - box.height * 0.8, 0.05, DARK))
    for turn in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, rise = math.cos(math.pi * turn), math.sin(math.pi * turn)
        near, far = radius * 1.45, radius * 2.0
        strokes.append(bar(box.x + near * x, y + near * rise, box.x + far * x, y + far * rise, 0.035, (1.0, 0.65, 0.0)))
    return [*strokes, disc(box.x, y, radius, GLOW), disc(box.x - radius * 0.3, y + radius * 0.3, radius * 0.3, WHITE)]


def _seat(box: Box, paint: Paint) -> list[Stroke]:
    width, foot = max(box.width * 1.12, 0.28), box.y - box.height + 0.1
    strokes = [slab(box.x, foot, width, 0.1, WOOD)]
    if box.out:
        strokes.append(_arm(box, foot, 0.05, WOOD))
    strokes += [slab(box.x + side * (width - 0.05), foot + 0.14, 0.06, 0.17, WOOD) for side in (-1, 1)]
    return [*strokes, slab(box.x, foot + 0.06, width - 0.13, 0.045, paint.second)]


def _backrest(box: Box, paint: Paint) -> list[Stroke]:
    width, height = max(box.width * 0.8, 0.2), box.height * 1.15
    x, y = box.x - box.out * 0.04, box.y + box.height * 0.75
    strokes = [slab(x + side * width, y, 0.05, height, WOOD) for side in (-1, 1)]
    return strokes + [slab(x, y + place * height, width, 0.05, paint.main) for place in (-0.15, 0.35, 0.85)]


def _cushion(box: Box, paint: Paint) -> list[Stroke]:
    half, height = max(box.width * 0.54, 0.17), min(box.height * 0.85, 0.2)
    y = box.y - box.height + height
    strokes = []
    for side in (-1, 1):
        x = box.x + side * half
        strokes += [slab(x, y, half * 0.98, height, paint.main, radius=0.14), disc(x, y, 0.06, WHITE)]
    return strokes


def _spout(box: Box, paint: Paint) -> list[Stroke]:
    near, far = box.x - box.out * box.width * 1.4, box.x + box.out * box.width * 0.5
    top = box.y + box.height * 0.7
    return [
        bar(near, box.y - box.height * 0.45, far, top, 0.11, paint.main),
        bar(far, top, far + box.out * 0.14, top + 0.02, 0.07, paint.main),
        disc(far + box.out * 0.17, top + 0.02, 0.06, DARK),
    ]


def _handle(box: Box, paint: Paint) -> list[Stroke]:
    if box.out:
        radius = min(box.width * 1.25, box.height * 0.8)
        return [ring(box.x - box.out * box.width, box.y, radius, 0.075, DARK)]
    return [ring(box.x, box.y - box.height, min(box.width * 0.6, box.height * 1.3), 0.075, DARK)]


def _drawer(box: Box, paint: Paint) -> list[Stroke]:
    strokes = [slab(box.x, box.y, box.width, box.height, DARK)]
    for side in (-1, 1):
        y = box.y + side * box.height * 0.48
        strokes += [
            slab(box.x, y, box.width * 0.88, box.height * 0.38, (0.85, 0.7, 0.5)),
            slab(box.x, y, min(0.14, box.width * 0.5), 0.045, DARK),
        ]
    return strokes


def _door(box: Box, paint: Paint) -> list[Stroke]:
    width = min(box.width * 0.85, box.height * 0.8)
    return [
        slab(box.x, box.y, width + 0.05, box.height + 0.02, DARK),
        slab(box.x, box.y, width - 0.02, box.height - 0.05, paint.main),
        slab(box.x, box.y + box.height * 0.42, width * 0.65, box.height * 0.3, GLASS),
        disc(box.x + width * 0.55, box.y - box.height * 0.25, 0.06, WHITE),
    ]


def _shelf(box: Box, paint: Paint) -> list[Stroke]:
    strokes = [slab(box.x, box.y, box.width, box.height, WHITE)]
    books: tuple[Colour, ...] = ((0.85, 0.15, 0.15), (0.15, 0.55, 0.2), (0.15, 0.25, 0.75), (0.95, 0.7, 0.1))
    for row, y in enumerate((box.y - box.height * 0.45, box.y + box.height * 0.5)):
        for place in range(4):
            x = box.x + box.width * (-0.66 + 0.44 * place)
            height = box.height * (0.36 if (place + row) % 2 else 0.28)
            strokes.append(
                slab(x, y - box.height * 0.06, box.width * 0.17, height, books[(place + 2 * row) % 4], radius=0.0)
            )
    return [
        *strokes,
        *(slab(box.x, box.y + level * box.height, box.width * 1.05, 0.04, WOOD) for level in (-1, 0.02, 1)),
    ]


def _motor(box: Box, paint: Paint) -> list[Stroke]:
    x = box.x - box.out * box.width * 0.1
    foot = box.y - box.height
    return [
        bar(box.x - box.out * box.width * 1.5, box.y + 0.1, x, box.y + 0.1, 0.06, DARK),
        slab(x, box.y + box.height * 0.4, 0.17, box.height * 0.5, paint.main, radius=0.08),
        slab(x, box.y - box.height * 0.5, 0.05, box.height * 0.6, DARK),
        bar(x + box.out * 0.1, foot - 0.14, x + box.out * 0.1, foot + 0.14, 0.055, METAL),
        disc(x + box.out * 0.06, foot, 0.08, DARK),
    ]


def _camera(box: Box, paint: Paint) -> list[Stroke]:
    half = min(0.27, max(box.width * 0.9, 0.2), max(box.height, 0.2))
    strokes = [slab(box.x, box.y, half * 1.2, half, DARK, radius=0.06)]
    if box.out:
        strokes.insert(0, _arm(box, box.y, 0.06, METAL))
    return [
        *strokes,
        slab(box.x + half * 0.6, box.y + half * 1.1, half * 0.3, 0.06, DARK),
        disc(box.x, box.y, half * 0.74, METAL),
        disc(box.x, box.y, half * 0.55, (0.1, 0.25, 0.65)),
        disc(box.x - half * 0.2, box.y + half * 0.2, half * 0.2, WHITE),
        disc(box.x - half * 0.95, box.y + half * 0.7, 0.05, (0.95, 0.1, 0.1)),
    ]


def _blade(box: Box, paint: Paint) -> list[Stroke]:
    radius = min(max(box.width, box.height), 0.36)
    strokes = [disc(box.x, box.y, radius, WHITE), ring(box.x, box.y, radius, 0.035, DARK)]
    for turn in (0.25, 0.25 + 1 / 3, 0.25 + 2 / 3):
        x, y = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
        strokes.append(
            bar(box.x + 0.1 * x, box.y + 0.1 * y, box.x + radius * 0.6 * x, box.y + radius * 0.6 * y, 0.1, paint.main)
        )
    return [*strokes, disc(box.x, box.y, 0.08, DARK)]


def _nozzle(box: Box, paint: Paint) -> list[Stroke]:
    near, far = box.x - box.out * box.width * 1.3, box.x + box.out * box.width * 0.5
    top, foot = box.y + box.height * 0.55, box.y - box.height
    return [
        bar(near, box.y, box.x - box.out * box.width * 0.2, top, 0.065, DARK),
        bar(box.x - box.out * box.width * 0.2, top, far, top, 0.065, DARK),
        bar(far, top, far, foot + 0.15, 0.065, DARK),
        taper(far, foot + 0.05, max(box.width, 0.27), 0.1, 0.11, paint.main),
        slab(far, foot - 0.08, max(box.width, 0.27), 0.035, DARK),
    ]


def _bit(box: Box, paint: Paint) -> list[Stroke]:
    near = box.x - box.out * box.width
    turn = -box.out * math.pi / 2
    length = max(box.width, 0.26)
    strokes = [
        slab(near + box.out * 0.06, box.y, 0.1, 0.16, DARK),
        taper(near + box.out * (0.14 + length), box.y, 0.14, 0.015, length, METAL, turn),
    ]
    for place, height in ((0.5, 0.11), (1.0, 0.07), (1.5, 0.035)):
        x = near + box.out * (0.14 + length * place)
        strokes.append(bar(x - 0.03, box.y - height, x + 0.03, box.y + height, 0.025, DARK))
    return strokes


def _dial(box: Box, paint: Paint) -> list[Stroke]:
    radius = min(max(box.width, box.height), 0.34)
    strokes = [disc(box.x, box.y, radius, DARK), disc(box.x, box.y, radius * 0.8, WHITE)]
    return [
        *strokes,
        bar(box.x, box.y, box.x, box.y + radius * 0.55, 0.035, DARK),
        bar(box.x, box.y, box.x + radius * 0.42, box.y - radius * 0.1, 0.035, (0.85, 0.1, 0.1)),
    ]


def _strap(box: Box, paint: Paint) -> list[Stroke]:
    width = 0.2
    strokes = [slab(box.x, box.y, width, box.height, paint.main, radius=0.08)]
    for side in (-1, 1):
        strokes += [disc(box.x, box.y + side * (box.height - place), 0.055, WHITE) for place in (0.11, 0.27)]
    return strokes


def _pocket(box: Box, paint: Paint) -> list[Stroke]:
    width, height = box.width * 0.85, box.height * 0.85
    return [
        slab(box.x, box.y - height * 0.1, width, height, paint.main, radius=0.12),
        taper(box.x, box.y + height * 0.5, width * 0.5, width * 0.98, height * 0.38, DARK),
        disc(box.x, box.y + height * 0.2, 0.075, GLOW),
    ]


def _arm(box: Box, y: float, radius: float, colour: Colour) -> Stroke:
    """Return a bar from the body to the middle of the box, at a height."""
    return bar(box.x - box.out * box.width * 1.4, box.joint, box.x, y, radius, colour)


PART_SHAPES: dict[str, Callable[[Box, Paint], list[Stroke]]] = {
    "backrest": _backrest,
    "battery": _battery,
    "bit": _bit,
    "blade": _blade,
    "bulb": _bulb,
    "camera": _camera,
    "canopy": _canopy,
    "cushion": _cushion,
    "dial": _dial,
    "door": _door,
    "drawer": _drawer,
    "handle": _handle,
    "hull": _hull,
    "leg": _leg,
    "lid": _lid,
    "motor": _motor,
    "nozzle": _nozzle,
    "pocket": _pocket,
    "rotor": _rotor,
    "seat": _seat,
    "shelf": _shelf,
    "spout": _spout,
    "stand": _stand,
    "strap": _strap,
    "wheel": _wheel,
}
"""Function that draws each part into its box."""

BODIES: dict[str, tuple[float, float]] = {
    "bench": (0.6, 0.2),
    "box": (0.46, 0.32),
    "cabin": (0.62, 0.36),
    "chest": (0.58, 0.46),
    "cone": (0.34, 0.26),
    "dome": (0.5, 0.3),
    "plank": (0.44, 0.16),
    "post": (0.14, 0.34),
    "pot": (0.44, 0.36),
    "round": (0.42, 0.42),
    "sack": (0.46, 0.5),
    "tower": (0.4, 0.56),
}
"""Half width and half height of each body."""


def body_strokes(body: str, colour: Colour, shade: Colour) -> list[Stroke]:
    """Return the strokes of a body, centred at the origin.

    Args:
        body: Name, of :data:`BODIES`.
        colour: Main colour.
        shade: Colour of its details.
    """
    width, height = BODIES[body]
    if body == "cabin":
        return [
            taper(0.02, height * 0.45, width * 0.66, width * 0.42, height * 0.5, shade),
            slab(0.0, -height * 0.35, width, height * 0.65, colour, radius=0.12),
        ]
    if body == "cone":
        return [taper(0.0, 0.0, width - 0.03, width * 0.5, height - 0.03, colour, radius=0.03)]
    if body == "dome":
        return [disc(0.0, -height, width * 1.1, colour, cut=0.02), slab(0.0, -height + 0.05, width * 1.1, 0.05, shade)]
    if body == "pot":
        return [taper(0.0, 0.0, width - 0.1, width * 0.66 - 0.06, height - 0.1, colour, radius=0.1)]
    if body == "round":
        return [disc(0.0, 0.0, width, colour), ring(0.0, 0.0, width * 0.93, 0.03, shade)]
    if body == "sack":
        return [
            slab(0.0, 0.0, width, height, colour, radius=0.22),
            bar(-width * 0.6, height * 0.55, width * 0.6, height * 0.55, 0.03, shade),
        ]
    return [slab(0.0, 0.0, width, height, colour, radius=0.05)]


PLACES: dict[str, tuple[str, ...]] = {
    "backrest": ("right", "left"),
    "battery": ("right", "left", "front"),
    "bit": ("right", "left"),
    "blade": ("front",),
    "bulb": ("top", "right", "left"),
    "camera": ("front", "left", "right"),
    "canopy": ("top", "left", "right"),
    "cushion": ("top",),
    "dial": ("front", "top"),
    "door": ("front",),
    "drawer": ("front",),
    "handle": ("right", "left", "top"),
    "hull": ("bottom",),
    "leg": ("bottom",),
    "lid": ("top",),
    "motor": ("right", "left"),
    "nozzle": ("left", "right"),
    "pocket": ("front",),
    "rotor": ("top", "left", "right"),
    "seat": ("top", "right", "left"),
    "shelf": ("front",),
    "spout": ("left", "right"),
    "stand": ("bottom",),
    "strap": ("behind",),
    "wheel": ("bottom",),
}
"""Places of each part, the usual one first."""
_BEHIND = ("strap", "handle", "spout", "backrest", "bit", "nozzle", "motor", "canopy", "rotor")
_CHUNK = 256


@dataclass(frozen=True)
class Design:
    """An object to draw.

    Args:
        body: Shape of the body, of :data:`BODIES`.
        parts: Parts, each at most once.
        places: Where each part is, of :data:`PLACES`.
    """

    body: str
    parts: tuple[str, ...]
    places: tuple[str, ...]


def existing_design(concept: str) -> Design:
    """Return the design of a concept: each part in its usual place, or the next one if that is taken.

    Raises:
        ValueError: If the concept is unknown.

    Example:
        >>> existing_design("lamp")
        Design(body='cone', parts=('bulb', 'stand'), places=('top', 'bottom'))
    """
    if concept not in CONCEPTS:
        raise ValueError(f"concept must be one of {', '.join(CONCEPTS)}, got {concept!r}.")
    own = CONCEPTS[concept]
    places: list[str] = []
    for part in own.parts:
        free = [place for place in PLACES[part] if place not in places]
        places.append(own.places.get(part) or (free or PLACES[part])[0])
    return Design(own.body, tuple(own.parts), tuple(places))


def composed_design(affordances: Sequence[str], random: Random) -> Design:
    """Invent a design that offers all affordances and is no existing concept.

    Args:
        affordances: Affordances to offer.
        random: Source of body, parts and places.

    Raises:
        ValueError: If an affordance is unknown.
    """
    return random_design(composed_parts(affordances, random), random)


def random_design(parts: Sequence[str], random: Random) -> Design:
    """Put parts on a body at random, crowding no place without need.

    Args:
        parts: Parts, each at most once.
        random: Source of body and places.

    Raises:
        ValueError: If a part is unknown or comes twice.
    """
    for part in parts:
        if part not in PLACES:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}.")
    if len(set(parts)) < len(parts):
        raise ValueError(f"Each part may come once, got {', '.join(parts)}.")
    body = random.choice(sorted(set(BODIES) - {"post"}))
    load: dict[str, int] = {}
    chosen: dict[str, str] = {}
    for part in sorted(parts, key=lambda part: len(PLACES[part])):  # those without a choice first
        least = min(load.get(place, 0) for place in PLACES[part])
        free = [place for place in PLACES[part] if load.get(place, 0) == least]
        chosen[part] = free[0] if random.random() < 0.7 else random.choice(free)
        load[chosen[part]] = load.get(chosen[part], 0) + 1
    return Design(body, tuple(parts), tuple(chosen[part] for part in parts))


def render(scenes: Sequence[Sequence[Design]], keys: Sequence[str], size: int = 32) -> NDArray[np.uint8]:
    """Draw scenes of one or more objects each, side by side.

    Colours, size, turn, place and mirroring vary with the key alone: a scene and its key give the same image always.

    Args:
        scenes: Objects of each image.
        keys: What each image's variation is drawn from, one per scene.
        size: Side of the images in pixels.

    Returns:
        ``(images, 3, size, size)``, red, green and blue.

    Raises:
        ValueError: If there are not as many keys as scenes or ``size`` is below 8.

    Example:
        >>> render([[existing_design("kettle")]], ["0"]).shape
        (1, 3, 32, 32)
    """
    if len(scenes) != len(keys):
        raise ValueError(f"There must be as many keys as scenes, got {len(keys)} keys and {len(scenes)} scenes.")
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}.")
    images = np.empty((len(scenes), 3, size, size), dtype=np.uint8)
    for start in range(0, len(scenes), _CHUNK):
        part = slice(start, start + _CHUNK)
        backgrounds, strokes = zip(*map(_scene, scenes[part], keys[part]), strict=True)
        images[part] = _paint(np.array(backgrounds, dtype=np.float32), list(strokes), size)
    return images


def _scene(designs: Sequence[Design], key: str) -> tuple[Colour, NDArray[np.float32]]:
    """Return the background's colour and the strokes of an image, in a picture of [-1, 1] x [-1, 1]."""
    random = Random(key)
    background = colorsys.hsv_to_rgb(random.random(), random.uniform(0.0, 0.1), random.uniform(0.9, 1.0))
    width = 2 / max(1, len(designs))
    drawn = [
        _placed(_strokes(design, random), random, -1 + (number + 0.5) * width, min(1.0, width * 0.62))
        for number, design in enumerate(designs)
    ]
    return background, np.concatenate(drawn) if drawn else np.empty((0, 12), dtype=np.float32)


def _placed(strokes: list[Stroke], random: Random, centre: float, room: float) -> NDArray[np.float32]:
    """Fit an object into its part of the picture, with a random size, turn, shift and mirroring."""
    rows = np.array(strokes, dtype=np.float32)
    lying = np.abs(np.sin(rows[:, 2])) > 0.5
    wide, tall = np.maximum(rows[:, 3], rows[:, 4]), rows[:, 5]
    reach_x, reach_y = np.where(lying, tall, wide) + rows[:, 6], np.where(lying, wide, tall) + rows[:, 6]
    low = np.array([(rows[:, 0] - reach_x).min(), (rows[:, 1] + np.maximum(-reach_y, rows[:, 8])).min()])
    high = np.array([(rows[:, 0] + reach_x).max(), (rows[:, 1] + reach_y).max()])
    middle = (low + high) / 2
    scale = 0.87 * room / max(float((high - low).max()) / 2, 0.6) * random.uniform(0.82, 1.0)
    turn, mirrored = random.uniform(-0.14, 0.14), random.random() < 0.5
    shift = random.uniform(-0.07, 0.07) * room, random.uniform(-0.07, 0.07)
    x, y = rows[:, 0] - middle[0], rows[:, 1] - middle[1]
    if mirrored:
        x, rows[:, 2] = -x, -rows[:, 2]
    rows[:, 0] = centre + shift[0] + scale * (math.cos(turn) * x - math.sin(turn) * y)
    rows[:, 1] = shift[1] + scale * (math.sin(turn) * x + math.cos(turn) * y)
    rows[:, 2] += turn
    rows[:, 3:9] *= scale
    return rows


def _strokes(design: Design, random: Random) -> list[Stroke]:
    """Return the strokes of an object in its own units, with random colours and proportions."""
    hue, value = random.random(), random.uniform(0.5, 0.85)
    body = colorsys.hsv_to_rgb(hue, random.uniform(0.35, 0.75), value)
    shade = colorsys.hsv_to_rgb(hue, 0.5, value * 0.55)
    boxes = _boxes(design)
    behind: list[Stroke] = []
    front: list[Stroke] = []
    for part, box in boxes:
        # another hue than the body's, and brighter or darker
        hues = [(hue + random.uniform(0.3, 0.7)) % 1.0 for _ in range(2)]
        bright = 1.0 if value < 0.68 else 0.5
        paint = Paint(
            colorsys.hsv_to_rgb(hues[0], random.uniform(0.6, 0.9), bright),
            colorsys.hsv_to_rgb(hues[1], random.uniform(0.3, 0.7), 1.5 - bright),
        )
        (behind if part in _BEHIND else front).extend(PART_SHAPES[part](box, paint))
    return [*behind, *body_strokes(design.body, body, shade), *front]


def _boxes(design: Design) -> list[tuple[str, Box]]:
    """Return the box of each part: parts share the front side by side, the other places one over another."""
    width, height = BODIES[design.body]
    crowd: dict[str, list[str]] = {}
    for part, place in zip(design.parts, design.places, strict=True):
        crowd.setdefault(place, []).append(part)
    boxes = []
    for place, parts in crowd.items():
        number = len(parts)
        for turn, part in enumerate(parts):
            if place == "front":
                half = max(width * 0.8, 0.3) / number
                box = Box(
                    half * (2 * turn + 1 - number), 0.0, half * (0.92 if number > 1 else 1), max(height * 0.78, 0.27)
                )
            elif place in ("top", "bottom"):
                half = 0.25 if number == 1 else 0.2
                y = height + half * (2 * turn + 1) - 0.02
                box = Box(0.0, y if place == "top" else -y, max(min(width, 0.5), 0.3), half)
            elif place == "behind":
                box = Box(0.0, 0.0, 0.2, height + 0.34)
            else:
                out = 1 if place == "right" else -1
                half = max(height, 0.38) / number
                y = 0.0 if number == 1 else half * (number - 1 - 2 * turn)
                reach = max(height - 0.1, 0.0)
                box = Box(out * (width + 0.2), y, 0.22, half, out, min(max(y - half * 0.8, -reach), reach))
            boxes.append((part, box))
    return boxes


def _paint(backgrounds: NDArray[np.float32], strokes: list[NDArray[np.float32]], size: int) -> NDArray[np.uint8]:
    """Paint the strokes of each image in order, all images at once."""
    count = np.array([len(rows) for rows in strokes])
    table = np.zeros((len(strokes), max(1, count.max()), 12), dtype=np.float32)
    for rows, place in zip(strokes, table, strict=True):
        place[: len(rows)] = rows
    canvas = np.repeat(backgrounds[:, :, None], size * size, axis=2)
    pixel = 2 / size
    axis = (np.arange(size, dtype=np.float32) + 0.5) * pixel - 1
    xs, ys = np.tile(axis, size), np.repeat(-axis, size)
    for layer in range(int(count.max())):
        chosen = np.flatnonzero(count > layer)
        rows = table[chosen, layer]
        cover = _cover(rows[:, :9], xs, ys, pixel)
        canvas[chosen] += cover[:, None] * (rows[:, 9:, None] - canvas[chosen])
    return (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8).reshape(len(strokes), 3, size, size)


def _cover(
    rows: NDArray[np.float32], xs: NDArray[np.float32], ys: NDArray[np.float32], pixel: float
) -> NDArray[np.float32]:
    """Return the share of each pixel that a stroke covers, from the distance to its edge, ``(images, pixels)``."""
    x, y, angle, bottom, top, height, radius, ring, cut = rows.T[:, :, None]
    dx, dy = xs - x, ys - y
    cosine, sine = np.cos(angle), np.sin(angle)
    across, along = np.abs(cosine * dx + sine * dy), cosine * dy - sine * dx
    slope = (top - bottom) / np.maximum(2 * height, 1e-6)
    level = np.clip(along, -height, height)
    beside = (across - (top + bottom) / 2 - slope * level) / np.sqrt(1 + slope * slope)
    above = np.abs(along) - height
    distance = np.hypot(np.maximum(beside, 0), np.maximum(above, 0)) + np.minimum(np.maximum(beside, above), 0) - radius
    distance = np.where(ring > 0, np.abs(distance) - ring, distance)
    covered: NDArray[np.float32] = np.clip(0.5 - np.maximum(distance, cut - along) / pixel, 0, 1)
    return covered
