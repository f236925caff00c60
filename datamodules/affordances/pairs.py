"""Pairs of affordances with images from files, in the order of a curriculum."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lit_modules.utils.progress import shown

from ..common.checks import check_at_least, check_choices
from ..common.sampling import ResumableLoader
from .buckets import Buckets, bucket_sizes
from .files import ImagePair, ImageStore, Resize, listing, read_image_pairs
from .loaders import TEMPLATE, curriculum_loader, evaluation_loader, pixels
from .sampling import Mode


class AffordancePairs(LightningDataModule):
    """Pairs of affordances, each with images of new designs that offer both and of existing concepts that offer one.

    A batch is ``prompt`` (list of str) and ``affordances`` (list of tuples), ``pos``, an image of a new design (float32
    in [-1, 1], ``(batch, 3, size, size)``), ``neg``, images of existing concepts (``(batch, negatives, 3, size,
    size)``), with ``neg_mask`` (bool, ``(batch, negatives)``), ``neg_prompts``, the names of these concepts (list of
    tuples), ``tdistance`` (float32 in [0, 1], ``(batch,)``), ``stage``, ``pair_id`` and ``draw``, which numbers the
    choice of images (int64, ``(batch,)``).

    In training each item draws one of its positive images and ``negatives`` of all its negative ones, each in one of
    ``variants``; what is drawn depends on the seed, the pair and the draw that the sampler numbers. Validation and test
    take the images as they are; the stage of a test pair is the one its distance falls into. Test pairs need no images:
    if none has any, ``pos`` or ``neg`` and ``neg_mask`` are left out.

    With ``bucket_step``, the images of a training batch have a height and a width of about the area of the square
    (:func:`~datamodules.affordances.buckets.bucket_sizes`): the aspect ratio nearest to that of the positive images,
    which are grouped by it, and which the negative ones of the batch are cut to. Of rows that fill no batch, neighbours
    in aspect ratio share one. Validation and test keep the square.

    Args:
        root: Folder of ``stage0.jsonl`` and so on and ``test.jsonl``, as ``lit-modules pairs`` makes them.
        image_size: Side of the images in pixels; the paper's is 128.
        bucket_step: Number of pixels that sides of aspect-ratio buckets are multiples of, at least the model's own
            (8 for Stable Diffusion, 16 for most, 32 for Sana, 64 for Kandinsky 3); 64 is usual. ``None`` makes all
            images square.
        largest_ratio: Largest ratio of the sides of a bucket.
        resize: ``"crop"`` cuts the middle square out; ``"squash"`` ignores the aspect ratio, as the authors' code does.
        variants: Variants of each training image: itself, mirrored, and crops of at least 85 % of the side, every
            second one mirrored. A small number, so that encodings can be kept.
        negatives: Images of existing concepts in an item.
        epochs: Epochs of the curriculum; ``None`` takes the trainer's ``max_epochs``.
        mode: Order of the curriculum, see :class:`~datamodules.affordances.sampling.CurriculumSampler`.
        template: Prompt, with the place ``{affordances}``.
        samples_per_pair: Times that each test pair comes in a test.
        batch_size: Items in a training batch, on each device.
        eval_batch_size: Items in a batch of validation and test, on each device.
        memory_gib: Bound of the images in memory, in GiB; further ones are decoded at each access.
        seed: Seed of images and order.
        num_workers: Worker processes of each loader; 0 is fast if the images fit into memory.

    Attributes:
        image_sizes: Height and width of each aspect-ratio bucket, from the highest to the widest.

    Raises:
        ValueError: If an argument is out of its range; in ``setup``, if lines or images are wrong, and lists them.
        FileNotFoundError: In ``setup``, if the files are missing.

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

    licence: ClassVar[str | None] = None
    """Licence of the data, for the card of a model that learned from them; a subclass may say it."""

    def __init__(
        self,
        root: str = "data/pairs",
        image_size: int = 512,
        bucket_step: int | None = None,
        largest_ratio: float = 2.0,
        resize: Resize = "crop",
        variants: int = 4,
        negatives: int = 1,
        epochs: int | None = None,
        mode: Mode = "staged",
        template: str = TEMPLATE,
        samples_per_pair: int = 1,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        memory_gib: float = 4.0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_choices(get_args(Resize), resize=resize)
        if "{affordances}" not in template:
            raise ValueError(f"template must have the place '{{affordances}}', got {template!r}.")
        check_at_least(8, image_size=image_size)
        check_at_least(1, bucket_step=bucket_step, largest_ratio=largest_ratio)
        check_at_least(1, variants=variants, samples_per_pair=samples_per_pair)
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, negatives=negatives, memory_gib=memory_gib, num_workers=num_workers)
        self.image_sizes = () if bucket_step is None else bucket_sizes(image_size, bucket_step, largest_ratio)
        if self.image_sizes and mode == "competence":
            raise ValueError("bucket_step goes with modes 'staged', 'cumulative' and 'random', got 'competence'.")
        self.save_hyperparameters()
        self._rows: dict[str, list[ImagePair]] = {}
        self._sets: dict[str, ImagePairSet] = {}

    def prompts(self) -> list[str]:
        """Return the prompts of all training pairs, each once.

        Raises:
            ValueError: If lines are malformed.
            FileNotFoundError: If the files are missing.
        """
        rows = self._read("train")
        return list(dict.fromkeys(prompt_of(row, self.hparams["template"]) for row in rows))

    def setup(self, stage: str) -> None:
        """Read and check the lines and images that the stage needs, once."""
        with shown(self.trainer):
            if stage == "fit":
                self.split("train")
            if stage != "fit" or self._read("test"):
                self.split("test")

    def split(self, name: str) -> "ImagePairSet":
        """Return the ``"train"`` or the ``"test"`` set; validation takes the test set.

        Raises:
            ValueError: If the name is unknown, lines or images are wrong, or there are no test pairs.
            FileNotFoundError: If the files are missing.
        """
        check_choices(("train", "test"), split=name)
        if name not in self._sets:
            arguments, rows = self.hparams, self._read(name)
            if not rows:
                raise ValueError(
                    f"{Path(arguments['root']) / 'test.jsonl'} must hold at least one pair to test on, got none."
                )
            training = name == "train"
            _check_images(rows, training, arguments["negatives"], arguments["root"])
            store = ImageStore(
                arguments["image_size"],
                arguments["resize"],
                arguments["variants"] if training else 1,
                int(arguments["memory_gib"] * 2**30),
                arguments["seed"],
                self.image_sizes if training and self.image_sizes else None,
            )
            paths = [path for row in rows for path in row.positives]
            store.load(paths + [path for row in rows for path in row.negatives if arguments["negatives"]])
            key = f"{arguments['seed']}/{name}"
            self._sets[name] = ImagePairSet(rows, store, arguments["negatives"], key, arguments["template"])
        return self._sets[name]

    def train_dataloader(self) -> ResumableLoader:
        """Return the batches of the curriculum."""
        data = self.split("train")
        stages, difficulty = [row.stage for row in data.rows], [row.tdistance for row in data.rows]
        buckets = Buckets(self.image_sizes, data.bucket_of) if self.image_sizes else None
        return curriculum_loader(self, data, stages, difficulty, buckets)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Return the test pairs once, in order, or no loader if there are none."""
        return evaluation_loader(self, self.split("test"), 1) if self._read("test") else []

    def test_dataloader(self) -> ResumableLoader:
        """Return the test pairs in order; each comes ``samples_per_pair`` times."""
        return evaluation_loader(self, self.split("test"), self.hparams["samples_per_pair"])

    def predict_dataloader(self) -> ResumableLoader:
        """Return what is tested."""
        return self.test_dataloader()

    def _read(self, name: str) -> list[ImagePair]:
        if not self._rows:
            self._rows["train"], self._rows["test"] = read_image_pairs(self.hparams["root"])
        return self._rows[name]


class ImagePairSet(Dataset[dict[str, Any]]):
    """Pairs whose index is a tuple of places and whose item is a batch; for batches see :class:`AffordancePairs`.

    Choices of images vary with ``key``. The places of a batch with buckets all have the same one.
    """

    def __init__(self, rows: Sequence[ImagePair], store: ImageStore, negatives: int, key: str, template: str) -> None:
        self.rows, self.store, self.negatives = list(rows), store, negatives
        self.key, self.template = key, template
        self.has_positives = any(row.positives for row in rows)
        self.has_negatives = negatives == 0 or any(row.negatives for row in rows)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    def bucket_of(self, place: tuple[int, int]) -> int:
        """Return the bucket of the positive image that a place, with the number that chooses it, draws."""
        index, draw = place
        row = self.rows[index]
        return self.store.bucket_of(self._random(row, draw).choice(row.positives))

    def __getitem__(self, places: Sequence[Any]) -> dict[str, Any]:
        """Return the batch of some places, each perhaps with a number that chooses its images, and a bucket."""
        pairs = [(index, 0) if isinstance(index, int) else index[:2] for index in places]
        bucket = 0 if isinstance(places[0], int) or len(places[0]) < 3 else places[0][2]
        rows = [self.rows[index] for index, _ in pairs]
        batch: dict[str, Any] = {
            "prompt": [prompt_of(row, self.template) for row in rows],
            "affordances": [row.affordances for row in rows],
            "neg_prompts": [row.concepts for row in rows],
            "tdistance": torch.tensor([row.tdistance for row in rows], dtype=torch.float32),
            "stage": torch.tensor([row.stage for row in rows]),
            "pair_id": torch.tensor([row.pair_id for row in rows]),
            "draw": torch.tensor([draw for _, draw in pairs]),
        }
        chosen = [
            self._chosen(row, self._random(row, draw), bucket) for row, (_, draw) in zip(rows, pairs, strict=True)
        ]
        if self.has_positives:
            batch["pos"] = pixels(torch.stack([positive for positive, _ in chosen if positive is not None]))
        if self.has_negatives:
            images = torch.zeros(len(rows), self.negatives, 3, *self.store.sizes[bucket], dtype=torch.uint8)
            mask = torch.zeros(len(rows), self.negatives, dtype=torch.bool)
            for row, (_, negatives) in enumerate(chosen):
                for number, image in enumerate(negatives):
                    images[row, number], mask[row, number] = image, True
            batch |= {"neg": pixels(images), "neg_mask": mask}
        return batch

    def _random(self, row: ImagePair, draw: int) -> Random:
        """Return the source of an item's images, which gives the positive one first."""
        return Random(f"{self.key}/{row.pair_id}/{draw}")

    def _chosen(self, row: ImagePair, random: Random, bucket: int) -> tuple[Tensor | None, list[Tensor]]:
        """Draw a positive image and the negative ones, each in a variant, in the size of a bucket."""
        variants = self.store.variants
        positive = None
        if row.positives:
            positive = self.store.get(random.choice(row.positives), random.randrange(variants), bucket)
        drawn = random.sample(row.negatives, min(self.negatives, len(row.negatives)))
        return positive, [self.store.get(path, random.randrange(variants), bucket) for path in drawn]


def prompt_of(row: ImagePair, template: str) -> str:
    """Return the prompt of a pair by a template with the place ``{affordances}``."""
    return template.replace("{affordances}", ", ".join(row.affordances))


def _check_images(rows: Sequence[ImagePair], training: bool, negatives: int, root: str) -> None:
    """Refuse pairs that lack images; test pairs may do without if all do."""
    problems = []
    for field, needed in (("positives", True), ("negatives", negatives > 0)):
        lacking = [row for row in rows if not getattr(row, field)]
        if needed and lacking and (training or len(lacking) < len(rows)):
            problems += [
                f"pair {row.pair_id} ({', '.join(row.affordances)}) has no {field[:-1]} image" for row in lacking
            ]
    if problems:
        title = f"Pairs in {root} lack images, which `lit-modules pairs ONTOLOGY --folder {root}` makes"
        raise ValueError(listing(problems, title, "problem"))
