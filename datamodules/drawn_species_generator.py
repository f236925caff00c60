"""The renderer of drawn species in the place of a text-to-image model."""

from random import Random

from PIL import Image

from datamodules.drawn_species_renderer import ATTRIBUTES, attributes_in, draw


class DrawnCreatures:
    """Draw the creature that a prompt describes: a stand-in for a generator, not a model.

    It has the interface that `lit-modules coda` asks of generators. It obeys the attributes that the prompt names by
    their phrases, but for the share ``miss`` of them, which it draws as something else, as generators do; all that the
    prompt does not name is random, and names of species mean nothing to it.

    Args:
        miss: Chance that an attribute of the prompt is not obeyed, in [0, 1].

    Raises:
        ValueError: If ``miss`` is out of its range.

    Example:
        >>> picture = DrawnCreatures().generate("a Velanip with two horns", None, 0, 64, 64, 1, 0.0)
        >>> picture.size
        (64, 64)
    """

    def __init__(self, miss: float = 0.05) -> None:
        if not 0 <= miss <= 1:
            raise ValueError(f"miss must lie in [0, 1], got {miss}.")
        self.miss = miss

    @property
    def identity(self) -> str:
        """What draws."""
        return f"renderer of drawn species (a stand-in for a generator), miss {self.miss}"

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
        wanted = attributes_in(prompt)
        random = Random(f"{seed}/missed")
        for name, value in wanted.items():
            if random.random() < self.miss:
                wanted[name] = random.choice([other for other in ATTRIBUTES[name] if other != value])
        return draw(wanted, seed, width)
