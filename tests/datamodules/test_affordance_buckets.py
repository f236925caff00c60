"""Aspect-ratio buckets of affordance pairs: batches of one size, the same in every process and after a stop."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.affordances.buckets import Buckets, batches_of_one_bucket, bucket_sizes, nearest_bucket
from datamodules.affordances.pairs import AffordancePairs
from datamodules.affordances.sampling import CurriculumSampler

SHAPES = ((48, 24), (24, 48), (32, 32), (60, 30), (24, 50), (40, 40), (30, 44))
"""Height and width of the positive image of each pair of a stage."""
SIZES = ((40, 24), (32, 32), (24, 40))


def gradient(height: int, width: int, blue: int) -> Image.Image:
    """Draw red that rises to the right, and green that rises downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = blue
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of seven pairs in each of two stages, with images of several shapes."""
    folder = tmp_path_factory.mktemp("pairs")
    for stage in range(2):
        rows = []
        for number, (height, width) in enumerate(SHAPES):
            pair = stage * len(SHAPES) + number
            gradient(height, width, 10 * pair).save(folder / f"{pair}.png")
            gradient(width, height, 255).save(folder / f"{pair}-negative.png")  # of the other shape
            row = {
                "pair_id": pair,
                "pos_prompts": ["sit", f"use {pair}"],
                "neg_prompts": ["jug"],
                "tdistance": stage / 2,
            }
            rows.append(row | {"pos_paths": [f"{pair}.png"], "neg_paths": {"jug": [f"{pair}-negative.png"]}})
        (folder / f"stage{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(root: Path, **more: Any) -> AffordancePairs:
    settings = {"image_size": 32, "bucket_step": 8, "batch_size": 2, "epochs": 4, "variants": 1}
    data = AffordancePairs(str(root), **settings | more)
    data.setup("fit")
    return data


def test_sizes_are_multiples_of_about_equal_area() -> None:
    assert bucket_sizes(32, 8, 2.0) == SIZES
    for image_size, step in ((512, 64), (1024, 64), (1024, 16), (512, 8)):
        sizes = bucket_sizes(image_size, step, 2.0)
        assert (image_size, image_size) in sizes
        assert [(width, height) for height, width in reversed(sizes)] == list(sizes)
        for height, width in sizes:
            assert height % step == width % step == 0
            assert max(height, width) <= 2 * min(height, width)
            assert abs(height * width / image_size**2 - 1) < step / image_size
        assert all(one[1] / one[0] < other[1] / other[0] for one, other in pairwise(sizes))
    for arguments, message in (
        ((100, 64, 2.0), "image_size must be a multiple of the bucket_step 64, got 100"),
        ((64, 64, 2.0), "leaves images of 64 pixels and a largest_ratio of 2.0 the square alone"),
    ):
        with pytest.raises(ValueError, match=message):
            bucket_sizes(*arguments)


def test_an_image_belongs_to_the_nearest_ratio() -> None:
    shapes = [(40, 24), (1000, 400), (42, 32), (41, 32), (32, 41), (32, 32), (32, 42), (10, 100)]
    assert [nearest_bucket(*shape, SIZES) for shape in shapes] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_every_row_comes_once_and_few_batches_are_mixed() -> None:
    random = Random(0)
    for _ in range(50):
        count, size = random.randrange(1, 60), random.randrange(1, 9)
        rows = [(number, random.randrange(5)) for number in range(count)]
        arranged = batches_of_one_bucket(rows, lambda row: row[1], size, Random(1))
        assert Counter(row for row, _ in arranged) == Counter(rows)
        batches = [arranged[start : start + size] for start in range(0, count, size)]
        assert all(len({bucket for _, bucket in batch}) == 1 for batch in batches)
        assert all(bucket in {own for (_, own), _ in batch} for batch in batches for _, bucket in batch)
        mixed = [batch for batch in batches if len({own for (_, own), _ in batch}) > 1]
        assert len(mixed) <= -(-5 * (size - 1) // size)
        for batch in mixed:  # of neighbours in aspect ratio
            assert [own for (_, own), _ in batch] == sorted(own for (_, own), _ in batch)
        assert arranged == batches_of_one_bucket(rows, lambda row: row[1], size, Random(1))


def epochs(loader: Any, numbers: range) -> list[Any]:
    seen = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        seen += list(loader)
    return seen


def test_batches_have_one_size_and_every_pair_comes_once(root: Path) -> None:
    data = made(root)
    assert data.image_sizes == SIZES
    loader = data.train_dataloader()
    sizes = set()
    for number in range(4):
        batches = epochs(loader, range(number, number + 1))
        assert len(batches) == len(loader) == 4
        pairs = sorted(int(pair) for batch in batches for pair in batch["pair_id"])
        assert pairs == [pair + 7 * (number // 2) for pair in range(7)]
        for batch in batches:
            height, width = batch["pos"].shape[2:]
            assert batch["neg"].shape[3:] == (height, width)
            sizes.add((height, width))
            own = [SIZES[nearest_bucket(*SHAPES[int(pair) % 7], SIZES)] for pair in batch["pair_id"]]
            assert (height, width) in own
    assert sizes == set(SIZES)
    assert len(made(root).val_dataloader()) == 0


def test_pictures_keep_their_aspect_ratio(root: Path) -> None:
    data = made(root, batch_size=1)
    for batch in epochs(data.train_dataloader(), range(1)):
        pair = int(batch["pair_id"][0])
        height, width = batch["pos"].shape[2:]
        assert (height, width) == SIZES[nearest_bucket(*SHAPES[pair], SIZES)]
        red, green = ((batch["pos"][0, channel] + 1) / 2 for channel in range(2))
        wide, high = float(red[0, -1] - red[0, 0]), float(green[-1, 0] - green[0, 0])
        shown = {name: share for name, share in (("width", wide), ("height", high))}
        ratio = SHAPES[pair][1] / SHAPES[pair][0] / (width / height)
        assert shown["width"] == pytest.approx(min(1, 1 / ratio), abs=0.06)
        assert shown["height"] == pytest.approx(min(1, ratio), abs=0.06)
        negative = ((batch["neg"][0, 0] + 1) / 2)[:2]  # cut to the positive image's shape
        ratio = SHAPES[pair][0] / SHAPES[pair][1] / (width / height)
        assert float(negative[0, 0, -1] - negative[0, 0, 0]) == pytest.approx(min(1, 1 / ratio), abs=0.09)


def test_without_memory_and_in_variants_pictures_are_the_same(root: Path) -> None:
    kept, read = (
        epochs(made(root, variants=4, memory_gib=memory).train_dataloader(), range(2)) for memory in (4.0, 0.0)
    )
    for one, other in zip(kept, read, strict=True):
        assert torch.equal(one["pos"], other["pos"])
        assert torch.equal(one["neg"], other["neg"])


def test_a_stopped_run_goes_on_with_the_same_batches(root: Path) -> None:
    whole = list(made(root, seed=3).train_dataloader())
    first = made(root, seed=3).train_dataloader()
    next(iter(first))
    second = made(root, seed=3).train_dataloader()
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == len(whole) - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one["pos"], other["pos"])
        assert torch.equal(one["draw"], other["draw"])
    others = {
        "sizes of images must be .*got None": {"bucket_step": None},
        "sizes of images must be": {"largest_ratio": 4.0},
    }
    for message, changed in others.items():
        other = made(root, seed=3, **changed).train_dataloader()
        other.load_state_dict(first.state_dict())
        with pytest.raises(ValueError, match=message):
            next(iter(other))


def sampler(mode: Any = "staged", **more: Any) -> CurriculumSampler:
    own = [0, 1, 2, 1, 1, 0, 2, 2, 1]
    buckets = Buckets(SIZES, lambda row: own[row[0]])
    stages = [0] * 4 + [1] * 5
    return CurriculumSampler(stages, **{"epochs": 4, "batch_size": 2, "choices": 99} | more, mode=mode, buckets=buckets)


@pytest.mark.parametrize("mode", ["staged", "cumulative", "random"])
def test_two_processes_see_what_one_with_twice_the_batch_sees(mode: Any) -> None:
    whole = sampler(mode, batch_size=4)
    ranks = [sampler(mode, rank=rank, world_size=2) for rank in range(2)]
    for number in range(4):
        for own in (whole, *ranks):
            own.set_epoch(number)
        parts = list(zip(*ranks, strict=True))
        assert len(parts) == len(whole) == len(list(ranks[0]))
        for (first, second), both in zip(parts, whole, strict=True):
            assert (first + second)[: len(both)] == both
            assert len({bucket for _, _, bucket in both}) == 1
            assert all(len({bucket for _, _, bucket in part}) == 1 for part in (first, second))


def test_the_items_of_an_epoch_are_those_without_buckets() -> None:
    for mode in ("staged", "cumulative", "random"):
        bucketed, plain = sampler(mode), sampler(mode)
        plain.buckets = None
        for number in range(4):
            bucketed.set_epoch(number)
            plain.set_epoch(number)
            assert sorted((item, draw) for item, draw, _ in bucketed.order()) == sorted(plain.order())


def test_an_order_of_single_batches_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="bucket_step goes with modes 'staged', 'cumulative' and 'random'"):
        made(root, mode="competence")
    with pytest.raises(ValueError, match="mode 'competence' orders the batches of an epoch"):
        sampler("competence", difficulty=[0.1] * 9)
    with pytest.raises(ValueError, match="bucket_step must be at least 1, got 0"):
        made(root, bucket_step=0)
