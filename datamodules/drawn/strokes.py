"""Strokes that drawn objects are made of.

A stroke is a row of numbers, see :data:`COLUMNS`: a trapezoid with rounded corners, which discs, bars, slabs and
triangles are cases of, perhaps hollow or cut off below a line. Lengths are in the object's own units, y points up.
"""

import math
from dataclasses import dataclass

Colour = tuple[float, float, float]
Stroke = tuple[float, ...]

COLUMNS = ("x", "y", "angle", "bottom", "top", "height", "radius", "ring", "cut", "red", "green", "blue")
"""Centre; turn to the left in radians; half widths below and above; half height; rounding; half thickness of the
outline if hollow, else 0; least y that is kept, seen from the centre and in the frame that turns; colour in [0, 1]."""

NO_CUT = -99.0
WHITE: Colour = (0.97, 0.97, 0.97)
DARK: Colour = (0.13, 0.13, 0.16)
METAL: Colour = (0.62, 0.65, 0.70)
GLASS: Colour = (0.35, 0.65, 0.95)
GLOW: Colour = (1.0, 0.85, 0.15)
WOOD: Colour = (0.45, 0.28, 0.15)


@dataclass(frozen=True)
class Box:
    """Where a part is drawn.

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
    """Return a trapezoid, given by half widths below and above and half height."""
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
