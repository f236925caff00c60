"""Lessons from which the tiny model of ``lit-modules demo coda`` learns, before it is taught anything new."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image
from torch import Tensor

from lit_modules.coda.augmentation.confusable_pairs import options_question
from lit_modules.coda.augmentation.features import FeatureKind, feature_request
from lit_modules.coda.core.concepts import Concept
from lit_modules.datamodules import drawn, few_shot
from lit_modules.networks.tiny_llava import Lesson

_BLANK = Image.new("RGB", (16, 16))
_TALKS = {"name": 3, "name_many": 2, "list": 2, "tell": 5, "recall": 2, "compare": 3}
"""Weights of the kinds of lessons."""
_MOST_OPTIONS = 20
_STRANGE = 0.25  # share of questions for a name that show a creature like no known one
TOLD = 8
"""Attributes in a passage of a field guide."""


@dataclass
class World:
    """Pictures of known species, of creatures without a name, and of near relatives of known ones.

    Args:
        images: uint8, ``(n, 3, size, size)``.
        creatures: Attributes of the creature on each picture.
        names: Name of each one's species; ``None`` if it has none.
        parents: Known species that each resembles, or ``None``.
        values: Index of the value of each attribute, int64, ``(n, attributes)``.
        species: Attributes of each known species.
        strangers: Names that no species has.
        phrases: Phrases of the values of each attribute.
        question: Question which of some categories a picture shows, with the place ``{options}``.
    """

    images: Tensor
    creatures: list[Mapping[str, str]]
    names: list[str | None]
    parents: list[str | None]
    values: Tensor
    species: dict[str, Mapping[str, str]]
    strangers: list[str]
    phrases: dict[str, dict[str, str]]
    question: str


def draw_world(data: Any, num_images: int, image_size: int, *, seed: int) -> World:
    """Draw the training data of the models, see :meth:`datamodules.DrawnSpecies.known_drawings`.

    Args:
        data: The drawn species; none of the novel ones is drawn.
        num_images: Number of pictures.
        image_size: Side in pixels.
        seed: Seed.
    """
    drawings = data.known_drawings(num_images, image_size, seed)
    known = {species.name: species.attributes for species in data.species if species.known}
    names = {species.name for species in data.species}
    return World(
        images=drawings["image"],
        creatures=drawings["attributes"],
        names=[name if name in known else None for name in drawings["name"]],
        parents=drawings["parent"],
        values=drawings["values"],
        species=known,
        strangers=[name for name in drawn.species.every_name() if name not in names],
        phrases=drawn.creatures.PHRASES,
        question=data.hparams["question"],
    )


class Lessons:
    """Random questions of all kinds that the stages and the update will ask, with the right answers.

    An unknown name is the right answer to the question for a name if the creature is like none that is known, but never
    for a relative of a known one. Lists of features of unknown creatures have what is seen, or what a passage says of
    them, and ``["unknown"]`` if there is neither.

    Args:
        world: The world.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.named = [index for index, name in enumerate(world.names) if name is not None]
        self.unnamed = [index for index, name in enumerate(world.names) if name is None]
        self.alone = [index for index in self.unnamed if world.parents[index] is None]

    def __call__(self, random: Random) -> Lesson:
        """Draw a lesson."""
        (kind,) = random.choices(list(_TALKS), list(_TALKS.values()))
        lesson: Lesson = getattr(self, f"_{kind}")(random)
        return lesson

    def texts(self, number: int = 3000) -> list[str]:
        """Return questions and answers for a tokenizer to learn from."""
        random = Random(0)
        return [text for _ in range(number) for lesson in [self(random)] for text in (lesson.question, lesson.answer)]

    def fixed_texts(self) -> list[str]:
        """Return the phrases of attributes, and the parts of questions that are always the same."""
        first, second = "Aaaa", "Bbbb"
        bare = [Concept(first), Concept(second)]
        described = [Concept(name, knowledge_text=first) for name in (first, second)]
        kinds: list[FeatureKind] = ["textual_plain", "textual_contrastive", "visual_plain", "visual_contrastive"]
        questions = [self.world.question.replace("{options}", first), options_question([first, second])]
        questions += [_features(kind, *both) for kind in kinds for both in (described, bare)]
        parts = []
        for text in questions:
            parts += [part for part in text.replace(second, first).split(first) if len(part) > 12]
        return [phrase for values in self.world.phrases.values() for phrase in values.values()] + parts

    def _stranger(self, random: Random) -> str:
        return random.choice(self.world.strangers)

    def _options(self, random: Random, name: str, number: int) -> list[str]:
        others = random.sample([other for other in self.world.species if other != name], number - 1)
        if name in self.world.species and random.random() < 0.5:
            others[-1] = self._stranger(random)
        options = [name, *others]
        random.shuffle(options)
        return options

    def _shown(self, random: Random) -> tuple[int, str]:
        """Return a picture of a known species, or of a creature that is like none, with its name."""
        if random.random() < _STRANGE:
            return random.choice(self.alone), self._stranger(random)
        index = random.choice(self.named)
        return index, str(self.world.names[index])

    def _name(self, random: Random) -> Lesson:
        index, name = self._shown(random)
        listed = few_shot.questions.join_options(self._options(random, name, 2))
        return Lesson(self.world.question.replace("{options}", listed), name, index)

    def _name_many(self, random: Random) -> Lesson:
        index, name = self._shown(random)
        number = random.randint(2, min(_MOST_OPTIONS, len(self.world.species)))
        return Lesson(options_question(self._options(random, name, number)), name, index)

    def _list(self, random: Random) -> Lesson:
        index = random.randrange(len(self.world.creatures))
        name = self.world.names[index] or self._stranger(random)
        question = _features("visual_plain", Concept(name), Concept("Bbbb"))
        return Lesson(question, self._listed(self.world.creatures[index]), index)

    def _tell(self, random: Random) -> Lesson:
        index = random.choice(self.unnamed if random.random() < 0.65 else self.named)
        attributes, name = self.world.creatures[index], self.world.names[index] or self._stranger(random)
        other = self.world.parents[index]
        if other is None or random.random() < 0.2:
            other = random.choice([one for one in self.world.species if one != name])
        if random.random() < 0.2:  # nothing is known of the other one, so all may tell them apart
            other = self._stranger(random)
        question = _features("visual_contrastive", Concept(name), Concept(other))
        return Lesson(question, self._listed(attributes, self.world.species.get(other)), index)

    def _recall(self, random: Random) -> Lesson:
        concept, attributes = self._described(random)
        return Lesson(_features("textual_plain", concept, Concept("Bbbb")), self._listed(attributes))

    def _compare(self, random: Random) -> Lesson:
        (concept, attributes), (other, known) = self._described(random), self._described(random)
        while other.name == concept.name:
            other, known = self._described(random)
        named = (
            {name: value for name, value in attributes.items() if name in known} if other.knowledge_text else attributes
        )
        return Lesson(_features("textual_contrastive", concept, other), self._listed(named, known))

    def _described(self, random: Random) -> tuple[Concept, Mapping[str, str]]:
        """Return a known species, or an unknown one with a passage on it or without, and what a text tells of it."""
        chance = random.random()
        name = random.choice(list(self.world.species))
        if chance < 0.5:
            return Concept(name), self.world.species[name]
        stranger = self._stranger(random)
        if chance < 0.6:
            return Concept(stranger, known=False), {}
        attributes = self.world.creatures[random.choice(self.unnamed)]
        named = dict(
            sorted(random.sample(sorted(attributes.items()), TOLD), key=lambda item: list(attributes).index(item[0]))
        )
        return Concept(stranger, knowledge_text=drawn.species.caption(stranger, named), known=False), named

    def _listed(self, attributes: Mapping[str, str], other: Mapping[str, str] | None = None) -> str:
        words = [
            self.world.phrases[name][value]
            for name, value in attributes.items()
            if not other or other.get(name) != value
        ]
        return json.dumps(words or ["unknown"])


def _features(kind: FeatureKind, concept: Concept, other: Concept) -> str:
    request: Any = feature_request(kind, concept, other, _BLANK)
    return str(request.messages[0]["content"][-1]["text"])
