"""Seeded batches that a stopped run takes up where it left them."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler


def permutation(length: int, seed: int, epoch: int, stream: int = 0) -> list[int]:
    """Draw an order of ``range(length)`` that depends on the three numbers alone."""
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + epoch) * 31 + stream) % 2**63)
    return torch.randperm(length, generator=generator).tolist()


class BatchSampler(DistributedSampler[Any]):
    """Yield this rank's part of each batch as a tuple of indices.

    The order of an epoch is a function of the seed and the epoch. With ``W`` ranks, batch ``b`` covers places
    ``b * W * batch_size`` to ``(b + 1) * W * batch_size`` of that order, so ``W`` ranks together see the rows that one rank
    with ``W`` times the batch sees. The last batch may be smaller; only if it has fewer rows than there are ranks does it
    borrow rows from the beginning of the order.

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
        super().__init__(range(length), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.length = length
        self.batch_size = batch_size
        self.start = 0

    def order(self) -> list[Any]:
        """Return the order of this epoch."""
        return permutation(self.length, self.seed, self.epoch) if self.shuffle else list(range(self.length))

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-self.length // (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        """Yield batches, from ``start`` on."""
        order = self.order()
        size = self.batch_size * self.num_replicas
        for number in range(self.start, len(self)):
            batch = order[number * size : (number + 1) * size]
            batch += order[: max(0, self.num_replicas - len(batch))]
            share, extra = divmod(len(batch), self.num_replicas)
            first = self.rank * share + min(self.rank, extra)
            yield tuple(batch[first : first + share + (self.rank < extra)])


class PairSampler(BatchSampler):
    """Yield pairs of a forget and a retain index: one pass over the anchor set, each with a random row of the other.

    The other set is gone through in a random order, and again if it is shorter.

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
        super().__init__(forget if anchor == "forget" else retain, batch_size, seed, True, rank, world_size)
        self.other = retain if anchor == "forget" else forget
        self.anchor = anchor

    def order(self) -> list[Any]:
        """Return the pairs of this epoch, ``(forget index, retain index)``."""
        anchors = permutation(self.length, self.seed, self.epoch)
        others: list[int] = []
        stream = 1
        while len(others) < self.length:
            others += permutation(self.other, self.seed, self.epoch, stream)
            stream += 1
        pairs = zip(anchors, others, strict=False)
        return [(a, b) if self.anchor == "forget" else (b, a) for a, b in pairs]


class ResumableLoader(DataLoader[Any]):
    """A loader of whole batches that knows how far it has come.

    Lightning saves ``state_dict`` in the middle of an epoch and gives it back when the run is resumed. What counts are the
    batches handed out, whatever the workers have prefetched. The global random state is not used.

    Args:
        dataset: Takes a tuple of indices and returns a batch.
        sampler: Yields tuples of indices.
        num_workers: Worker processes.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._handed = 0
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches; after a resume, those that were still to come."""
        # a generator: nothing runs before the first batch is asked for, so the epoch is set by then
        sampler: Any = self.sampler
        sampler.start, self._skip = self._skip, 0
        self._handed = sampler.start
        try:
            for batch in super().__iter__():
                self._handed += 1
                yield batch
        finally:
            sampler.start = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches handed out in this epoch."""
        return {"handed": self._handed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Skip batches in the next pass, unless the epoch was complete."""
        handed = int(state_dict["handed"])
        self._skip = handed if handed < len(self) else 0


class Batches(Dataset[Any]):
    """A dataset that makes a batch of a tuple of indices.

    Args:
        make: Returns the batch.
    """

    def __init__(self, make: Any) -> None:
        self.make = make

    def __getitem__(self, indices: Sequence[Any]) -> Any:
        """Return the batch of the given indices."""
        return self.make(indices)


def _as_it_is(batch: Any) -> Any:
    return batch
