"""The curriculum: pairs of affordances from close to distant, in stages of equal size."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lit_modules.synthia.ontology.distance import TOLERANCE, AffordanceDistance, AffordancePair
from lit_modules.utils.files import write_whole
from lit_modules.utils.json_lines import read_json_lines
from lit_modules.utils.ontology import Ontology

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
"""Edges of the bins that pairs are drawn from; above the last one nothing is drawn directly."""


@dataclass(frozen=True)
class CurriculumPair:
    """A pair of affordances to compose.

    Args:
        pair_id: Number of the pair, unique in a curriculum.
        pos_prompts: The two affordances.
        neg_prompts: Names of the existing concepts that own one of them.
        distance: Distance ``D_A`` of the affordances.
        tdistance: The distance after :func:`transform`, in [0, 1].
        stage: Stage from 0, the closest pairs; ``None`` for a test pair.
    """

    pair_id: int
    pos_prompts: tuple[str, str]
    neg_prompts: tuple[str, ...]
    distance: float
    tdistance: float
    stage: int | None


@dataclass(frozen=True)
class Curriculum:
    """Training pairs in stages, and test pairs that share none with them.

    Args:
        train: Training pairs, from close to distant.
        test: Test pairs, from close to distant.
        num_stages: Number of stages.
    """

    train: tuple[CurriculumPair, ...]
    test: tuple[CurriculumPair, ...]
    num_stages: int

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            folder: Folder of ``stage0.jsonl`` and so on and ``test.jsonl``.
        """
        sets = {path.stem: [row for _, row in read_json_lines(path)] for path in Path(folder).glob("*.jsonl")}
        pairs = {
            name: [
                CurriculumPair(**row | {key: tuple(row[key]) for key in ("pos_prompts", "neg_prompts")}) for row in rows
            ]
            for name, rows in sets.items()
        }
        stages = [pairs[f"stage{number}"] for number in range(len(pairs) - 1)]
        return cls(tuple(pair for stage in stages for pair in stage), tuple(pairs["test"]), len(stages))

    def stages(self) -> list[list[CurriculumPair]]:
        """Return the training pairs of each stage."""
        return [[pair for pair in self.train if pair.stage == stage] for stage in range(self.num_stages)]

    def save(self, folder: str | Path) -> list[Path]:
        """Write JSON lines, ``stage0.jsonl`` and so on and ``test.jsonl``, a pair each; return the files.

        Args:
            folder: Folder of the files; it is made, and files of the same names are replaced, those of further stages
                removed.
        """
        target = Path(folder)
        sets = {f"stage{number}": pairs for number, pairs in enumerate(self.stages())} | {"test": list(self.test)}
        written = []
        for name, pairs in sets.items():
            lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
            written.append(write_whole(target / f"{name}.jsonl", "".join(lines)))
        number = self.num_stages
        while (left := target / f"stage{number}.jsonl").exists():  # of a curriculum with more stages
            left.unlink()
            number += 1
        return written


def build_curriculum(
    ontology: Ontology,
    distance: AffordanceDistance | None = None,
    num_pairs: int = 600,
    num_test_pairs: int = 0,
    num_stages: int = 3,
    seed: int = 42,
) -> Curriculum:
    """Choose pairs of affordances and put them in stages.

    Pairs at a distance of exactly 0 or 1 are dropped. The others are spread by :func:`transform` and drawn by
    :func:`stratified_sample`; the training pairs are cut by :func:`split_stages`. Test pairs are drawn in the same way
    from what is left.

    Args:
        ontology: Where affordances and concepts come from.
        distance: How affordances are compared; by default structurally, without names.
        num_pairs: Training pairs; the paper's ablation has 200, 400 and 600.
        num_test_pairs: Test pairs.
        num_stages: Stages of equal size.
        seed: Seed of both draws.

    Raises:
        ValueError: If there are fewer pairs than asked for, or fewer training pairs than stages.

    Example:
        >>> curriculum = build_curriculum(Ontology.from_file("household"), num_pairs=30, num_test_pairs=8)
        >>> [len(stage) for stage in curriculum.stages()], len(curriculum.test)
        ([10, 10, 10], 8)

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """
    if num_pairs < num_stages:
        raise ValueError(f"num_pairs must be at least num_stages ({num_stages}), got {num_pairs}.")
    if num_test_pairs < 0:
        raise ValueError(f"num_test_pairs must not be negative, got {num_test_pairs}.")
    pairs = usable_pairs((distance or AffordanceDistance())(ontology).pairs())
    if num_pairs + num_test_pairs > len(pairs):
        raise ValueError(
            f"num_pairs and num_test_pairs must be at most {len(pairs)} together, the pairs of {ontology.name} whose "
            f"distance is neither 0 nor 1; got {num_pairs} and {num_test_pairs}."
        )
    spread = transform([pair.distance for pair in pairs])
    chosen = stratified_sample(spread, num_pairs, seed=seed)
    rest = np.setdiff1d(np.arange(len(pairs)), chosen)
    tested = rest[stratified_sample(spread[rest], num_test_pairs, seed=seed)] if num_test_pairs else rest[:0]
    chosen, tested = (part[np.argsort(spread[part], kind="stable")] for part in (chosen, tested))
    stages = split_stages(spread[chosen], num_stages)

    def record(number: int, index: int, stage: int | None) -> CurriculumPair:
        first, second, value = pairs[index]
        owners = [*ontology.concepts_with(first)]
        owners += [path for path in ontology.concepts_with(second) if path not in owners]
        names = tuple(dict.fromkeys(ontology.concept(path).name for path in owners))
        return CurriculumPair(number, (first, second), names, value, float(spread[index]), stage)

    train = [record(number, int(index), int(stages[number])) for number, index in enumerate(chosen)]
    test = [record(len(train) + number, int(index), None) for number, index in enumerate(tested)]
    return Curriculum(tuple(train), tuple(test), num_stages)


def usable_pairs(pairs: Sequence[AffordancePair]) -> list[AffordancePair]:
    """Return the pairs whose distance is neither 0 nor 1: they share something, and not everything."""
    return [pair for pair in pairs if min(abs(pair.distance), abs(pair.distance - 1)) > TOLERANCE]


def transform(distances: Sequence[float] | Numbers) -> Numbers:
    """Spread distances over [0, 1].

    With ``x = (d - min d + 1e-6)^3`` scaled to [0, 1], and ``r`` the rank scaled to [0, 1], it is ``0.4 r + 0.6 x``
    scaled to [0, 1]. Equal distances keep their order, and so get different values.

    Args:
        distances: Distances ``d``, at least one.

    Returns:
        ``t`` in the order of the distances, from 0 for the least to 1 for the greatest; 0 for a single one.

    Raises:
        ValueError: If there is none, or one is not finite.

    Example:
        >>> transform([0.2, 0.4, 0.6, 0.8]).round(4).tolist()
        [0.0, 0.1556, 0.4444, 1.0]

    References:
        The authors' code of arXiv 2502.17793.
    """
    # rounded, so that a sum that rounds otherwise on another machine changes no rank
    values = np.round(np.asarray(distances, dtype=np.float64), 12)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"distances must be finite numbers, at least one; got {np.asarray(distances)!r}.")
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return _scaled(0.4 * _scaled(ranks) + 0.6 * _scaled((values - values.min() + 1e-6) ** 3))


def bin_of(spread: Sequence[float] | Numbers, edges: Sequence[float] = EDGES) -> Indices:
    """Return the bin of each value in [0, 1], from 0: bins hold their upper edge, and the first its lower one too.

    ``len(edges) - 1`` for values above the last edge, -1 for those below the first.

    Example:
        >>> bin_of([0.0, 0.1, 0.11, 0.9, 1.0]).tolist()
        [0, 0, 1, 7, 8]
    """
    values = np.asarray(spread, dtype=np.float64)
    bins = np.searchsorted(np.asarray(edges), values, side="left") - 1
    return np.where(values == edges[0], 0, bins).astype(np.int64)


def stratified_sample(
    spread: Sequence[float] | Numbers, size: int, edges: Sequence[float] = EDGES, seed: int = 42
) -> Indices:
    """Draw as many items from each bin, without replacement, and fill up from all that is left.

    ``size // bins`` items are drawn from each bin, or all of it. What is missing is drawn from everything that is
    left, which may lie above the last edge.

    Args:
        spread: Value of each item in [0, 1], as :func:`transform` returns them.
        size: Items to draw.
        edges: Edges of the bins in rising order.
        seed: Seed of the draw.

    Returns:
        Places of the drawn items, in rising order.

    Raises:
        ValueError: If there are fewer items, ``size`` is not positive, or ``edges`` does not rise.

    Example:
        >>> stratified_sample([0.05, 0.15, 0.15, 0.95], 2, edges=(0.0, 0.1, 0.2)).tolist() in ([0, 1], [0, 2])
        True
    """
    values = np.asarray(spread, dtype=np.float64)
    if not 1 <= size <= len(values):
        raise ValueError(f"size must lie between 1 and the {len(values)} items there are, got {size}.")
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges must be at least two rising numbers, got {tuple(edges)}.")
    generator = np.random.default_rng(seed)
    bins = bin_of(values, edges)
    quota = size // (len(edges) - 1)
    drawn = []
    for number in range(len(edges) - 1):
        members = np.flatnonzero(bins == number)
        drawn.append(generator.permutation(members)[:quota])
    chosen = np.concatenate(drawn)
    rest = np.setdiff1d(np.arange(len(values)), chosen)
    filled = np.concatenate([chosen, generator.permutation(rest)[: size - len(chosen)]])
    return np.sort(filled).astype(np.int64)


def split_stages(spread: Sequence[float] | Numbers, num_stages: int = 3) -> Indices:
    """Return the stage of each item, 0 for the closest: stages of equal count in the order of the values.

    The counts differ by at most 1, the first stages being the larger; equal values keep their order.

    Raises:
        ValueError: If there are fewer items than stages.

    Example:
        >>> split_stages([0.9, 0.1, 0.5, 0.2], num_stages=3).tolist()
        [2, 0, 1, 0]
    """
    values = np.asarray(spread, dtype=np.float64)
    if not 1 <= num_stages <= len(values):
        raise ValueError(f"num_stages must lie between 1 and the {len(values)} items there are, got {num_stages}.")
    stages = np.empty(len(values), dtype=np.int64)
    for stage, members in enumerate(np.array_split(np.argsort(values, kind="stable"), num_stages)):
        stages[members] = stage
    return stages


def stage_of_epoch(epoch: int, epochs: int, num_stages: int = 3) -> int:
    """Return the stage of an epoch, from 0: each stage has an equal share of the epochs, and stages are not mixed.

    Epochs after the last of the run belong to the last stage.

    Raises:
        ValueError: If there are fewer epochs than stages: a stage would be left out.

    Example:
        >>> [stage_of_epoch(epoch, epochs=7) for epoch in range(7)]
        [0, 0, 0, 1, 1, 2, 2]
    """
    if epochs < num_stages:
        raise ValueError(f"epochs must be at least the number of stages, {num_stages}, got {epochs}.")
    return min(num_stages - 1, num_stages * epoch // epochs)


def _scaled(values: Any) -> Numbers:
    """Scale to [0, 1]; equal values all become 0."""
    least, greatest = values.min(), values.max()
    scaled: Numbers = (values - least) / (greatest - least) if greatest > least else np.zeros(len(values))
    return scaled
