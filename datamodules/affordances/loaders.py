"""Loaders of pairs of affordances, in training along the curriculum, and the prompt."""

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ..common.sampling import ResumableLoader, ordered_loader, place_of, training_loader
from .buckets import Buckets
from .sampling import CurriculumSampler

TEMPLATE = "a new design that has functions of {affordances}"
"""Prompt of a pair, for training and inference."""
CHOICES = 2**31
"""Ways to draw an item's images."""


class DrawnSet(Protocol):
    """A set whose index is a tuple of places, each with a number that chooses captions and images."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, places: Any, /) -> dict[str, Any]:
        """Return the batch of some places."""


def curriculum_loader(
    module: LightningDataModule,
    data: Dataset[Any],
    stages: Sequence[int],
    difficulty: Sequence[float],
    buckets: Buckets | None = None,
) -> ResumableLoader:
    """Return the batches of a curriculum of training pairs, each with its stage and its transformed distance.

    The datamodule has the arguments ``epochs``, ``batch_size``, ``mode``, ``seed`` and ``num_workers``.

    Raises:
        ValueError: If the number of epochs is not known.
    """
    arguments, (rank, ranks) = module.hparams, place_of(module)
    epochs = arguments["epochs"]
    if epochs is None and module.trainer is not None:
        epochs = module.trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ValueError(
            "The curriculum needs to know how many epochs there are: give the datamodule epochs, or the trainer "
            f"max_epochs; got {epochs}."
        )
    own = {"mode": arguments["mode"], "seed": arguments["seed"], "rank": rank, "world_size": ranks}
    sampler = CurriculumSampler(
        stages, int(epochs), arguments["batch_size"], difficulty=difficulty, choices=CHOICES, buckets=buckets, **own
    )
    return training_loader(module, data, sampler, arguments["num_workers"])


def evaluation_loader(module: LightningDataModule, data: DrawnSet, times: int) -> ResumableLoader:
    """Return a set in order, each item a number of times, each time with other captions and images."""
    size, seed, workers = (module.hparams[name] for name in ("eval_batch_size", "seed", "num_workers"))
    return ordered_loader(module, _Repeated(data, times), size, seed, workers)


def pixels(images: Tensor) -> Tensor:
    """Return 8-bit images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class _Repeated(Dataset[dict[str, Any]]):
    """A set gone through several times; the number of the pass chooses captions and images."""

    def __init__(self, data: DrawnSet, times: int) -> None:
        self.data, self.times = data, times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, places: Sequence[int]) -> dict[str, Any]:
        return self.data[[(place // self.times, place % self.times) for place in places]]
