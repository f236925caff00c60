"""Seeded batches that a stopped run takes up where it left them."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lit_modules.utils.resuming import batch_under_way, bring


def permutation(length: int, seed: int, epoch: int, stream: int = 0) -> list[int]:
    """Draw an order of ``range(length)`` that depends on the arguments alone."""
    order = list(range(length))
    random.Random(f"{seed}/{epoch}/{stream}").shuffle(order)
    return order


class BatchSampler(DistributedSampler[Any]):
    """Yield this rank's part of each batch as a tuple of indices.

    The order of an epoch is a function of the seed and the epoch. With ``W`` ranks, batch ``b`` covers places
    ``b * W * batch_size`` to ``(b + 1) * W * batch_size`` of that order, so ``W`` ranks together see the rows that one
    rank with ``W`` times the batch sees. The last batch may be smaller and is spread over the ranks; only if it has
    fewer rows than there are ranks does it borrow rows from the beginning of the order, as every rank needs one.

    It is a ``DistributedSampler``, so Lightning calls ``set_epoch`` and puts no sampler of its own in its place.

    Args:
        length: Number of rows.
        batch_size: Rows per rank and batch.
        seed: Seed of the order.
        shuffle: Whether to shuffle.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        # the base class asks the dataset for its length only
        super().__init__(cast(Any, range(length)), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.length = length
        self.batch_size = batch_size
        # set by a loader that was resumed: the first batch to yield, and by how much the epoch of the data is behind
        self.start = 0
        self.lag = 0

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-self.length // self.global_batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield batches, from number ``start`` on."""
        order = self.order()
        size, ranks = self.global_batch_size, self.num_replicas
        batches = []
        for number in range(self.start, len(self)):
            batch = order[number * size : (number + 1) * size]
            borrowed = itertools.cycle(order)
            while len(batch) < ranks:
                batch.append(next(borrowed))
            share, extra = divmod(len(batch), ranks)
            first = self.rank * share + min(self.rank, extra)
            batches.append(tuple(batch[first : first + share + (self.rank < extra)]))
        return iter(batches)

    @property
    def global_batch_size(self) -> int:
        """Rows of a batch on all ranks together."""
        return self.batch_size * self.num_replicas

    def order(self) -> list[Any]:
        """Return the order of this epoch."""
        return permutation(self.length, self.seed, self.epoch - self.lag) if self.shuffle else list(range(self.length))

    def identity(self) -> dict[str, int | str]:
        """Return the facts that two samplers of the same batches share."""
        return {"rows": self.length, "batch size on all devices": self.global_batch_size, "seed": self.seed}


class PairSampler(BatchSampler):
    """Yield tuples of pairs: one pass over the anchor set, each row with a random row of the other set.

    The other set is gone through in a random order, and in another one once it is exhausted.

    Args:
        forget: Number of forget rows.
        retain: Number of retain rows.
        anchor: The set that an epoch goes through once.
        batch_size: Pairs per rank and batch.
        seed: Seed of both orders.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        forget: int,
        retain: int,
        anchor: Literal["forget", "retain"],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        length = forget if anchor == "forget" else retain
        super().__init__(length, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.other = retain if anchor == "forget" else forget
        self.anchor = anchor

    def order(self) -> list[tuple[int, int]]:
        """Return the pairs of this epoch, each a forget index and a retain index."""
        epoch = self.epoch - self.lag
        anchors = permutation(self.length, self.seed, epoch)
        streams = range(1, 2 + self.length // self.other)
        others = [row for stream in streams for row in permutation(self.other, self.seed, epoch, stream)]
        pairs = zip(anchors, others, strict=False)
        return [(a, b) if self.anchor == "forget" else (b, a) for a, b in pairs]

    def identity(self) -> dict[str, int | str]:
        """Return the facts that two samplers of the same batches share."""
        return {**super().identity(), "rows of the other set": self.other, "anchor": self.anchor}


class GroupSampler(BatchSampler):
    """Yield tuples of row numbers, one of each of several tasks: one pass over the longest of the anchor tasks.

    Every task has a random order of its own, and another one each time it is exhausted.

    Args:
        lengths: Number of rows of each task.
        anchors: Indices in ``lengths`` of the tasks of which an epoch goes through the longest once.
        batch_size: Rows of each task per rank and batch.
        seed: Seed of all orders.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        anchors: Sequence[int],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        length = max(lengths[index] for index in anchors)
        super().__init__(length, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.lengths = tuple(lengths)
        self.anchors = tuple(anchors)

    def order(self) -> list[tuple[int, ...]]:
        """Return a row number of each task, for each row of the longest anchor."""
        columns: list[list[int]] = []
        for index, length in enumerate(self.lengths):
            column: list[int] = []
            while len(column) < self.length:
                stream = index + len(self.lengths) * (len(column) // length)
                column += permutation(length, self.seed, self.epoch - self.lag, stream)
            columns.append(column[: self.length])
        return list(zip(*columns, strict=True))

    def identity(self) -> dict[str, int | str]:
        """Return the facts that two samplers of the same batches share."""
        lengths = ", ".join(map(str, self.lengths))
        return {**super().identity(), "rows of each task": lengths, "anchor tasks": ", ".join(map(str, self.anchors))}


class ResumableLoader(DataLoader[Any]):
    """A loader of whole batches that knows how far it has come; :func:`batch_loader` makes it.

    Lightning saves ``state_dict`` with a checkpoint, in the middle of an epoch too, and gives it back when the run is
    resumed. What counts are the batches handed out, whatever the workers have prefetched. From then on each pass begins
    where the last one ended, whatever number Lightning gives to its epoch: a run that ``max_steps`` stopped is resumed
    by Lightning as if in a later epoch, and if it was stopped at the end of one, with an epoch of a single batch.

    It keeps the constructor of ``DataLoader``, because Lightning builds loaders anew for ``predict``.
    """

    limit: int | float = 1.0
    trainer: Trainer | None = None
    _epoch = 0
    _batches = 0
    _resume: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base class promises a class of its own
        """Yield batches; after a resume in the middle of an epoch, those that were still to come."""
        # A generator: nothing runs before the first batch is asked for. Lightning makes the iterator before it calls
        # `set_epoch`, and workers that began at once would fetch the batches of another epoch.
        if isinstance(self.sampler, BatchSampler):
            self._place(self.sampler)
        else:  # `Trainer(overfit_batches=...)` puts one in its place that does not shuffle
            self._batches = 0
        for batch in super().__iter__():
            self._batches += 1
            yield batch
            if self._batches >= self._length_of_epoch():
                break

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch of the data and the number of its batches that were handed out, less one that broke off."""
        identity = self.sampler.identity() if isinstance(self.sampler, BatchSampler) else {}
        broken = self.trainer is not None and batch_under_way(self.trainer)
        return {"epoch": self._epoch, "batches": self._batches - broken, "identity": identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass go on where the state was taken."""
        self._epoch, self._batches = state_dict["epoch"], state_dict["batches"]
        self._resume = state_dict

    def _place(self, sampler: BatchSampler) -> None:
        """Put the sampler where the coming pass begins."""
        if self._resume is None:
            self._epoch, self._batches = sampler.epoch, 0
        elif self._batches >= self._length_of_epoch():
            self._epoch, self._batches = self._epoch + 1, 0
        elif self._batches:
            self._check_identity(self._resume, sampler)
        sampler.start, sampler.lag = self._batches, sampler.epoch - self._epoch

    def _length_of_epoch(self) -> int:
        return min(len(self), self.limit) if isinstance(self.limit, int) else int(len(self) * self.limit)

    def _check_identity(self, state: dict[str, Any], sampler: BatchSampler) -> None:
        saved, now = state["identity"], sampler.identity()
        for name in {**saved, **now}:
            if saved.get(name) != now.get(name):
                raise ValueError(
                    f"A run that was stopped after batch {state['batches']} of epoch {state['epoch']} can only be "
                    f"resumed with the same batches: {name} must be {saved.get(name)!r}, got {now.get(name)!r}."
                )


def batch_loader(
    dataset: Dataset[Any], sampler: BatchSampler, num_workers: int = 0, limit: int | float = 1.0
) -> ResumableLoader:
    """Return a loader that leaves the global random state alone.

    Args:
        dataset: Takes a tuple of indices and returns a batch.
        sampler: Yields tuples of indices.
        num_workers: Worker processes.
        limit: Batches, or share of them, after which the Trainer ends an epoch: its ``limit_train_batches``.
    """
    loader = ResumableLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        # workers draw their seed from it, and not from the global generator
        generator=torch.Generator().manual_seed(sampler.seed % 2**63),
    )
    loader.limit = limit
    return loader


def ordered_loader(
    module: LightningDataModule, dataset: Dataset[Any], batch_size: int, seed: int, num_workers: int
) -> ResumableLoader:
    """Return :func:`batch_loader` of this process's share of a datamodule's rows, in order."""
    sampler = BatchSampler(len(dataset), batch_size, seed, False, *place_of(module))  # type: ignore[arg-type]
    return batch_loader(dataset, sampler, num_workers)


def place_of(module: LightningDataModule) -> tuple[int, int]:
    """Return the number of this process and of all, of a datamodule with or without a trainer."""
    return (0, 1) if module.trainer is None else (module.trainer.global_rank, module.trainer.world_size)


def training_loader(
    module: LightningDataModule, dataset: Dataset[Any], sampler: BatchSampler, num_workers: int
) -> ResumableLoader:
    """Return :func:`batch_loader` with the limit of a datamodule's trainer, and mend how that resumes."""
    limit = 1.0 if module.trainer is None else module.trainer.limit_train_batches
    loader = batch_loader(dataset, sampler, num_workers, 1.0 if limit is None else limit)
    loader.trainer = module.trainer
    if module.trainer is not None:
        module.trainer.callbacks += bring(module.trainer)  # type: ignore[attr-defined]
    return loader


def _unchanged(batch: Any) -> Any:
    return batch
