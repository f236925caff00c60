"""Sets of drawn objects: existing concepts with captions, and pairs of affordances with new designs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..affordances.loaders import pixels
from .ontology import AFFORDANCES, CONCEPTS, PARTS, known_affordances, owners
from .renderer import Design, composed_design, existing_design, random_design, render


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
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}.")
    scenes: list[list[Design]] = []
    concepts = torch.full((num_images,), -1)
    for place in range(num_images):
        random, kind = Random(f"{seed}/labelled/{place}"), place % 10
        if kind < 2:
            concept = random.randrange(len(CONCEPTS))
            concepts[place] = concept
            scenes.append([existing_design(list(CONCEPTS)[concept])])
        elif kind == 8:
            scenes.append([_uncrowded(random.randint(1, 2), random) for _ in range(2)])
        elif kind == 9:
            scenes.append([])
        else:
            scenes.append([_uncrowded(random.choice((0, 1, 1, 2, 2, 2, 3, 3, 4)), random)])
    images = torch.from_numpy(render(scenes, [f"{seed}/labelled/{number}" for number in range(num_images)], image_size))
    empty = torch.tensor([not scene for scene in scenes])
    noisy = empty & (torch.arange(num_images) % 20 == 9)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (int(noisy.sum()), *images.shape[1:]), generator=generator, dtype=torch.uint8)
    images[noisy] = noise
    return {
        "image": images,
        "parts": torch.stack([shown([part for design in scene for part in design.parts]) for scene in scenes]),
        "single": torch.tensor([len(scene) == 1 for scene in scenes]),
        "concept": concepts,
    }


class ConceptSet(Dataset[dict[str, Any]]):
    """Pictures of single existing concepts, each with a caption; for batches see ``DrawnObjects``.

    Args:
        num_images: Number of pictures; the concepts take turns.
        image_size: Side in pixels.
        key: What pictures and captions vary with.
        template: Caption of affordances, with the place ``{affordances}``.
    """

    def __init__(self, num_images: int, image_size: int, key: str, template: str) -> None:
        self.names = [list(CONCEPTS)[number % len(CONCEPTS)] for number in range(num_images)]
        self.key, self.template = key, template
        scenes = [[existing_design(name)] for name in self.names]
        self.images = torch.from_numpy(render(scenes, [f"{key}/{number}" for number in range(num_images)], image_size))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    def __getitem__(self, places: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some places, each perhaps with a number that chooses its caption."""
        pairs = [(place, place) if isinstance(place, int) else place for place in places]
        index = torch.tensor([place for place, _ in pairs])
        names = [self.names[place] for place, _ in pairs]
        return {
            "prompt": [
                caption(name, self.template, Random(f"{self.key}/{place}/{draw}"))
                for name, (place, draw) in zip(names, pairs, strict=True)
            ],
            "image": pixels(self.images[index]),
            "concept": torch.tensor([list(CONCEPTS).index(name) for name in names]),
            "parts": torch.stack([shown(CONCEPTS[name].parts) for name in names]),
            "index": index,
            "draw": torch.tensor([draw for _, draw in pairs]),
        }


class PairSet(Dataset[dict[str, Any]]):
    """Prompts of several affordances, each with new designs and existing concepts; for batches see ``DrawnObjects``.

    Args:
        rows: Pairs, as :func:`read_pairs` returns them.
        positives: Pictures of new designs for each pair.
        existing: Pictures of each concept, uint8, ``(concepts, pictures, 3, size, size)``.
        negatives: Pictures of existing concepts in an item.
        key: What pictures and choices vary with.
        template: Prompt, with the place ``{affordances}``.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        positives: int,
        existing: Tensor,
        negatives: int,
        key: str,
        template: str,
    ) -> None:
        self.rows, self.existing, self.negatives = list(rows), existing, negatives
        self.key, self.template = key, template
        names = [f"{key}/{row['pair_id']}/{number}" for row in rows for number in range(positives)]
        scenes = [
            [composed_design(row["pos_prompts"], Random(f"{key}/{row['pair_id']}/{number}/design"))]
            for row in rows
            for number in range(positives)
        ]
        images = torch.from_numpy(render(scenes, names, existing.shape[-1]))
        self.images = images.reshape(len(self.rows), positives, *images.shape[1:])

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    def __getitem__(self, places: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some places, each perhaps with a number that chooses its pictures."""
        pairs = [(place, place) if isinstance(place, int) else place for place in places]
        rows = [self.rows[place] for place, _ in pairs]
        positive, negative, mask = [], [], []
        for (place, draw), row in zip(pairs, rows, strict=True):
            random = Random(f"{self.key}/{row['pair_id']}/{draw}/choice")
            positive.append(self.images[place, random.randrange(self.images.shape[1])])
            pool = [
                (list(CONCEPTS).index(name), number)
                for name in row["neg_prompts"]
                for number in range(self.existing.shape[1])
            ]
            drawn = random.sample(pool, min(self.negatives, len(pool)))
            mask.append([number < len(drawn) for number in range(self.negatives)])
            drawn += [(0, 0)] * (self.negatives - len(drawn))
            negative.append(torch.stack([self.existing[concept, number] for concept, number in drawn]))
        affordances = [tuple(row["pos_prompts"]) for row in rows]
        return {
            "prompt": [self.template.format(affordances=", ".join(wanted)) for wanted in affordances],
            "affordances": affordances,
            "pos": pixels(torch.stack(positive)),
            "neg": pixels(torch.stack(negative)),
            "neg_mask": torch.tensor(mask),
            "requested": torch.tensor([[name in wanted for name in AFFORDANCES] for wanted in affordances]),
            "owners": torch.tensor([[name in row["neg_prompts"] for name in CONCEPTS] for row in rows]),
            "tdistance": torch.tensor([row["tdistance"] for row in rows], dtype=torch.float32),
            "stage": torch.tensor([row["stage"] for row in rows]),
            "pair_id": torch.tensor([row["pair_id"] for row in rows]),
            "draw": torch.tensor([draw for _, draw in pairs]),
        }


def caption(concept: str, template: str, random: Random) -> str:
    """Describe an existing concept, by its name, its parts, or what it is for.

    Args:
        concept: Name of the concept.
        template: Caption of affordances alone, with the place ``{affordances}``.
        random: Source of the choices.
    """
    what = CONCEPTS[concept]
    used_for = ", ".join(random.sample(what.affordances, random.randint(1, len(what.affordances))))
    parts = ", ".join(random.sample(sorted(what.parts), random.randint(1, len(what.parts))))
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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            wanted = known_affordances(row["pos_prompts"])
            unknown = set(row["neg_prompts"]) - set(CONCEPTS)
            if unknown:
                raise ValueError(f"the concept {min(unknown)!r} cannot be drawn; those that can: {', '.join(CONCEPTS)}")
            tdistance, pair_id = float(row["tdistance"]), int(row["pair_id"])
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise ValueError(f"{path}, line {number}: {reason}.") from error
        negative = tuple(row["neg_prompts"]) or owners(wanted)
        row = {"pair_id": pair_id, "pos_prompts": wanted, "neg_prompts": negative, "tdistance": tdistance}
        rows.append({**row, "stage": stage})
    if not rows:
        raise ValueError(f"{path} must hold at least one pair, got none.")
    return rows


def _uncrowded(number: int, random: Random) -> Design:
    """Return a design of some random parts, of which at most two share a place."""
    while True:
        design = random_design(random.sample(PARTS, number), random)
        if all(design.places.count(place) <= 2 for place in design.places):
            return design


def shown(parts: Iterable[str]) -> Tensor:
    """Return which parts are among those given, bool, ``(parts,)``."""
    there = set(parts)
    return torch.tensor([part in there for part in PARTS])
