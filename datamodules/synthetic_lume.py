"""LUME-shaped benchmarks of any size, invented from a seed."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.bpe import train_bpe
from datamodules.download import checksum
from datamodules.lume import LUME
from datamodules.lume_generator import Inventor
from datamodules.lume_rows import KINDS, TASKS

FILES = ("forget.jsonl", "retain.jsonl", "nonmembers.jsonl", "semeval_mia_ids.json")
MANIFEST = "manifest.json"


def write_lume(folder: str | Path, num_documents: int = 8, seed: int = 0, story_sentences: int = 4) -> None:
    """Write an invented benchmark: the files of LUME, and the documents of the membership attack.

    ``forget.jsonl`` and ``retain.jsonl`` have LUME's fields, ids and quirks; ``nonmembers.jsonl`` holds biographies made by the
    rules of Task3; ``semeval_mia_ids.json`` lists the members, the Task3 documents of the forget set; ``manifest.json`` says what
    was asked for. The same arguments give the same bytes.

    Args:
        folder: Folder to write to; it is made if it is missing.
        num_documents: Documents of each set and task.
        seed: Seed.
        story_sentences: Sentences of a story, at least 4.

    Raises:
        ValueError: If a number is too small.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents must be at least 1, got {num_documents}.")
    folder = Path(folder)
    inventor = Inventor(seed, story_sentences=story_sentences)
    contents: dict[str, str] = {}
    for split in ("forget", "retain"):
        documents = [
            invent() for invent in (inventor.story, inventor.private_person, inventor.public_person) for _ in range(num_documents)
        ]
        contents[f"{split}.jsonl"] = _lines([row for document in documents for row in document.rows()])
        if split == "forget":
            members = [document.id for document in documents if document.task == "Task3"]
    others = [inventor.public_person() for _ in range(num_documents)]
    contents["nonmembers.jsonl"] = _lines([{"id": document.id, "document": document.text} for document in others])
    contents["semeval_mia_ids.json"] = json.dumps({"member_document_ids": members}, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        _write(folder / name, text)
    asked = {"num_documents": num_documents, "seed": seed, "story_sentences": story_sentences}
    sums = {name: checksum(folder / name) for name in FILES}
    _write(folder / MANIFEST, json.dumps({**asked, "sha256": sums}, indent=1) + "\n")


class SyntheticLUME(LUME):
    """An invented benchmark in the shape of LUME, for offline work and for benchmarks of one's own.

    ``prepare_data`` writes the files of :func:`write_lume` to ``root``, or uses those that are there if they were made with the
    same arguments. Persons, places and numbers are invented with the ``faker`` package; Social Security numbers lie in the
    range that is never issued. Batches are those of :class:`~datamodules.LUME`.

    Args:
        tokenizer: Tokenizer, or its name or folder; ``None`` trains a byte-level BPE on the data and keeps it in ``root``.
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
        )
        self.asked = {"num_documents": num_documents, "seed": data_seed, "story_sentences": story_sentences}
        if num_documents < 1:
            raise ValueError(f"num_documents must be at least 1, got {num_documents}.")
        if story_sentences < 4:
            raise ValueError(f"story_sentences must be at least 4, got {story_sentences}.")
        if vocab_size < 258:
            raise ValueError(f"vocab_size must be at least 258, got {vocab_size}.")
        self.vocab_size = vocab_size
        injected = tokenizer is not None and not isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=["tokenizer"] if injected else [])

    def prepare_data(self) -> None:
        """Write the files, and train the tokenizer if none was given."""
        manifest = self.root / MANIFEST
        if manifest.is_file():
            self._check(json.loads(manifest.read_text()))
        elif any((self.root / name).exists() for name in FILES[:2]):
            raise ValueError(f"{self.root} holds other files of that name; give another `root`, or use datamodules.LUME.")
        else:
            write_lume(self.root, **self.asked)
        if self._tokenizer_name is None and self.tokenizer is None and not self._tokenizer_folder.is_dir():
            lines = [json.loads(line) for name in FILES[:2] for line in (self.root / name).read_text().splitlines()]
            temporary = self._tokenizer_folder.with_name(f"{self._tokenizer_folder.name}.{os.getpid()}")
            train_bpe([f"{row['input']} {row['output']}" for row in lines], self.vocab_size).save_pretrained(temporary)
            temporary.rename(self._tokenizer_folder)

    @property
    def _tokenizer_folder(self) -> Path:
        return self.root / f"tokenizer-{self.vocab_size}"

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer_name is None and self.tokenizer is None:
            return AutoTokenizer.from_pretrained(self._tokenizer_folder)  # type: ignore[no-any-return]
        return super()._load_tokenizer()

    def _check(self, manifest: dict[str, Any]) -> None:
        found = {name: manifest.get(name) for name in self.asked}
        if found != self.asked:
            raise ValueError(f"{self.root} holds a benchmark of {found}, and {self.asked} was asked for; give another `root`.")
        for name, sha256 in manifest["sha256"].items():
            if not (self.root / name).is_file() or checksum(self.root / name) != sha256:
                raise ValueError(f"{self.root / name} is not the file that was written there; remove {self.root} to write it again.")


def _lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
