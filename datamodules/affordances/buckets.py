"""Aspect-ratio buckets: sizes of about equal area, and batches of one size each."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Hashable)
Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(image_size: int, step: int, largest_ratio: float) -> tuple[Size, ...]:
    """Return sizes of about the area of a square, from the highest to the widest.

    The shorter side is each multiple of ``step`` up to the square's side, and the longer one the multiple that comes
    nearest to the area.

    Args:
        image_size: Side of the square in pixels, a multiple of ``step``.
        step: Number of pixels that sides are multiples of.
        largest_ratio: Largest ratio of the longer side to the shorter one.

    Raises:
        ValueError: If the side is no multiple, or the square is the only size.

    Example:
        >>> bucket_sizes(512, 64, 2.0)
        ((704, 384), (576, 448), (512, 512), (448, 576), (384, 704))
    """
    if image_size % step:
        raise ValueError(f"image_size must be a multiple of the bucket_step {step}, got {image_size}.")
    sizes = set()
    for short in range(step, image_size + 1, step):
        long = round(image_size**2 / short / step) * step
        if long <= largest_ratio * short:
            sizes |= {(short, long), (long, short)}
    if len(sizes) < 2:
        raise ValueError(
            f"A bucket_step of {step} leaves images of {image_size} pixels and a largest_ratio of {largest_ratio} the "
            "square alone; take a smaller step, larger images or a larger ratio."
        )
    return tuple(sorted(sizes, key=lambda size: size[1] / size[0]))


def nearest_bucket(height: int, width: int, sizes: Sequence[Size]) -> int:
    """Return the number of the size whose aspect ratio is nearest to an image's, by the quotient of the two."""
    ratios = [abs(math.log(width / height * size[0] / size[1])) for size in sizes]
    return ratios.index(min(ratios))


@dataclass(frozen=True)
class Buckets:
    """Sizes, from the highest to the widest, and the bucket that an item with its choice of images belongs to."""

    sizes: tuple[Size, ...]
    bucket_of: Callable[[Any], int]


def batches_of_one_bucket(
    rows: Sequence[Row], bucket_of: Callable[[Row], int], batch_size: int, random: Random
) -> list[tuple[Row, int]]:
    """Arrange rows so that each ``batch_size`` of them have one bucket, as far as there are enough rows of each.

    Of what is left, neighbours in aspect ratio share a batch, in the bucket of the middle one. So every row comes once,
    and there are as many batches as without buckets. Batches come in random order; one that is smaller comes last.

    Args:
        rows: Rows in the order of an epoch; those of a bucket keep it.
        bucket_of: Number of a row's own bucket, by aspect ratio.
        batch_size: Rows of a batch.
        random: Source of the order of batches.

    Returns:
        Each row with the bucket of its batch.

    Example:
        >>> batches_of_one_bucket([10, 20, 11, 21, 12], lambda row: row // 10, 2, Random(0))
        [(10, 1), (11, 1), (20, 2), (21, 2), (12, 1)]
    """
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(bucket_of(row), []).append(row)
    batches: list[list[tuple[Row, int]]] = []
    rest: list[tuple[Row, int]] = []
    for bucket, own in sorted(members.items()):
        whole = len(own) - len(own) % batch_size
        batches += [[(row, bucket) for row in own[start : start + batch_size]] for start in range(0, whole, batch_size)]
        rest += [(row, bucket) for row in own[whole:]]
    for start in range(0, len(rest), batch_size):
        mixed = rest[start : start + batch_size]
        bucket = mixed[len(mixed) // 2][1]
        batches.append([(row, bucket) for row, _ in mixed])
    last = batches.pop() if batches and len(batches[-1]) < batch_size else []
    random.shuffle(batches)
    return [row for batch in batches for row in batch] + last
