"""Draws designs, objects with a body and parts, as small anti-aliased colour images."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from .ontology import CONCEPTS, PARTS, composed_parts
from .parts import BODIES, PART_SHAPES, body_strokes
from .strokes import Box, Colour, Paint, Stroke

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
"""Where each part may be, the usual place first."""
_BEHIND = ("strap", "handle", "spout", "backrest", "bit", "nozzle", "motor", "canopy", "rotor")
_CHUNK = 256


@dataclass(frozen=True)
class Design:
    """An object to draw.

    Args:
        body: Shape of the body, of ``drawn_parts.BODIES``.
        parts: Parts, each at most once.
        places: Where each part is, of :data:`PLACES`.
    """

    body: str
    parts: tuple[str, ...]
    places: tuple[str, ...]


def existing_design(concept: str) -> Design:
    """Return the design of a concept, each part in its usual place, or the next if that is taken.

    Raises:
        ValueError: If the concept is unknown.

    Example:
        >>> existing_design("lamp")
        Design(body='cone', parts=('bulb', 'stand'), places=('top', 'bottom'))
    """
    if concept not in CONCEPTS:
        raise ValueError(f"concept must be one of {', '.join(CONCEPTS)}, got {concept!r}.")
    parts = tuple(CONCEPTS[concept].parts)
    places: list[str] = []
    for part in parts:
        if part in CONCEPTS[concept].places:
            places.append(CONCEPTS[concept].places[part])
            continue
        free = [place for place in PLACES[part] if place not in places]
        places.append((free or list(PLACES[part]))[0])
    return Design(CONCEPTS[concept].body, parts, tuple(places))


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
