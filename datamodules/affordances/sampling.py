"""The order of a curriculum: which pairs of affordances a run meets in which epoch."""

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ..common.checks import check_at_least, check_choices
from ..common.sampling import BatchSampler, orders, permutation
from .buckets import Buckets, batches_of_one_bucket

Mode = Literal["staged", "cumulative", "competence", "random"]


class CurriculumSampler(BatchSampler):
    r"""Yield this rank's part of each batch, from close pairs to distant ones.

    Every epoch has as many batches as the largest stage fills, so a run needs no new loader when the stage changes, and
    the modes can be compared at equal cost.

    - ``"staged"``, the paper's: with ``S`` stages, stage ``k`` has the epochs from ``k epochs / S`` on, and stages are
      not mixed. Each of its items comes once an epoch; a stage that fills fewer batches than the largest begins anew
      for the missing rows.
    - ``"cumulative"``: the same, but each place is given, with probability ``replay``, to an item of the stages before.
    - ``"competence"``: batch ``b`` of ``T`` in the run is drawn from the items whose difficulty is at most
      :math:`c = \sqrt{(b / T) (1 - c_0^2) + c_0^2}`, and from the easiest that fill a batch in any case. Without
      stages.
    - ``"random"``: all items in one random order after the other, cut into epochs. Without stages.

    The rows of an epoch depend on the arguments, the number of the epoch and ``starts`` alone, so a resumed run goes on
    as one that was not stopped. ``W`` ranks together see the rows that one rank with ``W`` times the batch sees.

    Args:
        stages: Stage of each item from 0; every stage up to the largest has items.
        epochs: Epochs of the whole run; at least as many as stages in the modes that have them.
        batch_size: Items per rank and batch.
        mode: The order.
        difficulty: Difficulty of each item in [0, 1], such as its transformed distance; needed by ``"competence"``.
        replay: Probability of an item of an earlier stage in mode ``"cumulative"``, in [0, 1).
        initial_competence: Share ``c_0`` that is admitted at the start in mode ``"competence"``, in (0, 1].
        choices: Yield each item with a number below this, that says how to draw its images: ``(item, number)``; the
            number is as reproducible as the order. ``None`` yields items alone.
        buckets: Aspect-ratio buckets of items with their numbers; each batch has one, and items are yielded as
            ``(item, number, bucket)``, see :func:`~datamodules.affordances.buckets.batches_of_one_bucket`. They go with
            ``choices``, and not with mode ``"competence"``, which orders single batches.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        starts: First epoch of each stage, which :meth:`promote` brings forward; empty in modes without stages.

    Raises:
        ValueError: If an argument is out of its range, or there are fewer epochs than stages.

    Example:
        >>> sampler = CurriculumSampler([0, 0, 1, 1, 2, 2], epochs=3, batch_size=2)
        >>> sampler.set_epoch(1)
        >>> sampler.stage, [sorted(batch) for batch in sampler]
        (1, [[2, 3]])

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793 (staged); Platanios et
        al., "Competence-based Curriculum Learning for Neural Machine Translation", arXiv 1903.09848, equation 7.
    """

    def __init__(
        self,
        stages: Sequence[int],
        epochs: int,
        batch_size: int,
        mode: Mode = "staged",
        difficulty: Sequence[float] | None = None,
        replay: float = 0.2,
        initial_competence: float = 0.01,
        choices: int | None = None,
        buckets: Buckets | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.members = _members(stages)
        count = len(self.members)
        check_choices(get_args(Mode), mode=mode)
        check_at_least(1, batch_size=batch_size, epochs=epochs, choices=choices)
        staged = mode in ("staged", "cumulative")
        if staged and epochs < count:
            raise ValueError(
                f"epochs must be at least {count}, one for each stage of the curriculum, got {epochs}; "
                "train longer, or make fewer stages."
            )
        if not 0 <= replay < 1:
            raise ValueError(f"replay must lie in [0, 1), got {replay}.")
        if not 0 < initial_competence <= 1:
            raise ValueError(f"initial_competence must lie in (0, 1], got {initial_competence}.")
        if buckets is not None and mode == "competence":
            raise ValueError(
                "mode 'competence' orders the batches of an epoch, and aspect-ratio buckets rearrange them; take "
                "another mode, or leave the buckets out."
            )
        # an epoch is as long as the largest stage
        super().__init__(max(map(len, self.members)), batch_size, seed, True, rank, world_size)
        self.items = len(stages)
        self.epochs = epochs
        self.mode = mode
        self.replay = replay
        self.initial_competence = initial_competence
        self.choices, self.buckets = choices, buckets
        # the first epoch for which count * epoch // epochs is the stage
        self.starts = [-(-stage * epochs // count) for stage in range(count)] if staged else []
        self._easiest: list[tuple[float, int]] = []
        if mode == "competence":
            self._easiest = _sorted_by_difficulty(difficulty, self.items)

    @property
    def data_epoch(self) -> int:
        """Number of the epoch by the data, which a resumed run may have to count apart from the trainer's."""
        return self.epoch - self.lag

    @property
    def stage(self) -> int | None:
        """Stage of this epoch from 0, or ``None`` in modes without stages."""
        return self.stage_of(self.data_epoch)

    def stage_of(self, epoch: int) -> int | None:
        """Return the stage of an epoch, or ``None`` in modes without stages."""
        return bisect_right(self.starts, epoch) - 1 if self.starts else None

    def promote(self) -> bool:
        """Let the next stage begin with the next epoch, unless it does so anyway; later stages keep their time.

        Returns:
            Whether a stage was brought forward.
        """
        stage = self.stage
        if stage is None or stage + 1 >= len(self.starts) or self.starts[stage + 1] <= self.data_epoch + 1:
            return False
        self.starts[stage + 1] = self.data_epoch + 1
        return True

    def competence(self, step: int) -> float:
        """Return the greatest difficulty that mode ``"competence"`` admits.

        Args:
            step: Batches of the run so far.
        """
        least = self.initial_competence**2
        return math.sqrt(min(1.0, step / (self.epochs * len(self))) * (1 - least) + least)

    def order(self) -> list[Any]:
        """Return the items of this epoch, each with its number if ``choices`` is given."""
        epoch = self.data_epoch
        if self.mode == "random":
            number, skipped = divmod(epoch * self.length, self.items)
            passes = (permutation(self.items, self.seed, number) for number in itertools.count(number))
            items = list(itertools.islice(itertools.chain.from_iterable(passes), skipped, skipped + self.length))
        elif self.mode == "competence":
            items = self._by_competence(epoch)
        else:
            items = self._of_stage(epoch)
        if self.choices is None:
            return items
        generator = random.Random(f"{self.seed}/{epoch}/choices")
        drawn = [(item, generator.randrange(self.choices)) for item in items]
        if self.buckets is None:
            return drawn
        arrangement = random.Random(f"{self.seed}/{epoch}/buckets")
        arranged = batches_of_one_bucket(drawn, self.buckets.bucket_of, self.global_batch_size, arrangement)
        return [(*row, bucket) for row, bucket in arranged]

    def identity(self) -> dict[str, int | str]:
        """Return what two samplers must share to give the same batches."""
        own: dict[str, int | str] = {
            "rows of an epoch": self.length,
            "rows": self.items,
            "mode": self.mode,
            "epochs": self.epochs,
            "first epochs of the stages": ", ".join(map(str, self.starts)),
        }
        own |= {"replay": str(self.replay)} if self.mode == "cumulative" else {}
        own |= {"initial competence": str(self.initial_competence)} if self.mode == "competence" else {}
        own |= {"ways to draw an item": self.choices} if self.choices is not None else {}
        own |= {"sizes of images": str(self.buckets.sizes)} if self.buckets is not None else {}
        return {**super().identity(), **own}

    def _of_stage(self, epoch: int) -> list[int]:
        stage = self.stage_of(epoch) or 0
        own = self.members[stage]
        rows = len(own) if -(-len(own) // self.global_batch_size) == len(self) else self.length
        items = [own[index] for index in orders(len(own), rows, self.seed, epoch, itertools.count())]
        earlier = [item for members in self.members[:stage] for item in members]
        if self.mode == "staged" or not earlier:
            return items
        coins = random.Random(f"{self.seed}/{epoch}/replay")
        replayed = orders(len(earlier), rows, self.seed, epoch, itertools.count(-1, -1))
        return [
            earlier[other] if coins.random() < self.replay else item
            for item, other in zip(items, replayed, strict=True)
        ]

    def _by_competence(self, epoch: int) -> list[int]:
        size, items = self.global_batch_size, []
        for number in range(len(self)):
            admitted = bisect_right(self._easiest, (self.competence(epoch * len(self) + number), self.items))
            pool = [item for _, item in self._easiest[: max(admitted, min(size, self.items))]]
            generator = random.Random(f"{self.seed}/{epoch}/competence/{number}")
            # a batch that is larger than the pool goes through it again
            while len(pool) < size:
                pool += pool
            items += generator.sample(pool, size)
        return items


def _members(stages: Sequence[int]) -> list[list[int]]:
    """Return the items of each stage."""
    if not stages:
        raise ValueError("stages must name the stage of at least one item, got none.")
    for item, stage in enumerate(stages):
        if isinstance(stage, bool) or int(stage) != stage or stage < 0:
            raise ValueError(f"stages must be whole numbers from 0, got {stage!r} for item {item}.")
    members: list[list[int]] = [[] for _ in range(int(max(stages)) + 1)]
    for item, stage in enumerate(stages):
        members[int(stage)].append(item)
    empty = [number for number, items in enumerate(members) if not items]
    if empty:
        raise ValueError(
            f"Every stage from 0 to {len(members) - 1} must have items, got none for stage {empty[0]}; "
            "number the stages without a gap."
        )
    return members


def _sorted_by_difficulty(difficulty: Sequence[float] | None, items: int) -> list[tuple[float, int]]:
    if difficulty is None:
        raise ValueError("mode 'competence' needs the difficulty of each item, got None.")
    if len(difficulty) != items:
        raise ValueError(f"difficulty must have a number for each of the {items} items, got {len(difficulty)}.")
    for item, value in enumerate(difficulty):
        if not 0 <= value <= 1:
            raise ValueError(f"difficulty must lie in [0, 1], got {value} for item {item}.")
    return sorted((float(value), item) for item, value in enumerate(difficulty))
