"""Questions about one picture each: those a model is updated on and those it is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lit_modules.utils.random_state import preserved_random_state

from .images import Picture
from .layouts import Concept
from .pairs import Features, plain_name
from .selection import Sample

QUESTION = (
    "You are an expert in telling categories apart by their looks. The picture shows one of these categories: "
    "{options}. Answer with the name of that category, and nothing else."
)
OFFICIAL_EVALUATION_QUESTION = "Does the picture show {options}? Answer with exactly one of these options."
Mix = Literal["none", "cutmix", "mixup"]


def join_options(names: Sequence[str]) -> str:
    """Return names in one line, with ``or`` before the last.

    Example:
        >>> join_options(["Adder", "Puff Adder", "Mole"])
        'Adder, Puff Adder or Mole'
    """
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class QuestionForm:
    """Form of questions, which makes batches of samples.

    Args:
        question: Text with the place ``{options}``.
        concepts: Concepts by key, in the order of the labels.
        capitalize: Whether names have a large first letter and small ones else, as in the official code.
        features: Attributes of one concept that another lacks.
        feature_context: Whether attributes stand before the question.
        image_size: Side of the pictures as one tensor; ``None`` gives a list of PIL pictures.
        max_pixels: Most pixels of a picture.
    """

    question: str
    concepts: dict[str, Concept]
    capitalize: bool
    features: Features
    feature_context: bool
    image_size: int | None
    max_pixels: int

    def shown(self, name: str) -> str:
        """Return a name as it is shown."""
        return name.capitalize() if self.capitalize else name

    def batch(self, samples: Sequence[Sample], options: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the batch of samples, each with the keys of its options in the order in which they are named."""
        images = [sample.load(self.max_pixels) for sample in samples]
        labels = {key: label for label, key in enumerate(self.concepts)}
        rows = [self._row(sample, keys) for sample, keys in zip(samples, options, strict=True)]
        return {
            "image": images if self.image_size is None else _stack(images, self.image_size),
            "label": torch.tensor([labels[sample.concept.key] for sample in samples]),
            **{name: [row[name] for row in rows] for name in rows[0]},
            "option_label": torch.tensor([[labels[key] for key in keys] for keys in options]),
            "answer_option": torch.tensor([row["answer_option"] for row in rows]),
        }

    def _row(self, sample: Sample, keys: Sequence[str]) -> dict[str, Any]:
        concept = sample.concept
        names = tuple(self.shown(self.concepts[key].name) for key in keys)
        features = tuple(self._features(sample, key) for key in keys)
        prompt = self.question.replace("{options}", join_options(names))
        if self.feature_context:
            lines = [f"{name}: {', '.join(texts)}." for name, texts in zip(names, features, strict=True) if texts]
            prompt = "\n".join([*lines, prompt])
        return {
            "prompt": prompt,
            "answer": self.shown(concept.name),
            "answer_option": list(keys).index(concept.key),
            "options": names,
            "aliases": tuple(self.concepts[key].aliases for key in keys),
            "features": features,
            "pair_id": sample.pair.pair_id,
            "role": sample.role,
            "origin": sample.origin,
            "part": sample.part,
            "path": sample.picture.name,
            "supercategory": concept.supercategory or "",
        }

    def _features(self, sample: Sample, key: str) -> tuple[str, ...]:
        names = {concept.key: plain_name(concept.name) for _, concept in sample.pair.sides}
        if key not in names:
            return ()
        (other,) = (name for own, name in names.items() if own != key)
        return self.features.get((names[key], other), ())


class UpdateSet(Dataset[dict[str, Any]]):
    """Samples to update on; an index is a tuple of places, each perhaps with a number that seeds its random choices.

    Args:
        samples: Samples.
        form: Form of the questions.
        seed: Seed.
        replacements: Synthetic samples of each sample, one of which may stand in for it.
        probability: Chance of that.
        mix: Mixing of the pictures of a batch.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        form: QuestionForm,
        seed: int,
        *,
        replacements: Sequence[Sequence[Sample]] | None = None,
        probability: float = 0.0,
        mix: Mix = "none",
    ) -> None:
        self.samples, self.form, self.seed = list(samples), form, seed
        self.replacements, self.probability, self.mix = replacements, probability, mix

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, indices: int | Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some places, or of one."""
        items = [(i, 0) if isinstance(i, int) else i for i in ([indices] if isinstance(indices, int) else indices)]
        samples, options = [], []
        for place, draw in items:
            random, sample = Random(f"{self.seed}/{place}/{draw}/options"), self.samples[place]
            if self.replacements is not None and random.random() < self.probability:
                sample = random.choice(self.replacements[place])
            keys = [concept.key for _, concept in sample.pair.sides]
            random.shuffle(keys)
            samples.append(sample)
            options.append(keys)
        batch = self.form.batch(samples, options)
        batch["index"] = torch.tensor([place for place, _ in items])
        if self.mix != "none":
            random, images, labels = Random(f"{self.seed}/{items}/mix"), batch["image"], batch["label"]
            batch["image"], batch["label_weights"] = mixed(
                images, labels, len(self.form.concepts), mix=self.mix, random=random
            )
        return batch


class QuerySet(Dataset[dict[str, Any]]):
    """Samples to ask about, each in several orders of its options; place ``n`` is order ``n % orders`` of a sample.

    Args:
        samples: Samples.
        options: Keys of the options of each sample.
        form: Form of the questions.
        orders: Orders; the first is drawn, the second is the first reversed, and so on.
        seed: Seed.
        examples: Pictures of each concept, by key, that questions come with.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        options: Sequence[Sequence[str]],
        form: QuestionForm,
        *,
        orders: int,
        seed: int,
        examples: Mapping[str, Sequence[Picture]],
    ) -> None:
        self.samples, self.options, self.form = list(samples), list(options), form
        self.orders, self.seed, self.examples = orders, seed, examples
        self._opened: dict[Picture, Image.Image] = {}

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.samples) * self.orders

    def __getitem__(self, indices: int | Sequence[int]) -> dict[str, Any]:
        """Return the batch of some places, or of one."""
        places = [indices] if isinstance(indices, int) else list(indices)
        items = [divmod(place, self.orders) for place in places]
        samples = [self.samples[query] for query, _ in items]
        batch = self.form.batch(samples, [self._options(query, order) for query, order in items])
        batch["index"] = torch.tensor(places)
        batch["query"] = torch.tensor([query for query, _ in items])
        batch["order"] = torch.tensor([order for _, order in items])
        if self.examples:
            batch["context"] = [self._context(query) for query, _ in items]
        return batch

    def _options(self, query: int, order: int) -> list[str]:
        sample, keys = self.samples[query], list(self.options[query])
        Random(f"{self.seed}/{sample.pair.pair_id}/{sample.picture.name}/{order // 2}").shuffle(keys)
        return keys[::-1] if order % 2 else keys

    def _context(self, query: int) -> tuple[tuple[Image.Image, str], ...]:
        """Return the examples of a query: pictures of its options with their names, the same for all orders."""
        sample, form = self.samples[query], self.form
        shown = [(picture, key) for key in sorted(self.options[query]) for picture in self.examples[key]]
        Random(f"{self.seed}/{sample.pair.pair_id}/{sample.picture.name}/examples").shuffle(shown)
        # questions of one pair follow each other
        self._opened = {picture: self._opened.get(picture) or picture.load(form.max_pixels) for picture, _ in shown}
        return tuple((self._opened[picture], form.shown(form.concepts[key].name)) for picture, key in shown)


def mixed(
    images: Tensor, labels: Tensor, num_classes: int, *, mix: Mix, random: Random, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mix each picture of a batch with its neighbour, and its label likewise, as torchvision does.

    ``mixup`` blends whole pictures, ``cutmix`` pastes a window of one into the other; the share is drawn from a beta
    distribution with both parameters ``alpha``.

    Returns:
        The pictures ``(batch, channel, height, width)``, and the weight of each class, ``(batch, num_classes)``.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
        arXiv 1905.04899.
    """
    from torchvision.transforms import v2  # takes a second to import, and only classifiers need it

    transform = v2.CutMix if mix == "cutmix" else v2.MixUp
    with preserved_random_state(seed=random.getrandbits(63)):
        images, weights = transform(num_classes=num_classes, alpha=alpha)(images, labels)
    return images, weights


def _stack(images: Sequence[Image.Image], size: int) -> Tensor:
    arrays = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255
