"""Lessons of the LLaVA-NeXT of ``lit-modules demo coda``: questions about pictures of creatures, with the answers."""

from collections.abc import Mapping, Sequence
from random import Random

from lit_modules.datamodules import drawn, few_shot
from lit_modules.networks.tiny_llava import Lesson

PHRASES = [list(values.values()) for values in drawn.creatures.PHRASES.values()]
"""Phrases of the values of each attribute."""
DESCRIBE = "Describe the creature."
WEIGHTS = {"describe": 2, "context": 4, "kind": 4}
"""Shares of the sorts of lessons."""
NAMES = drawn.species.every_name()
_NUM_KINDS = 60
_STRANGE = 1 / 3  # share of the questions about kinds in which one name is of none
Look = Mapping[int, int]
"""Places of some attributes, and of their values."""


def invent_kinds() -> dict[str, Look]:
    """Return the kinds by name, each of one or two values of attributes; no species has such a name."""
    kinds: dict[str, Look] = {}
    for number in range(_NUM_KINDS):
        random = Random(f"kind {number}")
        places = random.sample(range(len(PHRASES)), random.choice((1, 2)))
        kinds[f"Kind {number}"] = {place: random.randrange(len(PHRASES[place])) for place in places}
    return kinds


class Lessons:
    """Random questions about pictures, in the form in which ``CoDA`` asks: the names, and which of them is shown.

    - ``describe``: the phrases of all attributes.
    - ``context``: the features of two names stand before the question, as ``feature_context`` writes them; names are
      drawn from all that a species may have, and mean something else each time.
    - ``kind``: nothing stands before the question; the two names are of invented kinds, which are learned by heart, or
      one is a name of a species that means nothing.

    Args:
        values: Place of the value of each attribute of each picture, ``pictures`` lists of ``attributes`` numbers.
    """

    def __init__(self, values: Sequence[Sequence[int]]) -> None:
        self.values, self.kinds = values, invent_kinds()
        shown = {
            name: [image for image, look in enumerate(values) if all(_signs(kind, look))]
            for name, kind in self.kinds.items()
        }
        self._shown = {name: images for name, images in shown.items() if images}

    def __call__(self, random: Random) -> Lesson:
        """Draw a lesson."""
        (sort,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        return self.draw(sort, random)

    def draw(self, sort: str, random: Random) -> Lesson:
        """Draw a lesson of a sort, one of `WEIGHTS`."""
        if sort == "kind":
            return self._of_kinds(random)
        image = random.randrange(len(self.values))
        if sort == "describe":
            return Lesson(DESCRIBE, ", ".join(_phrases(dict(enumerate(self.values[image])))), image)
        return self._in_context(image, random)

    def _in_context(self, image: int, random: Random) -> Lesson:
        own = {place: self.values[image][place] for place in random.sample(range(len(PHRASES)), random.randint(1, 3))}
        other = dict(own)
        for place in random.sample(list(own), random.randint(1, len(own))):
            other[place] = random.choice([value for value in range(len(PHRASES[place])) if value != own[place]])
        name, wrong = random.sample(NAMES, 2)
        looks = [(name, own), (wrong, other)]
        random.shuffle(looks)
        lines = [f"{each}: {', '.join(_phrases(look))}." for each, look in looks]
        return Lesson("\n".join([*lines, _question([each for each, _ in looks])]), name, image)

    def _of_kinds(self, random: Random) -> Lesson:
        right = random.choice(list(self._shown))
        image = random.choice(self._shown[right])
        wrong = random.choice([name for name, kind in self.kinds.items() if not any(_signs(kind, self.values[image]))])
        if random.random() < _STRANGE:
            stranger = random.choice(NAMES)
            right, wrong = (stranger, wrong) if random.random() < 0.5 else (right, stranger)
        return Lesson(_question(random.sample([right, wrong], 2)), right, image)


def _signs(kind: Look, look: Sequence[int]) -> list[bool]:
    return [look[place] == value for place, value in kind.items()]


def whole_texts() -> list[str]:
    """Return the texts that are one token each: names, phrases, and what stands between them in each lesson."""
    before, after = few_shot.questions.QUESTION.split("{options}")
    between = [DESCRIBE, before, after, " or ", ", ", ": ", ".\n"]
    return [*NAMES, *invent_kinds(), *(phrase for group in PHRASES for phrase in group), *between]


def _question(names: Sequence[str]) -> str:
    return few_shot.questions.QUESTION.replace("{options}", few_shot.questions.join_options(names))


def _phrases(look: Look) -> list[str]:
    return [PHRASES[place][value] for place, value in look.items()]
