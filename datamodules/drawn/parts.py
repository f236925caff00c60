"""Shapes of drawn objects: bodies, and parts in the boxes that a body offers.

A shape is a list of strokes, painted in order. Lengths are in the object's own units, y points up, and a body measures
about 1.
"""

import math
from collections.abc import Callable

from .strokes import (
    DARK,
    GLASS,
    GLOW,
    METAL,
    WHITE,
    WOOD,
    Box,
    Colour,
    Paint,
    Stroke,
    bar,
    disc,
    ring,
    slab,
    taper,
)


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
"""How each part is drawn into its box."""

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
