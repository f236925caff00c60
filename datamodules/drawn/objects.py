"""Drawn objects: pictures of everyday things and of new designs, made from a seed, to compose affordances offline."""

import json
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ..affordances.loaders import CHOICES, TEMPLATE, curriculum_loader, evaluation_loader
from ..affordances.sampling import Mode
from ..common.sampling import ResumableLoader, place_of, training_loader
from ..images.base import AugmentedSampler
from .ontology import AFFORDANCES, CONCEPTS, PARTS, SEEN_BY, ontology
from .renderer import existing_design, render
from .sets import ConceptSet, PairSet, read_pairs, shown


class DrawnObjects(LightningDataModule):
    """Drawn pictures of everyday objects and of new designs, made from a seed; no download.

    There are 18 concepts of 25 parts and 21 affordances; :mod:`datamodules.drawn.ontology` lists them and says by which
    parts an affordance is seen. Pictures vary in colours, size, turn, place and mirroring, and new designs in body
    and arrangement too. Everything is a function of the seed.

    ``task="concepts"`` teaches a model to draw existing concepts. A batch is ``prompt`` (captions, list of str),
    ``image`` (float32 in [-1, 1], ``(batch, 3, size, size)``), ``concept``, ``index`` and ``draw``, which numbers
    the choice of a caption (int64, ``(batch,)``), and ``parts`` (bool, ``(batch, parts)``). A caption names the
    concept, what it is used for, its parts, or only some of its affordances by the template.

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
        validation_size: Validation pictures of existing concepts.
        positives: Pictures of new designs for each pair.
        negatives: Pictures of existing concepts in an item.
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

    def __init__(
        self,
        curriculum: str | None = None,
        task: Literal["concepts", "pairs"] = "concepts",
        image_size: int = 32,
        num_images: int = 4096,
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
            raise ValueError("task 'pairs' needs a curriculum, the folder of stage0.jsonl and so on; got None.")
        if "{affordances}" not in template:
            raise ValueError(f"template must have the place '{{affordances}}', got {template!r}.")
        least = {
            "image_size": (image_size, 8),
            "num_images": (num_images, 1),
            "validation_size": (validation_size, 1),
            "positives": (positives, 1),
            "negatives": (negatives, 1),
            "images_per_concept": (images_per_concept, 1),
            "samples_per_pair": (samples_per_pair, 1),
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
        }
        for name, (number, bound) in least.items():
            if number < bound:
                raise ValueError(f"{name} must be at least {bound}, got {number}.")
        self.save_hyperparameters()
        self._sets: dict[str, ConceptSet | PairSet] = {}

    @property
    def seen_by(self) -> Tensor:
        """Which parts show which affordance, bool, ``(affordances, parts)``."""
        return torch.stack([shown(SEEN_BY[name]) for name in AFFORDANCES])

    @property
    def concept_parts(self) -> Tensor:
        """Which parts each concept has, bool, ``(concepts, parts)``."""
        return torch.stack([shown(concept.parts) for concept in CONCEPTS.values()])

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words of all prompts, sorted."""
        texts = [self.hparams["template"].replace("{affordances}", " "), "a with used to and an object"]
        texts += [name.replace("_", " ") for name in (*CONCEPTS, *PARTS, *AFFORDANCES)]
        return tuple(sorted({word for text in texts for word in text.replace(",", " ").split()}))

    @staticmethod
    def write_ontology(path: str) -> None:
        """Write the ontology of the drawn objects as a JSON file, for the commands that build a curriculum."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(ontology(), indent=1) + "\n", encoding="utf-8")

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
        given = self.hparams
        number = given["num_images"] if name == "train" else given["validation_size"]
        return ConceptSet(number, given["image_size"], f"{given['seed']}/concepts/{name}", given["template"])

    def _pairs(self, name: str) -> PairSet:
        given = self.hparams
        key = f"{given['seed']}/pairs/{name}"
        number, size = given["images_per_concept"], given["image_size"]
        names = [concept for concept in CONCEPTS for _ in range(number)]
        existing = render(
            [[existing_design(concept)] for concept in names], [f"{key}/existing/{i}" for i in range(len(names))], size
        )
        pictures = torch.from_numpy(existing.reshape(len(CONCEPTS), number, *existing.shape[1:]))
        rows = read_pairs(given["curriculum"], name)
        return PairSet(rows, given["positives"], pictures, given["negatives"], key, given["template"])
