"""Drawn objects: pictures of everyday things and of new designs, made from a seed, to compose affordances offline."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lit_modules.utils.files import write_whole
from lit_modules.utils.json_lines import read_json_lines

from ..affordances.loaders import CHOICES, TEMPLATE, curriculum_loader, evaluation_loader, pixels
from ..affordances.sampling import Mode
from ..common.checks import check_at_least
from ..common.sampling import ResumableLoader, place_of, training_loader
from ..images.base import AugmentedSampler
from .ontology import AFFORDANCES, CONCEPTS, PARTS, SEEN_BY, known_affordances, ontology, owners
from .renderer import Design, composed_design, existing_design, random_design, render

_NAMES = tuple(CONCEPTS)


def labelled_drawings(num_images: int, image_size: int = 32, seed: int = 0) -> dict[str, Tensor]:
    """Draw pictures to train a recogniser of parts on.

    Of ten, two show an existing concept, six a random design of up to four parts, one two objects of at most two
    parts each, and one no object, but the plain background or noise.

    Args:
        num_images: Number of pictures.
        image_size: Side in pixels.
        seed: Seed.

    Returns:
        ``image`` (uint8, ``(n, 3, size, size)``), ``parts`` (which parts are shown, bool, ``(n, len(PARTS))``),
        ``single`` (whether there is exactly one object, bool, ``(n,)``) and ``concept`` (the concept's place in
        ``CONCEPTS``, -1 where there is none, int64, ``(n,)``).

    Raises:
        ValueError: If ``num_images`` is below 1 or ``image_size`` below 8.

    Example:
        >>> drawings = labelled_drawings(10)
        >>> drawings["image"].shape, int(drawings["single"].sum())
        (torch.Size([10, 3, 32, 32]), 8)
    """
    check_at_least(1, num_images=num_images)
    scenes: list[list[Design]] = []
    concepts = torch.full((num_images,), -1)
    keys = [f"{seed}/labelled/{index}" for index in range(num_images)]
    for index, key in enumerate(keys):
        random, kind = Random(key), index % 10
        if kind < 2:
            concepts[index] = concept = random.randrange(len(_NAMES))
            scenes.append([existing_design(_NAMES[concept])])
        elif kind == 8:
            scenes.append([_uncrowded(random.randint(1, 2), random) for _ in range(2)])
        elif kind == 9:
            scenes.append([])
        else:
            scenes.append([_uncrowded(random.choice((0, 1, 1, 2, 2, 2, 3, 3, 4)), random)])
    images = torch.from_numpy(render(scenes, keys, image_size))
    noisy = torch.arange(num_images) % 20 == 9
    generator = torch.Generator().manual_seed(seed)
    images[noisy] = torch.randint(0, 256, images[noisy].shape, generator=generator, dtype=torch.uint8)
    return {
        "image": images,
        "parts": torch.stack([part_mask(part for design in scene for part in design.parts) for scene in scenes]),
        "single": torch.tensor([len(scene) == 1 for scene in scenes]),
        "concept": concepts,
    }


def _uncrowded(number: int, random: Random) -> Design:
    """Return a design of some random parts, of which at most two share a place."""
    while True:
        design = random_design(random.sample(PARTS, number), random)
        if all(design.places.count(place) <= 2 for place in design.places):
            return design


def part_mask(parts: Iterable[str]) -> Tensor:
    """Return a mask of parts, bool, ``(parts,)``."""
    names = set(parts)
    return torch.tensor([part in names for part in PARTS])


class ConceptSet(Dataset[dict[str, Any]]):
    """Pictures of single existing concepts and of nameless objects with captions; for batches see `DrawnObjects`.

    Args:
        num_images: Number of pictures of concepts, which take turns.
        image_size: Side in pixels.
        key: Seed of pictures and captions.
        template: Caption of affordances, with the place ``{affordances}``.
        nameless: Number of pictures of objects of one to three random parts, which the caption lists.
        withheld: Affordances, mostly pairs, that no parts of a nameless object show together, a part each.
    """

    def __init__(
        self,
        num_images: int,
        image_size: int,
        key: str,
        template: str,
        nameless: int = 0,
        withheld: Sequence[Sequence[str]] = (),
    ) -> None:
        self.key, self.template = key, template
        self.concepts = [index % len(_NAMES) for index in range(num_images)] + [-1] * nameless
        designs = [existing_design(_NAMES[index % len(_NAMES)]) for index in range(num_images)]
        designs += [_nameless(Random(f"{key}/nameless/{index}"), withheld) for index in range(nameless)]
        self.parts = [design.parts for design in designs]
        keys = [f"{key}/{index}" for index in range(len(designs))]
        self.images = torch.from_numpy(render([[design] for design in designs], keys, image_size))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.concepts)

    def __getitem__(self, indices: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some places, each perhaps with a number that draws its caption."""
        items = _with_draws(indices)
        index = torch.tensor([place for place, _ in items])
        return {
            "prompt": [self._caption(place, Random(f"{self.key}/{place}/{draw}")) for place, draw in items],
            "image": pixels(self.images[index]),
            "concept": torch.tensor([self.concepts[place] for place, _ in items]),
            "parts": torch.stack([part_mask(self.parts[place]) for place, _ in items]),
            "index": index,
            "draw": torch.tensor([draw for _, draw in items]),
        }

    def _caption(self, place: int, random: Random) -> str:
        if self.concepts[place] < 0:
            return f"an object with {', '.join(random.sample(self.parts[place], len(self.parts[place])))}"
        return caption(_NAMES[self.concepts[place]], self.template, random)


def _nameless(random: Random, withheld: Sequence[Sequence[str]]) -> Design:
    """Return a design of one to three random parts, none of which together show withheld affordances, a part each."""
    while True:
        design = _uncrowded(random.randint(1, 3), random)
        if not any(
            all(part in SEEN_BY[name] for part, name in zip(parts, wanted, strict=True))
            for wanted in withheld
            for parts in permutations(design.parts, len(wanted))
        ):
            return design


class PairSet(Dataset[dict[str, Any]]):
    """Prompts of several affordances with new designs and existing concepts; for batches see :class:`DrawnObjects`.

    Args:
        rows: Pairs, as :func:`read_pairs` returns them.
        existing: Pictures of each concept, uint8, ``(concepts, pictures, 3, size, size)``.
        positives: Pictures of new designs for each pair.
        negatives: Pictures of existing concepts in an item.
        key: Seed of pictures and choices.
        template: Prompt, with the place ``{affordances}``.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        existing: Tensor,
        *,
        positives: int,
        negatives: int,
        key: str,
        template: str,
    ) -> None:
        self.rows, self.existing, self.negatives = list(rows), existing, negatives
        self.key, self.template = key, template
        named = [(f"{key}/{row['pair_id']}/{number}", row) for row in rows for number in range(positives)]
        scenes = [[composed_design(row["pos_prompts"], Random(f"{name}/design"))] for name, row in named]
        images = torch.from_numpy(render(scenes, [name for name, _ in named], existing.shape[-1]))
        self.images = images.reshape(len(rows), positives, *images.shape[1:])

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some places, each perhaps with a number that draws its pictures."""
        items = _with_draws(indices)
        rows = [self.rows[place] for place, _ in items]
        positive, negative, mask = [], [], []
        for (place, draw), row in zip(items, rows, strict=True):
            random = Random(f"{self.key}/{row['pair_id']}/{draw}/choice")
            positive.append(self.images[place, random.randrange(self.images.shape[1])])
            concepts = [_NAMES.index(name) for name in row["neg_prompts"]]
            pool = [(concept, number) for concept in concepts for number in range(self.existing.shape[1])]
            drawn = random.sample(pool, min(self.negatives, len(pool)))
            mask.append([number < len(drawn) for number in range(self.negatives)])
            drawn += [(0, 0)] * (self.negatives - len(drawn))
            negative.append(torch.stack([self.existing[index] for index in drawn]) if drawn else self.existing[:0, 0])
        affordances = [tuple(row["pos_prompts"]) for row in rows]
        return {
            "prompt": [self.template.format(affordances=", ".join(wanted)) for wanted in affordances],
            "affordances": affordances,
            "pos": pixels(torch.stack(positive)),
            "neg": pixels(torch.stack(negative)),
            "neg_mask": torch.tensor(mask),
            "requested": torch.tensor([[name in wanted for name in AFFORDANCES] for wanted in affordances]),
            "owners": torch.tensor([[name in row["neg_prompts"] for name in _NAMES] for row in rows]),
            "tdistance": torch.tensor([row["tdistance"] for row in rows], dtype=torch.float32),
            "stage": torch.tensor([row["stage"] for row in rows]),
            "pair_id": torch.tensor([row["pair_id"] for row in rows]),
            "draw": torch.tensor([draw for _, draw in items]),
        }


def _with_draws(indices: Sequence[int] | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(index, index) if isinstance(index, int) else index for index in indices]


def caption(concept: str, template: str, random: Random) -> str:
    """Describe an existing concept, by its name, its parts, or what it is for.

    Args:
        concept: Name of the concept.
        template: Caption of affordances alone, with the place ``{affordances}``.
        random: Source of the choices.
    """
    own = CONCEPTS[concept]
    used_for = ", ".join(random.sample(own.affordances, random.randint(1, len(own.affordances))))
    parts = ", ".join(random.sample(sorted(own.parts), random.randint(1, len(own.parts))))
    name = concept.replace("_", " ")
    return random.choice(
        (
            template.format(affordances=used_for),
            template.format(affordances=used_for),
            f"an object used to {used_for}",
            f"a {name} used to {used_for}",
            f"a {name} with {parts}",
        )
    )


def read_pairs(folder: str, name: str) -> list[dict[str, Any]]:
    """Read the pairs of a curriculum that are drawn.

    Args:
        folder: Folder of ``stage0.jsonl`` and so on and ``test.jsonl``.
        name: ``"train"`` for the stages, ``"test"``.

    Returns:
        Rows with ``pair_id``, ``pos_prompts``, ``neg_prompts``, ``tdistance`` and ``stage``; a test pair gets the stage
        that its distance falls into. A pair without ``neg_prompts`` gets all concepts that have one of its affordances.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If a line is malformed or names what cannot be drawn.
    """
    root = Path(folder)
    stages: list[list[dict[str, Any]]] = []
    while (path := root / f"stage{len(stages)}.jsonl").is_file():
        stages.append(_rows(path, len(stages)))
    if not stages:
        raise FileNotFoundError(
            f"The folder {root} must hold stage0.jsonl, stage1.jsonl and so on, a curriculum of the drawn objects' "
            "ontology (DrawnObjects.write_ontology); found none of them."
        )
    if name == "train":
        return [row for rows in stages for row in rows]
    path = root / "test.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"The folder {root} must hold test.jsonl, the pairs to test on; it is missing.")
    borders = [max(row["tdistance"] for row in rows) for rows in stages[:-1]]
    rows = _rows(path, 0)
    return [{**row, "stage": sum(border < row["tdistance"] for border in borders)} for row in rows]


def _rows(path: Path, stage: int) -> list[dict[str, Any]]:
    rows = []
    for place, row in read_json_lines(path):
        try:
            affordances = known_affordances(row["pos_prompts"])
            unknown = set(row["neg_prompts"]) - set(CONCEPTS)
            if unknown:
                raise ValueError(
                    f"The concept {min(unknown)!r} cannot be drawn; those that can: {', '.join(CONCEPTS)}."
                )
            tdistance, pair_id = float(row["tdistance"]), int(row["pair_id"])
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing." if isinstance(error, KeyError) else error
            raise ValueError(f"{place}: {reason}") from error
        negatives = tuple(row["neg_prompts"]) or owners(affordances)
        rows.append({"pair_id": pair_id, "pos_prompts": affordances, "neg_prompts": negatives, "tdistance": tdistance})
    if not rows:
        raise ValueError(f"{path} must hold at least one pair, got none.")
    return [{**row, "stage": stage} for row in rows]


class DrawnObjects(LightningDataModule):
    """Drawn pictures of everyday objects and of new designs, made from a seed; no download.

    There are 18 concepts of 25 parts and 21 affordances; :mod:`datamodules.drawn.ontology` lists them, and the parts
    that show an affordance. Pictures vary in colours, size, turn, place and mirroring, new designs also in body and
    arrangement. Everything is a function of the seed.

    ``task="concepts"`` teaches a model to draw existing concepts and, with ``nameless``, objects of random parts. A
    batch is ``prompt`` (captions, list of str),
    ``image`` (float32 in [-1, 1], ``(batch, 3, size, size)``), ``concept``, ``index`` and ``draw``, which numbers
    the choice of a caption (int64, ``(batch,)``), and ``parts`` (bool, ``(batch, parts)``). A caption names the
    concept, what it is used for, its parts, or only some of its affordances by the template; that of a nameless object
    lists its parts, and its ``concept`` is -1.

    ``task="pairs"`` teaches it to compose affordances, in the order of a curriculum. A batch is ``prompt`` and
    ``affordances`` (lists), ``pos``, pictures of new designs that offer them (float32 in [-1, 1], ``(batch, 3, size,
    size)``), ``neg``, pictures of existing concepts that have one of them (``(batch, negatives, 3, size, size)``), with
    ``neg_mask`` (bool, ``(batch, negatives)``), ``requested`` (bool, ``(batch, affordances)``), ``owners``, the
    concepts that have one of them (bool, ``(batch, concepts)``), ``tdistance`` (float32 in [0, 1], ``(batch,)``),
    ``stage``, ``pair_id`` and ``draw``, which numbers the choice of pictures (int64, ``(batch,)``). Validation and test
    have the same batches, of the test pairs, whose stage is the one their distance falls into.

    Args:
        curriculum: Folder of ``stage0.jsonl`` and so on and ``test.jsonl``, a pair a line; needed for
            ``task="pairs"``. The ontology to make it from is :meth:`write_ontology`.
        task: What to train on.
        image_size: Side of the pictures in pixels.
        num_images: Training pictures of existing concepts.
        nameless: Training pictures of objects of one to three random parts, for ``task="concepts"``. With a
            ``curriculum``, no two parts of one show a pair that it tests.
        validation_size: Validation pictures of existing concepts.
        positives: Pictures of new designs for each pair.
        negatives: Pictures of existing concepts in an item; with 0 there is nothing to contrast with.
        images_per_concept: Pictures of each existing concept to draw negatives from.
        epochs: Epochs of the curriculum; ``None`` takes the trainer's ``max_epochs``.
        mode: Order of the curriculum, see :class:`~datamodules.affordances.sampling.CurriculumSampler`.
        template: Prompt, with the place ``{affordances}``.
        samples_per_pair: Times that each test pair comes in a test.
        batch_size: Items in a training batch, on each device.
        eval_batch_size: Items in a batch of validation and test, on each device.
        seed: Seed of pictures, captions and order.
        num_workers: Worker processes of each loader; 0 is fast, as the pictures lie in memory.

    Raises:
        ValueError: If an argument is out of its range; in ``setup``, if a file is malformed.
        FileNotFoundError: In ``setup``, if the curriculum's files are missing.

    Example:
        >>> data = DrawnObjects(num_images=64, validation_size=16, batch_size=8)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, len(batch["prompt"]), batch["parts"].shape
        (torch.Size([8, 3, 32, 32]), 8, torch.Size([8, 25]))
    """

    concepts: tuple[str, ...] = tuple(CONCEPTS)
    parts: tuple[str, ...] = PARTS
    affordances: tuple[str, ...] = AFFORDANCES
    licence: ClassVar[str | None] = "drawn pictures, under the licence of this software, Apache-2.0"

    def __init__(
        self,
        curriculum: str | None = None,
        task: Literal["concepts", "pairs"] = "concepts",
        image_size: int = 32,
        num_images: int = 4096,
        nameless: int = 0,
        validation_size: int = 256,
        positives: int = 3,
        negatives: int = 1,
        images_per_concept: int = 8,
        epochs: int | None = None,
        mode: Mode = "staged",
        template: str = TEMPLATE,
        samples_per_pair: int = 1,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if task not in ("concepts", "pairs"):
            raise ValueError(f"task must be 'concepts' or 'pairs', got {task!r}.")
        if task == "pairs" and curriculum is None:
            raise ValueError("task 'pairs' needs a curriculum: --data.curriculum with the folder of stage0.jsonl.")
        if "{affordances}" not in template:
            raise ValueError(f"template must have the place '{{affordances}}', got {template!r}.")
        self.save_hyperparameters()
        check_at_least(1, num_images=num_images, validation_size=validation_size, samples_per_pair=samples_per_pair)
        check_at_least(1, positives=positives, images_per_concept=images_per_concept)
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, num_workers=num_workers, negatives=negatives, nameless=nameless)
        check_at_least(8, image_size=image_size)
        self._sets: dict[str, ConceptSet | PairSet] = {}

    @property
    def seen_by(self) -> Tensor:
        """Parts that show each affordance, bool, ``(affordances, parts)``."""
        return torch.stack([part_mask(SEEN_BY[name]) for name in AFFORDANCES])

    @property
    def concept_parts(self) -> Tensor:
        """Parts of each concept, bool, ``(concepts, parts)``."""
        return torch.stack([part_mask(concept.parts) for concept in CONCEPTS.values()])

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words of all prompts, sorted."""
        texts = [self.hparams["template"].replace("{affordances}", " "), "a with used to and an object"]
        texts += [name.replace("_", " ") for name in (*CONCEPTS, *PARTS, *AFFORDANCES)]
        return tuple(sorted({word for text in texts for word in text.replace(",", " ").split()}))

    @staticmethod
    def write_ontology(path: str) -> None:
        """Write the ontology of the drawn objects as a JSON file, for the commands that build a curriculum."""
        write_whole(path, json.dumps(ontology(), indent=1) + "\n")

    def setup(self, stage: str) -> None:
        """Draw what the stage needs, once."""
        for name in ("train", "test") if stage == "fit" else ("test",):
            self.split(name)

    def split(self, name: str) -> ConceptSet | PairSet:
        """Return the training or the test set of the task.

        Args:
            name: ``"train"`` or ``"test"``; validation takes the test set.

        Raises:
            ValueError: If the name is unknown or a file is malformed.
            FileNotFoundError: If the curriculum's files are missing.
        """
        if name not in ("train", "test"):
            raise ValueError(f"A split must be 'train' or 'test', got {name!r}.")
        if name not in self._sets:
            self._sets[name] = self._pairs(name) if self.hparams["task"] == "pairs" else self._concepts(name)
        return self._sets[name]

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches, or those of the curriculum."""
        data = self.split("train")
        if isinstance(data, PairSet):
            stages, distances = ([row[name] for row in data.rows] for name in ("stage", "tdistance"))
            return curriculum_loader(self, data, stages, distances)
        size, seed = self.hparams["batch_size"], self.hparams["seed"]
        sampler = AugmentedSampler(len(data), size, seed, *place_of(self), choices=CHOICES)
        return training_loader(self, data, sampler, self.hparams["num_workers"])

    def val_dataloader(self) -> ResumableLoader:
        """Return the test set once, in order."""
        return evaluation_loader(self, self.split("test"), 1)

    def test_dataloader(self) -> ResumableLoader:
        """Return the test set in order; each pair comes ``samples_per_pair`` times."""
        times = self.hparams["samples_per_pair"] if self.hparams["task"] == "pairs" else 1
        return evaluation_loader(self, self.split("test"), times)

    def predict_dataloader(self) -> ResumableLoader:
        """Return what is tested."""
        return self.test_dataloader()

    def _concepts(self, name: str) -> ConceptSet:
        args = self.hparams
        key, size, template = f"{args['seed']}/concepts/{name}", args["image_size"], args["template"]
        if name == "test":
            return ConceptSet(args["validation_size"], size, key, template=template)
        tested = read_pairs(args["curriculum"], "test") if args["curriculum"] and args["nameless"] else []
        withheld = [row["pos_prompts"] for row in tested]
        return ConceptSet(
            args["num_images"], size, key, template=template, nameless=args["nameless"], withheld=withheld
        )

    def _pairs(self, name: str) -> PairSet:
        args = self.hparams
        key, number = f"{args['seed']}/pairs/{name}", args["images_per_concept"]
        scenes = [[existing_design(concept)] for concept in _NAMES for _ in range(number)]
        images = render(scenes, [f"{key}/existing/{index}" for index in range(len(scenes))], args["image_size"])
        return PairSet(
            read_pairs(args["curriculum"], name),
            torch.from_numpy(images.reshape(len(_NAMES), number, *images.shape[1:])),
            positives=args["positives"],
            negatives=args["negatives"],
            key=key,
            template=args["template"],
        )
