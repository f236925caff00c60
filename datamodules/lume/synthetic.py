"""LUME-shaped benchmarks of any size, invented from a seed."""

import json
import os
import tempfile
from pathlib import Path
from typing import Literal, TypedDict

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_modules.utils.arguments import Unpack, without_own
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import hash_file

from ..common.bpe import SMALLEST, train_bpe
from ..common.checks import check_at_least
from ..common.forget_retain import SETS
from .files import FILES, check_arguments, write_lume
from .lume import LUME
from .rows import read_documents, read_rows

FINGERPRINT = "fingerprint.json"


class SyntheticArguments(TypedDict, total=False):
    """Arguments of :class:`~datamodules.lume.lume.LUME` that go with invented files."""

    subset: Literal["unlearn", "all", "forget", "retain"]
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    max_length: int
    request: int | None
    requests: int
    separator: str
    eval_batch_size: int
    anchor: Literal["forget", "retain"]
    seed: int
    by_task: bool


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
        batch_size: Rows of each set in a training batch, on each device.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range, or ``root`` holds a benchmark of other arguments.
    """

    licence = "invented texts, under the licence of this software, Apache-2.0"

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/lume_synthetic",
        num_documents: int = 8,
        story_sentences: int = 4,
        data_seed: int = 0,
        vocab_size: int = 1024,
        batch_size: int = 8,
        num_workers: int = 0,
        **shared: Unpack[SyntheticArguments],
    ) -> None:
        shared = without_own(
            shared,
            download=False,
            splits="all",
            splits_file=None,
            max_documents=None,
            nonmembers=None,
            members_file=None,
            document_seed=0,
        )
        super().__init__(
            tokenizer=tokenizer,
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            download=False,
            splits="all",
            splits_file=None,
            max_documents=None,
            nonmembers=None,
            members_file=None,
            document_seed=0,
            **shared,
        )
        check_arguments(num_documents, story_sentences)
        check_at_least(SMALLEST, vocab_size=vocab_size)
        self.num_documents, self.data_seed, self.story_sentences = num_documents, data_seed, story_sentences
        self.vocab_size = vocab_size

    def prepare_data(self) -> None:
        """Write the files, and train the tokenizer if none was given."""
        write_lume(self.root, self.num_documents, self.data_seed, self.story_sentences)
        if self._trains_tokenizer and not self._has_tokenizer():
            self._write_tokenizer()

    @property
    def _trains_tokenizer(self) -> bool:
        return self.tokenizer_name is None and self.tokenizer is None

    @property
    def _tokenizer_folder(self) -> Path:
        return self.root / f"tokenizer-{self.vocab_size}"

    def _fingerprint(self) -> dict[str, str]:
        return {name: hash_file(self.root / name) for name in FILES}

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
