"""Drawn creatures: their attributes, the renderer, and the renderer in the place of a text-to-image model."""

import colorsys
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_modules.utils.json_lines import read_json_lines

Point = tuple[float, float]
Colour = tuple[int, int, int]
Hue = tuple[float, float, float]

PHRASES: dict[str, dict[str, str]] = {
    "body": {"round": "a round body", "long": "a long body", "tall": "a tall body", "square": "a square body"},
    "colour": {
        "red": "red skin",
        "orange": "orange skin",
        "green": "green skin",
        "blue": "blue skin",
        "purple": "purple skin",
        "brown": "brown skin",
    },
    "pattern": {
        "plain": "a plain coat",
        "stripes": "a striped coat",
        "spots": "a spotted coat",
        "checks": "a chequered coat",
        "saddle": "a dark saddle",
    },
    "belly": {"white": "a white belly", "yellow": "a yellow belly", "black": "a black belly"},
    "horns": {"none": "a hornless head", "one": "one horn", "two": "two horns", "antlers": "antlers"},
    "ears": {"none": "an earless head", "pointed": "pointed ears", "round": "round ears", "long": "long ears"},
    "eyes": {"one": "one eye", "two": "two eyes", "stalked": "eyes on stalks"},
    "mouth": {"plain": "a plain mouth", "beak": "a beak", "fangs": "fangs"},
    "back": {"smooth": "a smooth back", "spikes": "spikes on the back", "hump": "a hump", "fin": "a fin on the back"},
    "wings": {"none": "wingless flanks", "small": "small wings", "large": "large wings"},
    "legs": {"none": "a legless body", "two": "two legs", "four": "four legs", "six": "six legs"},
    "tail": {
        "none": "a tailless rump",
        "short": "a short tail",
        "long": "a long tail",
        "curled": "a curled tail",
        "forked": "a forked tail",
    },
}
"""Attributes, their values, and the phrase of each value in texts."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {name: tuple(values) for name, values in PHRASES.items()}
"""Attributes and their values."""

HABITATS: dict[str, tuple[Hue, Hue]] = {
    "meadow": ((0.30, 0.35, 0.90), (0.28, 0.55, 0.60)),
    "desert": ((0.12, 0.40, 0.98), (0.09, 0.55, 0.75)),
    "snow": ((0.56, 0.10, 1.00), (0.55, 0.05, 0.95)),
    "dusk": ((0.78, 0.40, 0.62), (0.72, 0.45, 0.42)),
}
"""Hue, saturation and value of the sky and of the ground of each habitat."""

_HUES = {"red": 0.0, "orange": 0.085, "green": 0.36, "blue": 0.6, "purple": 0.79, "brown": 0.07}
_BELLIES: dict[str, Colour] = {"white": (245, 245, 240), "yellow": (250, 220, 60), "black": (35, 32, 38)}
_BODIES = {"round": (0.40, 0.38), "long": (0.56, 0.25), "tall": (0.29, 0.47), "square": (0.38, 0.34)}
_DARK: Colour = (30, 28, 36)
_BONE: Colour = (236, 226, 196)
_HORN: Colour = (92, 84, 104)
_SCALE = 4
_CIRCLE = [(math.cos(2 * math.pi * k / 28), math.sin(2 * math.pi * k / 28)) for k in range(28)]
_BY_PHRASE = {phrase: (name, value) for name, values in PHRASES.items() for value, phrase in values.items()}
_FIND = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, _BY_PHRASE), key=len, reverse=True)) + r")\b", re.I)


def phrases(attributes: Mapping[str, str]) -> list[str]:
    """Return the phrases of attributes.

    Raises:
        ValueError: If an attribute or a value is unknown.

    Example:
        >>> phrases({"tail": "curled", "horns": "two"})
        ['a curled tail', 'two horns']
    """
    check_attributes(attributes)
    return [PHRASES[name][value] for name, value in attributes.items()]


def attributes_in(text: str) -> dict[str, str]:
    """Return the attributes that a text names, the first value of each.

    Example:
        >>> attributes_in("A picture of a Velmor with two horns, a curled tail.")
        {'horns': 'two', 'tail': 'curled'}
    """
    attributes: dict[str, str] = {}
    for match in _FIND.finditer(text):
        name, value = _BY_PHRASE[match.group().lower()]
        attributes.setdefault(name, value)
    return attributes


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Raise a ``ValueError`` if an attribute or a value is unknown."""
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            raise ValueError(f"An attribute must be one of {', '.join(ATTRIBUTES)}, got {name!r}.")
        if value not in ATTRIBUTES[name]:
            raise ValueError(f"{name} must be one of {', '.join(ATTRIBUTES[name])}, got {value!r}.")


def random_attributes(random: Random) -> dict[str, str]:
    """Return a random value of each attribute."""
    return {name: random.choice(values) for name, values in ATTRIBUTES.items()}


def draw(attributes: Mapping[str, str], seed: int | str = 0, size: int = 64, habitat: str | None = None) -> Image.Image:
    """Draw one creature; it stands in for a generator of pictures that attributes steer.

    Attributes that are not given, and pose, place, size, light and background, are drawn from the seed: the same
    attributes and seed give the same picture always.

    Args:
        attributes: Values of some of :data:`ATTRIBUTES`.
        seed: Seed.
        size: Side of the picture in pixels, at least 16.
        habitat: One of :data:`HABITATS`, which sets the colours of the background; ``None`` takes any pale ones.

    Returns:
        The picture in mode RGB.

    Raises:
        ValueError: If an attribute, a value or the habitat is unknown, or ``size`` is below 16.

    Example:
        >>> draw({"horns": "two", "tail": "curled"}, seed=3).size
        (64, 64)
    """
    if size < 16:
        raise ValueError(f"size must be at least 16, got {size}.")
    check_attributes(attributes)
    if habitat is not None and habitat not in HABITATS:
        raise ValueError(f"habitat must be one of {', '.join(HABITATS)}, got {habitat!r}.")
    random = Random(f"{seed}/creature")
    return _Creature({**random_attributes(random), **attributes}, random, size, habitat).picture()


def render_creatures(
    creatures: Sequence[Mapping[str, str]],
    seeds: Sequence[int | str],
    size: int = 64,
    habitats: Sequence[str | None] | None = None,
) -> NDArray[np.uint8]:
    """Draw several creatures, each in its habitat, see :func:`draw`.

    Returns:
        ``(creatures, 3, size, size)``, red, green and blue.

    Raises:
        ValueError: If there are not as many seeds as creatures.
    """
    if len(creatures) != len(seeds):
        raise ValueError(f"There must be as many seeds as creatures, got {len(seeds)} and {len(creatures)}.")
    places = habitats or [None] * len(creatures)
    pictures = [np.asarray(draw(*row[:2], size, row[2])) for row in zip(creatures, seeds, places, strict=True)]
    stacked = np.stack(pictures) if pictures else np.empty((0, size, size, 3), dtype=np.uint8)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


class _Creature:
    """A creature on a canvas of four times the size, in units in which the picture is [-1, 1] x [-1, 1], y up."""

    def __init__(self, attributes: Mapping[str, str], random: Random, size: int, habitat: str | None) -> None:
        self.attributes = attributes
        self.size, self.side = size, size * _SCALE
        sky, ground = (None, None) if habitat is None else HABITATS[habitat]
        tone = _background(random, sky, (0.05, 0.22), (0.82, 1.0))
        self.image = Image.new("RGB", (self.side, self.side), _colour(*tone))
        self.drawing = ImageDraw.Draw(self.image)
        self._scenery(random, ground)
        self.zoom = random.uniform(0.86, 0.98)
        self.mirror = -1 if random.random() < 0.5 else 1
        turn = random.uniform(-0.12, 0.12)
        self.cosine, self.sine = math.cos(turn), math.sin(turn)
        self.shift = (random.uniform(-0.07, 0.07), random.uniform(-0.07, 0.05))
        self.bend = random.uniform(-0.06, 0.06)
        light = random.uniform(0.9, 1.08)
        brown = attributes["colour"] == "brown"
        hue = _HUES[attributes["colour"]] + random.uniform(-0.012, 0.012)
        self.skin = _shaded(hue, 0.62 if brown else 0.75, (0.5 if brown else 0.85) * light)
        self.shade = _shaded(hue, 0.7 if brown else 0.85, (0.26 if brown else 0.52) * light)
        self.belly = _BELLIES[attributes["belly"]]
        width, height = _BODIES[attributes["body"]]
        self.width, self.height = width * random.uniform(0.95, 1.05), height * random.uniform(0.95, 1.05)
        self.head = (self.width * 0.85 + 0.05, self.height * 0.55 + 0.13)

    def picture(self) -> Image.Image:
        """Draw all parts, from back to front."""
        self._tail()
        self._legs(behind=True)
        self._back()
        self._body()
        self._wings()
        self._legs(behind=False)
        self._head()
        return self.image.reduce(_SCALE)

    def _scenery(self, random: Random, tone: Hue | None) -> None:
        self.zoom, self.mirror, self.cosine, self.sine, self.shift = 1.0, 1, 1.0, 0.0, (0.0, 0.0)
        ground = _background(random, tone, (0.08, 0.3), (0.62, 0.82))
        level = random.uniform(-0.75, -0.4)
        self._polygon([(-1.1, -1.1), (1.1, -1.1), (1.1, level), (-1.1, level + random.uniform(-0.1, 0.1))], ground)
        for _ in range(random.randint(0, 3)):
            at = random.uniform(-1, 1), random.uniform(-1, level)
            stone = tuple(part * random.uniform(0.8, 0.95) for part in ground)
            self._oval(at[0], at[1], random.uniform(0.05, 0.15), random.uniform(0.03, 0.06), stone)

    def _tail(self) -> None:
        kind, x, y = self.attributes["tail"], -self.width * 0.8, -self.height * 0.1
        if kind == "short":
            self._line([(x, y), (x - 0.24, y + 0.12)], 0.075, self.shade)
        elif kind == "long":
            self._line([(x, y), (x - 0.2, y - 0.05), (x - 0.34, y + 0.2), (x - 0.38, y + 0.55)], 0.05, self.shade)
        elif kind == "forked":
            self._line([(x, y), (x - 0.22, y + 0.1)], 0.05, self.shade)
            self._line([(x - 0.2, y + 0.1), (x - 0.4, y + 0.32)], 0.045, self.shade)
            self._line([(x - 0.2, y + 0.1), (x - 0.44, y - 0.05)], 0.045, self.shade)
        elif kind == "curled":
            centre = (x - 0.22, y + 0.2)
            turns = [(0.2 - 0.0075 * k, -1.2 - 0.42 * k) for k in range(18)]
            points = [(centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in turns]
            self._line([(x, y), *points], 0.042, self.shade)

    def _legs(self, behind: bool) -> None:
        number = {"none": 0, "two": 2, "four": 4, "six": 6}[self.attributes["legs"]]
        places = [(2 * k + 1 - number) / max(number, 1) * self.width * 0.85 for k in range(number)]
        for place, x in enumerate(places):
            if (place % 2 == 0) == behind:
                top = -self.height * (0.75 if number > 2 or self.attributes["body"] != "long" else 0.8)
                foot = -self.height - 0.3
                end = x * (1.4 if number == 6 else 1.15) + self.bend
                self._line([(x, top), (end, foot)], 0.045 if number == 6 else 0.055, self.shade)
                self._line([(end, foot), (end + 0.07, foot)], 0.045, self.belly)

    def _back(self) -> None:
        kind, width, height = self.attributes["back"], self.width, self.height
        if kind == "spikes":
            for k in range(5):
                x = (k - 2.6) * width * 0.33
                y = height * (1 - (x / width) ** 2 * 0.5) * 0.85
                self._polygon([(x - 0.075, y), (x + 0.075, y), (x - 0.03, y + 0.27)], _HORN)
        elif kind == "hump":
            self._oval(-width * 0.25, height * 0.8, width * 0.42, 0.24, self.skin)
        elif kind == "fin":
            points = [(-width * 0.75, height * 0.4), (-width * 0.6, height + 0.3), (width * 0.3, height * 0.8)]
            self._polygon(points, self.shade)

    def _body(self) -> None:
        outline = self._outline()
        self._polygon(outline, self.skin)
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon([self._at(point) for point in outline], fill=255)
        layer = self.image.copy()
        self.drawing = ImageDraw.Draw(layer)
        width, height = self.width, self.height
        kind = self.attributes["pattern"]
        if kind == "stripes":
            for k in range(5):
                x = (k - 2) * width * 0.44
                self._line([(x - 0.04, height * 1.2), (x + 0.04, -height * 1.2)], 0.042, self.shade)
        elif kind == "spots":
            for k in range(11):
                x, y = ((k * 0.618) % 1 * 2 - 1) * width * 0.9, (k / 10 * 2 - 1) * height * 0.85
                self._oval(x, y, 0.068, 0.068, self.shade)
        elif kind == "checks":
            step = 0.17
            for row in range(-4, 4):
                for column in range(-4, 4):
                    if (row + column) % 2 == 0:
                        x, y = column * step, row * step
                        self._polygon([(x, y), (x + step, y), (x + step, y + step), (x, y + step)], self.shade)
        elif kind == "saddle":
            self._oval(-width * 0.1, height * 0.75, width * 0.6, height * 0.6, self.shade)
        self._oval(width * 0.1, -height * 0.85, width * 0.72, height * 0.48, self.belly)
        self.drawing = ImageDraw.Draw(self.image)
        self.image.paste(layer, mask=mask)

    def _outline(self) -> list[Point]:
        power = 0.45 if self.attributes["body"] == "square" else 1.0
        return [
            (self.width * math.copysign(abs(x) ** power, x), self.height * math.copysign(abs(y) ** power, y))
            for x, y in _CIRCLE
        ]

    def _wings(self) -> None:
        if self.attributes["wings"] == "none":
            return
        span = 0.34 if self.attributes["wings"] == "small" else 0.62
        x, y = -self.width * 0.1, self.height * 0.2
        tip = (x - span * 0.85, y + span * 1.05)
        self._polygon([(x + 0.1, y), tip, (x - span * 0.95, y + span * 0.35), (x - span * 0.5, y - 0.05)], _DARK)
        inner = [(x + 0.06, y + 0.03), (tip[0] + 0.05, tip[1] - 0.08), (x - span * 0.8, y + span * 0.37)]
        self._polygon([*inner, (x - span * 0.42, y)], self.belly if self.attributes["belly"] != "black" else _BONE)

    def _head(self) -> None:
        x, y = self.head
        self._ears(x, y)
        self._horns(x, y)
        stalked = self.attributes["eyes"] == "stalked"
        if stalked:
            self._line([(x - 0.02, y + 0.1), (x - 0.06, y + 0.38)], 0.03, self.skin)
            self._line([(x + 0.1, y + 0.1), (x + 0.19, y + 0.36)], 0.03, self.skin)
        self._line([(self.width * 0.5, self.height * 0.3), (x, y)], 0.13, self.skin)
        self._oval(x, y, 0.24, 0.215, self.skin)
        mouth = self.attributes["mouth"]
        if mouth == "beak":
            self._polygon([(x + 0.14, y + 0.08), (x + 0.46, y - 0.06), (x + 0.14, y - 0.15)], (240, 165, 30))
        else:
            self._line([(x + 0.02, y - 0.1), (x + 0.19, y - 0.08)], 0.018, _DARK)
        if mouth == "fangs":
            for place in (0.05, 0.15):
                at = x + place
                self._polygon([(at - 0.04, y - 0.08), (at + 0.04, y - 0.08), (at, y - 0.26)], (255, 255, 255))
        for (eye_x, eye_y), radius in self._eyes(x, y):
            self._oval(eye_x, eye_y, radius, radius, (255, 255, 255))
            self._oval(eye_x + radius * 0.2, eye_y, radius * 0.55, radius * 0.55, _DARK)

    def _eyes(self, x: float, y: float) -> list[tuple[Point, float]]:
        if self.attributes["eyes"] == "one":
            return [((x + 0.06, y + 0.05), 0.115)]
        if self.attributes["eyes"] == "two":
            return [((x - 0.05, y + 0.06), 0.072), ((x + 0.12, y + 0.06), 0.072)]
        return [((x - 0.06, y + 0.38), 0.075), ((x + 0.19, y + 0.36), 0.075)]

    def _horns(self, x: float, y: float) -> None:
        kind = self.attributes["horns"]
        places = {"none": (), "one": ((0.03, 0.06),), "two": ((-0.12, -0.1), (0.13, 0.12)), "antlers": ()}[kind]
        for place, lean in places:
            base = [(x + place - 0.055, y + 0.14), (x + place + 0.055, y + 0.14)]
            self._polygon([*base, (x + place + lean, y + 0.5)], _HORN)
        if kind == "antlers":
            for side in (-1, 1):
                root, top = (x + side * 0.06, y + 0.15), (x + side * 0.2, y + 0.5)
                middle = (x + side * 0.12, y + 0.3)
                self._line([root, middle, top], 0.028, _HORN)
                self._line([middle, (x + side * 0.3, y + 0.34)], 0.026, _HORN)
                self._line([(x + side * 0.16, y + 0.4), (x + side * 0.03, y + 0.5)], 0.026, _HORN)

    def _ears(self, x: float, y: float) -> None:
        kind, back = self.attributes["ears"], x - 0.17
        if kind == "pointed":
            self._polygon([(back - 0.06, y + 0.05), (back + 0.09, y + 0.12), (back - 0.1, y + 0.34)], self.shade)
        elif kind == "round":
            self._oval(back - 0.03, y + 0.17, 0.115, 0.115, self.shade)
        elif kind == "long":
            self._line([(back + 0.05, y + 0.1), (back - 0.12, y + 0.5)], 0.055, self.shade)

    def _at(self, point: Point) -> Point:
        x, y = point[0] * self.zoom * self.mirror, point[1] * self.zoom
        x, y = self.cosine * x - self.sine * y + self.shift[0], self.sine * x + self.cosine * y + self.shift[1]
        return (x + 1) * self.side / 2, (1 - y) * self.side / 2

    def _polygon(self, points: Sequence[Point], colour: Sequence[float]) -> None:
        self.drawing.polygon([self._at(point) for point in points], fill=_fill(colour))

    def _oval(self, x: float, y: float, width: float, height: float, colour: Sequence[float]) -> None:
        self._polygon([(x + width * c, y + height * s) for c, s in _CIRCLE], colour)

    def _line(self, points: Sequence[Point], radius: float, colour: Sequence[float]) -> None:
        """Draw a line with round ends and joints."""
        r = radius * self.zoom * self.side / 2
        pixels, fill = [self._at(point) for point in points], _fill(colour)
        self.drawing.line(pixels, fill=fill, width=max(1, round(2 * r)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.drawing.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _background(random: Random, tone: Hue | None, saturation: tuple[float, float], value: tuple[float, float]) -> Hue:
    """Return red, green and blue of a tone, a little varied, or of any with its saturation and value in bounds."""
    if tone is None:
        return colorsys.hsv_to_rgb(random.random(), random.uniform(*saturation), random.uniform(*value))
    bright = min(1.0, tone[2] * random.uniform(0.95, 1.03))
    return colorsys.hsv_to_rgb((tone[0] + random.uniform(-0.02, 0.02)) % 1, tone[1], bright)


def _shaded(hue: float, saturation: float, value: float) -> Colour:
    return _colour(*colorsys.hsv_to_rgb(hue % 1, saturation, min(value, 1.0)))


def _colour(red: float, green: float, blue: float) -> Colour:
    return round(red * 255), round(green * 255), round(blue * 255)


def _fill(colour: Sequence[float]) -> Colour:
    """Return a colour in 8 bits, which are whole numbers, or floats in [0, 1]."""
    red, green, blue = colour
    return _colour(red, green, blue) if isinstance(red, float) else (int(red), int(green), int(blue))


class DrawnCreatures:
    """Renderer of drawn species in the place of a text-to-image model, with the interface of an image generator.

    It draws the attributes that the prompt names by their phrases, within its limits; those that it fails to draw
    become something else, as with generators. It knows the attributes of known species by their names; a novel species
    means nothing to it, or its known relative. All that neither the phrases nor the name say is random.

    Args:
        miss: Chance that an attribute of the prompt is not obeyed, in [0, 1].
        concepts: File ``concepts.jsonl`` of drawn species, for the names in it; ``None`` knows none.
        capacity: Most attributes of a prompt that it obeys, the first ones; ``None`` sets no limit.
        undrawable: Share of all values of attributes that it cannot draw, in [0, 1].
        relatives: Whether it takes a novel species for its known relative.
        likeness: Chance that an attribute which the prompt does not set is that of the species it names, in [0, 1].
        habitats: Whether creatures stand in any of the habitats, or before a plain background.
        world_seed: Seed of what it cannot draw.

    Raises:
        ValueError: If an argument is out of its range, or the file is none of drawn species.
        FileNotFoundError: If there is no such file.

    Example:
        >>> picture = DrawnCreatures().generate("a Velanip with two horns", None, 0, 64, 64, 1, 0.0)
        >>> picture.size
        (64, 64)
    """

    def __init__(
        self,
        miss: float = 0.05,
        concepts: str | None = None,
        capacity: int | None = None,
        undrawable: float = 0.0,
        relatives: bool = False,
        likeness: float = 1.0,
        habitats: bool = False,
        world_seed: int = 0,
    ) -> None:
        for name, share in (("miss", miss), ("undrawable", undrawable), ("likeness", likeness)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}.")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1 or None, got {capacity}.")
        self.miss, self.capacity, self.likeness, self.habitats = miss, capacity, likeness, habitats
        self.known = {} if concepts is None else _known_attributes(Path(concepts))
        self.relatives = _relatives(Path(concepts)) if concepts is not None and relatives else {}
        random = Random(f"{world_seed}/undrawable")
        values = [(name, value) for name, options in ATTRIBUTES.items() for value in options]
        self.undrawable = frozenset(value for value in values if random.random() < undrawable)

    @property
    def identity(self) -> str:
        """Name of the renderer with its settings."""
        limits = [f"miss {self.miss}", f"capacity {self.capacity}", f"likeness {self.likeness}"]
        limits += [f"{len(self.relatives)} relatives", f"habitats {self.habitats}"]
        limits.append(f"cannot draw {', '.join(sorted(PHRASES[name][value] for name, value in self.undrawable))}")
        names = ", ".join(sorted(self.known)) or "none"
        return f"renderer of drawn species (a stand-in for a generator), {'; '.join(limits)}; knows {names}"

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        """Draw a picture; the same prompt and seed give the same one.

        Args:
            prompt: Text with phrases of attributes.
            negative: Not obeyed.
            seed: Seed of what is missed, and of all that the prompt does not say.
            width: Side of the picture in pixels, at least 16.
            height: The same, as pictures are square.
            steps: Not needed.
            guidance: Not needed.

        Raises:
            ValueError: If width and height differ.
        """
        if width != height:
            raise ValueError(f"Drawn creatures are square: width and height must be equal, got {width} and {height}.")
        names = (self.relatives.get(word, word) for word in re.findall(r"\w+", prompt))
        named = next((name for name in names if name in self.known), None)
        wanted = dict(list(attributes_in(prompt).items())[: self.capacity])
        random = Random(f"{seed}/missed")
        for name, value in wanted.items():
            if random.random() < self.miss or (name, value) in self.undrawable:
                wanted[name] = random.choice([other for other in ATTRIBUTES[name] if other != value])
        look = {} if named is None else self.known[named]
        like = {name: value for name, value in look.items() if random.random() < self.likeness}
        habitat = random.choice(list(HABITATS)) if self.habitats else None
        return draw({**like, **wanted}, seed, width, habitat)


def _known_attributes(path: Path) -> dict[str, dict[str, str]]:
    """Return the attributes of the known species of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; DrawnSpecies writes it in `prepare_data`.")
    try:
        known = {row["name"]: dict(row["attributes"]) for _, row in read_json_lines(path) if row["known"]}
        for attributes in known.values():
            check_attributes(attributes)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no concepts.jsonl of drawn species: {error}") from error
    return known


def _relatives(path: Path) -> dict[str, str]:
    """Return the known relative of each novel species of a file."""
    return {row["name"]: row["confusable"] for _, row in read_json_lines(path) if not row["known"]}
