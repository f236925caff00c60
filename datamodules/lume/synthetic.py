"""LUME-shaped benchmarks of any size, invented from a seed."""

import json
import os
import tempfile
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..common.bpe import SMALLEST, train_bpe
from ..common.download import checksum
from .files import FILES, check_arguments, write_lume, write_whole
from .lume import LUME, SETS
from .rows import KINDS, TASKS, read_documents, read_rows

FINGERPRINT = "fingerprint.json"


class SyntheticLUME(LUME):
    """An invented benchmark in the shape of LUME, for offline work and for benchmarks of one's own.

    ``prepare_data`` writes the files of :func:`~datamodules.lume.files.write_lume` to ``root``, or uses those that are
    there if they were made with the same arguments. Persons, places and numbers are invented with the ``faker``
    package; Social Security numbers lie in the range that is never issued. Members and non-members of the membership
    attack are made by the same rules. Batches are those of :class:`~datamodules.lume.lume.LUME`.

    To build a benchmark of one's own, choose ``num_documents`` and ``data_seed``, train a model on ``subset="all"``
    until it has memorised the rows, and unlearn; a model trained on ``subset="retain"`` is what to compare with.

    Args:
        tokenizer: Tokenizer, or its name or folder; ``None`` trains a byte-level BPE on the data and keeps it in
            ``root``.
        root: Folder of the files.
        num_documents: Documents of each set and task.
        story_sentences: Sentences of a story, at least 4.
        data_seed: Seed of the documents.
        vocab_size: Largest number of tokens of the trained tokenizer.
        subset: What to train on: pairs for unlearning, both sets, or one of them.
        tasks: Tasks to keep.
        kinds: Kinds of rows to keep.
        max_length: Largest number of tokens of a row; a longer one loses the beginning of its prompt.
        separator: Text between prompt and answer.
        batch_size: Rows of each set in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and predict.
        anchor: The set that an epoch goes through once; the other is paired at random.
        seed: Seed of the order.
        num_workers: Worker processes of each loader.
        by_task: Whether a training batch holds the tasks of each set apart, for ``lit_modules.NGDiff``.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` holds a benchmark of other arguments.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/lume_synthetic",
        num_documents: int = 8,
        story_sentences: int = 4,
        data_seed: int = 0,
        vocab_size: int = 1024,
        subset: Literal["unlearn", "all", "forget", "retain"] = "unlearn",
        tasks: tuple[str, ...] = TASKS,
        kinds: tuple[str, ...] = KINDS,
        max_length: int = 512,
        separator: str = " ",
        batch_size: int = 8,
        eval_batch_size: int = 32,
        anchor: Literal["forget", "retain"] = "forget",
        seed: int = 0,
        num_workers: int = 0,
        by_task: bool = False,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            root=root,
            subset=subset,
            tasks=tasks,
            kinds=kinds,
            max_length=max_length,
            separator=separator,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            anchor=anchor,
            seed=seed,
            num_workers=num_workers,
            by_task=by_task,
        )
        check_arguments(num_documents, story_sentences)
        if vocab_size < SMALLEST:
            raise ValueError(f"vocab_size must be at least {SMALLEST}, got {vocab_size}.")
        named = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if named else ["tokenizer"])
        self.num_documents, self.data_seed, self.story_sentences = num_documents, data_seed, story_sentences
        self.vocab_size = vocab_size

    def prepare_data(self) -> None:
        """Write the files, and train the tokenizer if none was given."""
        write_lume(self.root, self.num_documents, self.data_seed, self.story_sentences)
        if self._trains_tokenizer and not self._has_tokenizer():
            self._write_tokenizer()

    @property
    def _trains_tokenizer(self) -> bool:
        return self._tokenizer_name is None and self.tokenizer is None

    @property
    def _tokenizer_folder(self) -> Path:
        return self.root / f"tokenizer-{self.vocab_size}"

    def _fingerprint(self) -> dict[str, str]:
        return {name: checksum(self.root / name) for name in FILES}

    def _has_tokenizer(self) -> bool:
        path = self._tokenizer_folder / FINGERPRINT
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == self._fingerprint()

    def _write_tokenizer(self) -> None:
        # non-members too: else they would take more tokens than members, which tells them apart
        texts = [f"{row.input} {row.output}" for name in SETS for row in read_rows(self.root / f"{name}.jsonl", name)]
        texts += [text for _, text in read_documents(self.nonmembers)]
        folder = self._tokenizer_folder
        with tempfile.TemporaryDirectory(dir=self.root) as temporary:
            train_bpe(texts, self.vocab_size).save_pretrained(temporary)
            write_whole(Path(temporary) / FINGERPRINT, json.dumps(self._fingerprint(), indent=1) + "\n")
            folder.mkdir(exist_ok=True)
            # the fingerprint comes last: a folder with it is complete
            names = sorted((path.name for path in Path(temporary).iterdir()), key=lambda name: name == FINGERPRINT)
            for name in names:
                os.replace(Path(temporary) / name, folder / name)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if not self._trains_tokenizer:
            return super()._load_tokenizer()
        if not self._has_tokenizer():
            raise FileNotFoundError(f"The tokenizer {self._tokenizer_folder} is missing; {self._remedy()}.")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._tokenizer_folder)
        return tokenizer

    def _remedy(self) -> str:
        return "call `prepare_data` first, as a Trainer does"
