"""LUME-shaped benchmarks of any size, invented from a seed."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.bpe import SMALLEST, train_bpe
from datamodules.download import checksum
from datamodules.lume import LUME, SETS
from datamodules.lume_generator import Inventor
from datamodules.lume_rows import KINDS, TASKS, read_documents, read_rows

FILES = ("forget.jsonl", "retain.jsonl", "nonmembers.jsonl", "semeval_mia_ids.json")
MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"


def generate_lume(num_documents: int = 8, seed: int = 0, story_sentences: int = 4) -> dict[str, str]:
    """Invent a benchmark: the files of LUME, and the documents of the membership attack.

    ``forget.jsonl`` and ``retain.jsonl`` have LUME's fields, ids and quirks; ``nonmembers.jsonl`` holds biographies
    made by the rules of Task3; ``semeval_mia_ids.json`` lists the members, the Task3 documents of the forget set. No
    two documents share a person, so each question belongs to one document. The result depends on the arguments and on
    the word lists of the ``faker`` package, and not on the global random state.

    Args:
        num_documents: Documents of each set and task, and non-members.
        seed: Seed.
        story_sentences: Sentences of a story, at least 4.

    Returns:
        The text of each file by its name.

    Raises:
        ValueError: If a number is too small, or ``num_documents`` exhausts the word lists.

    Example:
        >>> sorted(generate_lume(num_documents=1))
        ['forget.jsonl', 'nonmembers.jsonl', 'retain.jsonl', 'semeval_mia_ids.json']
    """
    _check_arguments(num_documents, story_sentences)
    inventor = Inventor(seed, story_sentences=story_sentences)
    inventions = (inventor.story, inventor.private_person, inventor.public_person)
    documents = {
        name: [invent() for invent in inventions for _ in range(num_documents)] for name in ("forget", "retain")
    }
    others = [inventor.public_person() for _ in range(num_documents)]
    members = [document.id for document in documents["forget"] if document.task == "Task3"]
    files = {
        f"{name}.jsonl": _lines([row for item in items for row in item.rows()]) for name, items in documents.items()
    }
    files["nonmembers.jsonl"] = _lines([{"id": document.id, "document": document.text} for document in others])
    files["semeval_mia_ids.json"] = json.dumps({"member_document_ids": members}, indent=1) + "\n"
    return files


def write_lume(folder: str | Path, num_documents: int = 8, seed: int = 0, story_sentences: int = 4) -> None:
    """Write the files of :func:`generate_lume`, and ``manifest.json``, which says what was asked for.

    Files that are there stay as they are; each file appears whole or not at all. The same arguments give the same
    bytes.

    Args:
        folder: Folder to write to; it is made.
        num_documents: Documents of each set and task, and non-members.
        seed: Seed.
        story_sentences: Sentences of a story, at least 4.

    Raises:
        ValueError: If a number is out of its range, or the folder holds other files of these names.
    """
    _check_arguments(num_documents, story_sentences)
    folder = Path(folder)
    asked = {"num_documents": num_documents, "seed": seed, "story_sentences": story_sentences}
    if (folder / MANIFEST).is_file() and _is_complete(folder, asked):
        return
    files = generate_lume(**asked)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    missing = [name for name in FILES if not (folder / name).exists()]
    for name in FILES:
        if name not in missing and checksum(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} must be a file of {asked}, got another one; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        _write(folder / name, files[name])
    _write(folder / MANIFEST, json.dumps({**asked, "sha256": sums}, indent=1) + "\n")


class SyntheticLUME(LUME):
    """An invented benchmark in the shape of LUME, for offline work and for benchmarks of one's own.

    ``prepare_data`` writes the files of :func:`write_lume` to ``root``, or uses those that are there if they were made
    with the same arguments. Persons, places and numbers are invented with the ``faker`` package; Social Security
    numbers lie in the range that is never issued. Members and non-members of the membership attack are made by the
    same rules. Batches are those of :class:`~datamodules.lume.LUME`.

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
        _check_arguments(num_documents, story_sentences)
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
            _write(Path(temporary) / FINGERPRINT, json.dumps(self._fingerprint(), indent=1) + "\n")
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


def _check_arguments(num_documents: int, story_sentences: int) -> None:
    if num_documents < 1:
        raise ValueError(f"num_documents must be at least 1, got {num_documents}.")
    if story_sentences < 4:
        raise ValueError(f"story_sentences must be at least 4, got {story_sentences}.")


def _is_complete(folder: Path, asked: dict[str, int]) -> bool:
    """Check a manifest against what is asked for and what is there; return whether nothing is missing."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = {name: manifest[name] for name in asked}
        sums = {name: manifest["sha256"][name] for name in FILES}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the manifest that SyntheticLUME writes; give another folder.") from error
    if found != asked:
        raise ValueError(f"{folder} holds a benchmark of {found}, and {asked} was asked for; give another folder.")
    present = [name for name in FILES if (folder / name).is_file()]
    for name in present:
        if checksum(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} was changed after it was written; remove it to write it again.")
    return len(present) == len(FILES)


def _lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        whole = Path(temporary) / path.name
        whole.write_text(text, encoding="utf-8", newline="\n")
        os.replace(whole, path)
