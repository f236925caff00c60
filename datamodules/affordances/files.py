"""Reader of pairs of affordances with images, which names all mistakes at once before training."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_modules.utils.images import read_picture_file
from lit_modules.utils.json_lines import numbered_lines, parse_json
from lit_modules.utils.progress import track

from .buckets import Size, nearest_bucket

Resize = Literal["crop", "squash"]
_LISTED = 20


@dataclass(frozen=True)
class ImagePair:
    """Affordances to compose, with images of new designs that have them and of existing concepts that have one.

    ``tdistance`` is the transformed distance in [0, 1]; ``stage`` counts from 0, that of a test pair is the one its
    distance falls into.
    """

    pair_id: int
    affordances: tuple[str, ...]
    concepts: tuple[str, ...]
    tdistance: float
    stage: int
    positives: tuple[Path, ...]
    negatives: tuple[Path, ...]


def read_image_pairs(folder: str | Path) -> tuple[list[ImagePair], list[ImagePair]]:
    """Read ``stage0.jsonl`` and so on and ``test.jsonl``, a pair a line.

    A line is an object with ``pos_prompts`` (affordances), ``neg_prompts`` (concepts), ``tdistance``, ``pos_paths``
    (list of images) and ``neg_paths`` (``{concept: [{image_path: ...}, ...]}``, or lists of plain paths). Paths are
    relative to the folder, or absolute. ``pair_id`` is counted where it is missing; other fields are passed over.

    Args:
        folder: Folder of the files.

    Returns:
        Training pairs in the order of the stages, and test pairs; no test pairs if there is no ``test.jsonl``.

    Raises:
        FileNotFoundError: If there is no stage; says what makes the files.
        ValueError: If lines are malformed; lists them.
    """
    root = Path(folder)
    problems: list[str] = []
    stages: list[list[ImagePair]] = []
    while (path := root / f"stage{len(stages)}.jsonl").is_file():
        stages.append(_rows(path, len(stages), sum(map(len, stages)), problems))
    if not stages:
        raise FileNotFoundError(
            f"The folder {root} must hold stage0.jsonl, stage1.jsonl and so on and test.jsonl, pairs of affordances "
            f"with their images; found no stage0.jsonl. `lit-modules pairs ONTOLOGY --folder {root}` makes them."
        )
    test: list[ImagePair] = []
    if (path := root / "test.jsonl").is_file():
        test = _rows(path, 0, sum(map(len, stages)), problems)
    empty = [number for number, rows in enumerate(stages) if not rows]
    if empty and not problems:
        problems.append(f"{root / f'stage{empty[0]}.jsonl'} must hold at least one pair, got none")
    if problems:
        raise ValueError(listing(problems, "The pairs cannot be read", "problem"))
    borders = [max(row.tdistance for row in rows) for rows in stages[:-1]]
    staged = [replace(row, stage=sum(border < row.tdistance for border in borders)) for row in test]
    return [row for rows in stages for row in rows], staged


def listing(problems: Sequence[str], title: str, noun: str) -> str:
    """Return a message that lists what is wrong, the first few by name."""
    shown = [f"  {problem}" for problem in problems[:_LISTED]]
    more = [f"  and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    count = f"{len(problems)} {noun}{'' if len(problems) == 1 else 's'}"
    return "\n".join([f"{title}, {count}:", *shown, *more])


class ImageStore:
    """Images of one size or of a few, 8 bits, in memory as far as they fit, and in a few variants each.

    Variant 0 is the image, variant 1 its mirror image. Later ones are crops of 85 to 100 % of the sides, every second
    one mirrored; which crop depends on the path, the seed and the number alone.

    Args:
        image_size: Side in pixels.
        resize: ``"crop"`` cuts the middle out, as much of it as has the size's aspect ratio; ``"squash"`` ignores the
            image's own.
        variants: Variants of each image, at least 1.
        memory_bytes: Bound of the images in memory, in bytes; further ones are decoded at each access.
        seed: Seed of the crops.
        sizes: Height and width of each bucket; ``None`` is the square alone.
    """

    def __init__(
        self,
        image_size: int,
        resize: Resize = "crop",
        variants: int = 1,
        memory_bytes: int = 2**32,
        seed: int = 0,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        self.sizes = ((image_size, image_size),) if sizes is None else tuple(sizes)
        self.resize, self.variants = resize, variants
        self.memory_bytes, self.seed = memory_bytes, seed
        self._kept: dict[tuple[Path, int], list[Tensor]] = {}
        self._buckets: dict[Path, int] = {}
        self._used = 0

    def load(self, paths: Sequence[Path]) -> None:
        """Decode each image once, to check it, and keep what fits, in the size that is nearest to it.

        Raises:
            ValueError: If images are missing or not accepted, see :func:`lit_modules.utils.images.read_picture`; lists
                them all.
        """
        paths = [path for path in dict.fromkeys(paths) if path not in self._buckets]
        problems = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = track(zip(paths, pool.map(self._try, paths), strict=True), "reading images", len(paths))
            for path, decoded in results:
                if isinstance(decoded, str):
                    problems.append(decoded)
                else:
                    self._buckets[path], crops = decoded
                    self._keep(path, self._buckets[path], crops)
        if problems:
            raise ValueError(listing(problems, "Images cannot be read", "image"))

    def bucket_of(self, path: Path) -> int:
        """Return the number of the size whose aspect ratio is nearest to that of an image that was loaded."""
        return self._buckets[path]

    def get(self, path: Path, variant: int = 0, bucket: int = 0) -> Tensor:
        """Return a variant of an image in the size of a bucket, uint8, ``(3, height, width)``."""
        crop, mirrored = divmod(variant, 2)
        kept = self._kept.get((path, bucket))
        if kept is None and self._fits(bucket):
            kept = self._decode(read_picture_file(path), path, bucket, range(self._crops))
            self._keep(path, bucket, kept)
        image = self._decode(read_picture_file(path), path, bucket, [crop])[0] if kept is None else kept[crop]
        return image.flip(-1) if mirrored else image

    @property
    def _crops(self) -> int:
        return (self.variants + 1) // 2

    def _bytes(self, bucket: int) -> int:
        height, width = self.sizes[bucket]
        return self._crops * 3 * height * width

    def _fits(self, bucket: int) -> bool:
        return self._used + self._bytes(bucket) <= self.memory_bytes

    def _keep(self, path: Path, bucket: int, crops: list[Tensor]) -> None:
        if self._fits(bucket):
            self._kept[path, bucket] = crops
            self._used += self._bytes(bucket)

    def _try(self, path: Path) -> tuple[int, list[Tensor]] | str:
        try:
            image = read_picture_file(path)
        except ValueError as error:
            return str(error).rstrip(".")
        bucket = nearest_bucket(image.height, image.width, self.sizes)
        return bucket, self._decode(image, path, bucket, range(self._crops))

    def _decode(self, image: Image.Image, path: Path, bucket: int, crops: Sequence[int]) -> list[Tensor]:
        height, width = self.sizes[bucket]
        boxes = [self._box(image.width, image.height, path, crop, width / height) for crop in crops]
        resized = [np.array(image.resize((width, height), Image.Resampling.LANCZOS, box)) for box in boxes]
        return [torch.from_numpy(pixels).permute(2, 0, 1).contiguous() for pixels in resized]

    def _box(self, width: int, height: int, path: Path, crop: int, ratio: float) -> tuple[float, float, float, float]:
        """Return what part of an image a crop shows, of a ratio of width to height."""
        random = Random(f"{self.seed}/{path.name}/{crop}")
        share = random.uniform(0.85, 1.0) if crop else 1.0
        across, down = (random.random(), random.random()) if crop else (0.5, 0.5)
        wide, high = float(width), float(height)
        if self.resize == "crop":
            wide, high = min(wide, height * ratio), min(high, width / ratio)
        left, top = (width - wide * share) * across, (height - high * share) * down
        return left, top, left + wide * share, top + high * share


def _rows(path: Path, stage: int, first: int, problems: list[str]) -> list[ImagePair]:
    rows: list[ImagePair] = []
    try:
        lines = numbered_lines(path)
    except ValueError as error:
        problems.append(str(error).rstrip("."))
        return rows
    for place, line in lines:
        try:
            rows.append(_row(parse_json(line, place), path.parent, stage, first + len(rows)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).removeprefix(f"{place}: ")
            problems.append(f"{place}: {reason.rstrip('.')}")
    return rows


def _row(data: Any, folder: Path, stage: int, number: int) -> ImagePair:
    if not isinstance(data, Mapping):
        raise TypeError(f"must be an object, got {type(data).__name__}")
    affordances = _names(data["pos_prompts"], "pos_prompts")
    if not affordances:
        raise ValueError("pos_prompts must name at least one affordance")
    tdistance = float(data["tdistance"])
    if not 0 <= tdistance <= 1:
        raise ValueError(f"tdistance must lie in [0, 1], got {tdistance}")
    positives = [folder / name for name in _names(data.get("pos_paths") or [], "pos_paths")]
    owned = data.get("neg_paths") or {}
    if not isinstance(owned, Mapping):
        raise TypeError(f"neg_paths must map concepts to lists of images, got {owned!r}")
    negatives = []
    for concept, images in owned.items():
        if not isinstance(images, Sequence) or isinstance(images, str):
            raise TypeError(f"neg_paths must map concepts to lists of images, got {images!r} for {concept!r}")
        names = [image["image_path"] if isinstance(image, Mapping) else image for image in images]
        negatives += [folder / name for name in _names(names, "neg_paths")]
    concepts = _names(data.get("neg_prompts") or list(owned), "neg_prompts")
    pair_id = data.get("pair_id", number)
    if isinstance(pair_id, bool) or not isinstance(pair_id, int):
        raise TypeError(f"pair_id must be a whole number, got {pair_id!r}")
    return ImagePair(pair_id, affordances, concepts, tdistance, stage, tuple(positives), tuple(negatives))


def _names(values: Any, field: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise TypeError(f"{field} must be a list of strings, got {values!r}")
    return tuple(values)
