"""The renderer of drawn species in the place of a text-to-image model."""

import json
import re
from pathlib import Path
from random import Random

from PIL import Image

from .species_renderer import ATTRIBUTES, attributes_in, check_attributes, draw


class DrawnCreatures:
    """Draw the creature that a prompt describes: a stand-in for a generator, not a model.

    It has the interface that `lit-modules coda` asks of generators. It obeys the attributes that the prompt names by
    their phrases, but for the share ``miss`` of them, which it draws as something else, as generators do; all that the
    prompt does not name is random. It knows the looks of known species by their names, and nothing of novel ones.

    Args:
        miss: Chance that an attribute of the prompt is not obeyed, in [0, 1].
        concepts: File ``concepts.jsonl`` of drawn species, for the known ones in it; ``None`` knows none.

    Raises:
        ValueError: If ``miss`` is out of its range, or the file is none of drawn species.
        FileNotFoundError: If there is no such file.

    Example:
        >>> picture = DrawnCreatures().generate("a Velanip with two horns", None, 0, 64, 64, 1, 0.0)
        >>> picture.size
        (64, 64)
    """

    def __init__(self, miss: float = 0.05, concepts: str | None = None) -> None:
        if not 0 <= miss <= 1:
            raise ValueError(f"miss must lie in [0, 1], got {miss}.")
        self.miss = miss
        self.looks = {} if concepts is None else _known_looks(Path(concepts))

    @property
    def identity(self) -> str:
        """What draws."""
        names = ", ".join(sorted(self.looks)) or "none"
        return f"renderer of drawn species (a stand-in for a generator), miss {self.miss}, knows {names}"

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
        named = next((name for name in re.findall(r"\w+", prompt) if name in self.looks), None)
        wanted = attributes_in(prompt)
        random = Random(f"{seed}/missed")
        for name, value in wanted.items():
            if random.random() < self.miss:
                wanted[name] = random.choice([other for other in ATTRIBUTES[name] if other != value])
        return draw({**(self.looks[named] if named else {}), **wanted}, seed, width)


def _known_looks(path: Path) -> dict[str, dict[str, str]]:
    """Return the attributes of the known species of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; DrawnSpecies writes it in `prepare_data`.")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {row["name"]: dict(row["attributes"]) for row in rows if row["known"]}
        for look in found.values():
            check_attributes(look)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no concepts.jsonl of drawn species: {error}") from error
    return found
