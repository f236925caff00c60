"""Base of the datamodules for unlearning: a forget set and a retain set, as tokens in seeded batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_modules.utils.errors import first_line

from .batches import Column, PairBatches, PromptBatches, TaskBatches, columns_of
from .checks import check_at_least, check_choices
from .sampling import BatchSampler, PairSampler, ResumableLoader, ordered_loader, place_of, training_loader
from .text import Encoded, longest, pad_id

SETS = ("forget", "retain")
SUBSETS = ("unlearn", "all", *SETS)


class TrainingArguments(TypedDict, total=False):
    """Arguments of training batches; see :class:`ForgetRetainData`."""

    subset: Literal["unlearn", "all", "forget", "retain"]
    batch_size: int
    anchor: Literal["forget", "retain"]
    seed: int
    num_workers: int


class ForgetRetainArguments(TrainingArguments, total=False):
    """Arguments that the datamodules share; see :class:`ForgetRetainData`."""

    max_length: int
    eval_batch_size: int


class ForgetRetainData(LightningDataModule):
    """Forget set and retain set of an unlearning benchmark.

    Batches are dicts; a task has ``input_ids``, ``attention_mask`` and ``labels`` (-100 on what is not scored), int64
    of shape ``(batch, tokens)``, padded on the right, and ``id``. All strings come in lists.

    - Training with ``subset="unlearn"``: ``{"forget": task, "retain": task}``; otherwise a task.
    - Validation, a loader of each set: a task with ``split``.

    The order of training is a function of ``seed`` and the epoch. A run that was stopped in the middle of an epoch goes
    on with the next batch. ``W`` devices see the rows that one device with ``W`` times the ``batch_size`` sees.

    A subclass fills ``encoded`` in ``setup``, and makes the loaders of test and predict.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        subset: Rows to train on: pairs for unlearning, both sets, or one of them.
        max_length: Largest number of tokens of a row; a longer one loses the beginning of its prompt.
        batch_size: Rows of each set in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and predict, on each device.
        anchor: The set that an epoch goes through once; the other is paired at random.
        seed: Seed of the order.
        num_workers: Worker processes of each loader.
    """

    licence: ClassVar[str | None] = None
    """Licence of the data, for the card of a model that learned from them; ``None`` for files of the user's."""

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None,
        root: str,
        subset: Literal["unlearn", "all", "forget", "retain"] = "unlearn",
        max_length: int = 512,
        batch_size: int = 4,
        eval_batch_size: int = 32,
        anchor: Literal["forget", "retain"] = "forget",
        seed: int = 0,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, max_length=max_length)
        check_at_least(0, num_workers=num_workers)
        check_choices(SUBSETS, subset=subset)
        check_choices(SETS, anchor=anchor)
        named = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if named else ["tokenizer"])
        self.root, self.subset, self.max_length = Path(root), subset, max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.anchor, self.seed, self.num_workers = anchor, seed, num_workers
        self.tokenizer_name = tokenizer if isinstance(tokenizer, str) else None
        # Any: a tokenizer after `setup` at the latest, and None before, which readers need not check
        self.tokenizer: Any = None if isinstance(tokenizer, str) else tokenizer
        self.encoded: dict[str, list[Encoded]] = {}
        self.texts: dict[str, dict[str, Column]] = {}
        """Further columns of a set's rows in pairs for unlearning."""

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, or rows of the chosen subset."""
        if self.subset == "unlearn":
            return self._pairs(PairBatches(*(self._tasks(self.encoded[name], self.texts.get(name)) for name in SETS)))
        rows = [row for name in SETS if self.subset in ("all", name) for row in self.encoded[name]]
        return self._training(self._tasks(rows), BatchSampler(len(rows), self.batch_size, shuffle=True, **self._share))

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its rows."""
        return [self._scoring(name, self.encoded[name]) for name in SETS]

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row that was set up, for a model to compare with its positions."""
        return longest([row for rows in self.encoded.values() for row in rows])

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            return self.tokenizer
        if self.tokenizer_name is None:
            raise ValueError(f"{type(self).__name__} needs a tokenizer: give its name or folder, usually the model's.")
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.tokenizer_name)
        except (OSError, ValueError) as error:
            got = f"{self.tokenizer_name!r}: {first_line(error)}"
            raise ValueError(f"tokenizer must be the name or folder of a tokenizer, got {got}") from error
        return tokenizer

    def _warn_of_cuts(self, rows: Sequence[Encoded], loss: str = "prompts lose their beginning") -> None:
        cut = sum(row.cut > 0 for row in rows)
        if cut:
            rank_zero_warn(f"{cut} of {len(rows)} {loss} to max_length={self.max_length}.")

    def _tasks(self, rows: Sequence[Encoded], columns: Mapping[str, Column] | None = None) -> TaskBatches:
        return TaskBatches(rows, pad_id(self.tokenizer), columns)

    def _pairs(self, pairs: PairBatches) -> ResumableLoader:
        sizes = len(pairs.forget), len(pairs.retain)
        return self._training(pairs, PairSampler(*sizes, self.anchor, batch_size=self.batch_size, **self._share))

    def _training(self, dataset: Dataset[Any], sampler: BatchSampler) -> ResumableLoader:
        return training_loader(self, dataset, sampler, num_workers=self.num_workers)

    def _scoring(self, name: str, rows: Sequence[Encoded]) -> ResumableLoader:
        return self._in_order([(row, {"split": name}) for row in sorted(rows, key=len)])

    def _in_order(self, items: Sequence[tuple[Encoded, Mapping[str, Any]]], prompts: bool = False) -> ResumableLoader:
        """Return rows in order with their facts as columns; ``prompts`` asks their prompts, else they are scored."""
        columns = columns_of([facts for _, facts in items])
        batches = (PromptBatches if prompts else TaskBatches)(
            [row for row, _ in items], pad_id(self.tokenizer), columns
        )
        return ordered_loader(self, batches, self.eval_batch_size, self.seed, self.num_workers)

    @property
    def _share(self) -> dict[str, int]:
        """Seed of the order, and this process's share of it."""
        rank, world_size = place_of(self)
        return {"seed": self.seed, "rank": rank, "world_size": world_size}
