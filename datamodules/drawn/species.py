"""Drawn species: creatures made from a seed, to teach new concepts offline."""

from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from ..few_shot.few_shot import FewShotPairs
from ..few_shot.samples import Method
from ..few_shot.sets import OFFICIAL_EVALUATION_QUESTION, QUESTION, Mix
from .species_files import Species, caption, invent_species, write_species
from .species_renderer import ATTRIBUTES, PHRASES, draw, random_attributes, render_creatures


class DrawnSpecies(FewShotPairs):
    """Drawn creatures: known species, and novel ones that differ from a known one in one or two attributes.

    A creature has 12 attributes, all visible: body, colour, pattern, belly, horns, ears, eyes, mouth, back, wings, legs
    and tail; :data:`~datamodules.drawn.species_renderer.PHRASES` lists their values and what texts call them. Pose,
    place, size, light and background vary from picture to picture. Everything is a function of ``world_seed``.
    ``prepare_data`` writes the pictures as files in the canonical layout, with captions and attributes, and the
    few-shot reader reads them as it reads photographs; the manifest says what a folder was drawn with.

    Batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`, of pairs of a novel species and its
    known one. ``retention.json`` in ``root`` lists pairs of other known species.

    Args:
        root: Folder to write to and to read; ``None`` takes ``data/drawn_species``.
        num_known: Known species.
        num_novel: Novel species.
        train_images: Training pictures of each species.
        validation_images: Validation pictures of each species.
        test_images: Test pictures of each species.
        drawn_size: Side of the drawn pictures in pixels, at least 16.
        world_seed: Seed of species and pictures.
        pairs: Pair file, such as that of pairs that a model confuses; ``None`` takes the novel species and those that
            they resemble.
        n_real: Real training pictures of each concept.
        n_synthetic: Further training pictures of each concept.
        method: What the further pictures are.
        synthetic_root: Store of the augmentation stages, or a folder of pictures.
        synthetic_kind: Kind of synthetic pictures to read.
        n_source: Real pictures that crops and flips are made of.
        sampling: How further pictures are drawn.
        synthetic_probability: Chance of a further picture with ``sampling="probability"``.
        n_query: Most pictures of each concept to ask about.
        n_validation: Training pictures of each concept that validation asks about; ``None`` takes the validation's.
        n_orders: Orders of the options in which each query is asked.
        n_way: Options of a query.
        pair: ``pair_id`` of the one pair to take; ``None`` takes all.
        replay_pairs: Pair file of known species to rehearse.
        replay_ratio: Rehearsed samples as a share of the others.
        retention_pairs: Pair file of known species that are asked about alone.
        preset: ``default`` or ``official``.
        question: Question, with the place ``{options}``.
        eval_question: Question of validation and test; ``None`` takes ``question``.
        features: File of attributes.
        feature_context: Whether attributes stand before each question of validation and test.
        n_context: Supports of each option that come with each question of validation and test, as examples.
        image_size: Side of the pictures as one tensor, for classifiers.
        mix: ``cutmix`` or ``mixup`` mixes training pictures, for classifiers.
        batch_size: Samples in a training batch, on each device.
        eval_batch_size: Questions in a batch of validation and test, on each device.
        seed: Seed of supports, crops, flips and orders.
        query_seed: Seed of the choice and of the orders of queries.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` holds anything else.

    Example:
        >>> import tempfile
        >>> data = DrawnSpecies(tempfile.mkdtemp(), num_known=4, num_novel=2, train_images=5, test_images=2)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"][0].size, len(batch["prompt"]), batch["label"].shape
        ((64, 64), 5, torch.Size([5]))
    """

    home = "data/drawn_species"
    kind = "animal"
    attributes: ClassVar[Mapping[str, tuple[str, ...]]] = ATTRIBUTES

    def __init__(
        self,
        root: str | None = None,
        num_known: int = 24,
        num_novel: int = 6,
        train_images: int = 20,
        validation_images: int = 10,
        test_images: int = 15,
        drawn_size: int = 64,
        world_seed: int = 0,
        pairs: str | None = None,
        n_real: int = 5,
        n_synthetic: int = 0,
        method: Method = "real",
        synthetic_root: str | None = None,
        synthetic_kind: str | None = None,
        n_source: int | None = None,
        sampling: Literal["fixed", "probability"] = "fixed",
        synthetic_probability: float = 0.5,
        n_query: int | None = None,
        n_validation: int | None = None,
        n_orders: int = 2,
        n_way: int = 2,
        pair: str | None = None,
        replay_pairs: str | None = None,
        replay_ratio: float = 0.0,
        retention_pairs: str | None = None,
        preset: Literal["default", "official"] = "default",
        question: str = QUESTION,
        eval_question: str | None = None,
        features: str | None = None,
        feature_context: bool = False,
        n_context: int = 0,
        image_size: int | None = None,
        mix: Mix = "none",
        batch_size: int = 5,
        eval_batch_size: int = 16,
        seed: int = 0,
        query_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        least = {"num_novel": (num_novel, 1), "train_images": (train_images, 1), "drawn_size": (drawn_size, 16)}
        least |= {"validation_images": (validation_images, 1), "test_images": (test_images, 1)}
        for name, (number, bound) in least.items():
            if number < bound:
                raise ValueError(f"{name} must be at least {bound}, got {number}.")
        self.species: list[Species] = invent_species(num_known, num_novel, world_seed)
        super().__init__(
            root=root,
            pairs=pairs,
            n_real=n_real,
            n_synthetic=n_synthetic,
            method=method,
            synthetic_root=synthetic_root,
            synthetic_kind=synthetic_kind,
            n_source=n_source,
            sampling=sampling,
            synthetic_probability=synthetic_probability,
            n_query=n_query,
            n_validation=n_validation,
            n_orders=n_orders,
            n_way=n_way,
            pair=pair,
            replay_pairs=replay_pairs,
            replay_ratio=replay_ratio,
            retention_pairs=retention_pairs,
            preset=preset,
            question=question,
            eval_question=eval_question,
            features=features,
            feature_context=feature_context,
            n_context=n_context,
            image_size=image_size,
            mix=mix,
            # creatures of two species that differ in a detail may look nearly alike
            near_duplicates=False,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            query_seed=query_seed,
            num_workers=num_workers,
        )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words of names, attributes, captions and questions, sorted; without punctuation."""
        texts = [phrase for values in PHRASES.values() for phrase in values.values()]
        texts += [kind.name for kind in self.species] + ["A has and or no"]
        given = self.hparams
        texts += [given["question"], given["eval_question"] or "", OFFICIAL_EVALUATION_QUESTION]
        words = {word.strip(".,:;?!") for text in texts for word in text.replace("{options}", " ").split()}
        return tuple(sorted(words - {""}))

    @staticmethod
    def draw(attributes: Mapping[str, str], seed: int | str = 0, size: int = 64) -> Image.Image:
        """Draw a creature with some attributes, see :func:`~datamodules.drawn.species_renderer.draw`."""
        return draw(attributes, seed, size)

    def prepare_data(self) -> None:
        """Draw the pictures and write them, unless they are there."""
        given = self.hparams
        images = {split: given[f"{split}_images"] for split in ("train", "validation", "test")}
        write_species(self.root, self.species, images, given["drawn_size"], given["world_seed"])

    def known_drawings(self, num_images: int, image_size: int = 64, seed: int = 0) -> dict[str, Any]:
        """Draw known species and other creatures with captions, to train the models on that are to be taught.

        Half of the creatures are of known species and named in the caption. The others are called ``creature``: a
        fourth resemble a known species but for one to three attributes, and a fourth have attributes at random. None
        has all attributes of a novel species, and none is in the files.

        Args:
            num_images: Number of pictures.
            image_size: Side in pixels.
            seed: Seed.

        Returns:
            ``image`` (uint8, ``(n, 3, size, size)``), ``prompt`` (captions with three attributes), ``name``,
            ``parent`` (the known species that a creature without a name resembles, else ``None``) and ``attributes``
            (lists), and ``values`` (place of each attribute's value, int64, ``(n, attributes)``).

        Raises:
            ValueError: If ``num_images`` is below 1.
        """
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}.")
        known = [kind for kind in self.species if kind.known]
        novel = [kind.attributes for kind in self.species if not kind.known]
        looks: list[Mapping[str, str]] = []
        names, parents, prompts = [], [], []
        for place in range(num_images):
            random, sort = Random(f"{seed}/lessons/{place}"), place % 4
            kind = known[place // 4 % len(known)]
            look = dict(kind.attributes)
            while sort > 1 and (look == kind.attributes or look in novel):
                look = random_attributes(random)
                if sort == 2:
                    changed = random.sample(list(look), random.choice((1, 1, 2, 2, 3)))
                    look = {**kind.attributes, **{attribute: look[attribute] for attribute in changed}}
            looks.append(look)
            names.append(kind.name if sort < 2 else "creature")
            parents.append(kind.name if sort == 2 else None)
            told = sorted(random.sample(list(ATTRIBUTES), 3))
            prompts.append(caption(names[-1], {attribute: look[attribute] for attribute in told}))
        keys = [f"{seed}/lessons/{place}/drawn" for place in range(num_images)]
        return {
            "image": torch.from_numpy(render_creatures(looks, keys, image_size)),
            "prompt": prompts,
            "name": names,
            "parent": parents,
            "attributes": looks,
            "values": values_of(looks),
        }


def values_of(looks: list[Mapping[str, str]]) -> Tensor:
    """Return the place of the value of each attribute, int64, ``(creatures, attributes)``."""
    return torch.tensor([[ATTRIBUTES[name].index(look[name]) for name in ATTRIBUTES] for look in looks])
