"""LUME: forget and retain sets of the unlearning benchmark."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.download import download
from datamodules.lume_generator import public_biographies
from datamodules.lume_rows import KINDS, TASKS, Row, check_disjoint, read_documents, read_rows
from datamodules.sampling import Batches, BatchSampler, PairSampler, ResumableLoader, permutation
from datamodules.text import Encoded, encode, prompt_batch, prompt_ids, training_batch

HOME = "https://raw.githubusercontent.com/amazon-science/lume-llm-unlearning/b2fa8f9c567715f1e2c6d442213f33b2e9a28fe6/data"
CHECKSUMS = {
    "forget.jsonl": "3a74f30223c35b173664dfea5b1c5939587f1eac868a9764891f30c2c317c381",
    "retain.jsonl": "ec8826a91d9fb9e5a50ba732549e8eff75fc99c2f67d6873d1ea36fd403a003d",
}
SPLITS = ("all", "train", "validation", "other")
SUBSETS = ("unlearn", "all", "forget", "retain")
MOST_MEMBERS = 150
HOLD_OUT = "synthetic hold-out"


class LUME(LightningDataModule):
    """Forget and retain sets of LUME, with its three tasks and two kinds of rows.

    Task1 are stories, Task2 biographies with personal data, Task3 public biographies; a row asks to complete a document
    (``sc``) or a question about it (``qa``). Files ``forget.jsonl`` and ``retain.jsonl`` of the release of 11 April 2025 (2732 and
    2734 rows), Apache-2.0, copyright Amazon.com; Task3 texts are from Wikipedia (CC BY-SA). The personal data of Task2 is
    synthetic.

    Batches, all strings in lists:

    - training with ``subset="unlearn"``: ``{"forget": task, "retain": task}``; otherwise a task. A task has ``input_ids``,
      ``attention_mask``, ``labels`` (-100 on prompts and padding), int64 of shape ``(batch, tokens)``, padded on the right, and
      ``id``. Answers end with the end of sequence.
    - validation, a loader for each set: a task with ``split``.
    - test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts padded on the left, with ``id``, ``split``,
      ``task``, ``kind``, ``prompt`` and ``target``.
    - test, second loader: whole documents as tasks, every token labelled, with ``member`` (bool, ``(batch,)``) and ``source``.

    Members are the documents that ``members_file`` lists if all of them are among the rows, else the Task3 documents of the
    forget set, at most 150. The benchmark's non-members are not part of the release; without a file of them, invented
    biographies take their place, and ``source`` says ``"synthetic hold-out"``.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        download: Whether to download the files if they are missing.
        subset: What to train on: pairs for unlearning, both sets, or one of them.
        splits: Fold of the SemEval-2025 challenge, from ``splits_file``.
        splits_file: JSON ``{"forget": {"train": [ids], ...}, "retain": {...}}``; by default ``semeval_splits.json`` in ``root``.
        tasks: Tasks to keep.
        kinds: Kinds of rows to keep.
        max_documents: Documents of each set and task to keep, drawn with ``seed``; ``None`` keeps all.
        max_length: Largest number of tokens of a row; a longer one loses the beginning of its prompt.
        separator: Text between prompt and answer.
        batch_size: Rows of each set in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and predict.
        anchor: The set that an epoch goes through once; the other is paired at random.
        nonmembers: JSON lines with ``id`` and ``document``; by default ``nonmembers.jsonl`` in ``root`` if it is there.
        members_file: JSON with ``member_document_ids``; by default ``semeval_mia_ids.json`` in ``root`` if it is there.
        seed: Seed of the order and of ``max_documents``.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range or, in ``setup``, a file is malformed.
        FileNotFoundError: In ``prepare_data``, if the files are missing and are not to be downloaded.

    References:
        Ramakrishna et al., "LUME: LLM Unlearning with Multitask Evaluations", arXiv 2502.15097.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/lume",
        download: bool = False,
        subset: Literal["unlearn", "all", "forget", "retain"] = "unlearn",
        splits: Literal["all", "train", "validation", "other"] = "all",
        splits_file: str | None = None,
        tasks: tuple[str, ...] = TASKS,
        kinds: tuple[str, ...] = KINDS,
        max_documents: int | None = None,
        max_length: int = 512,
        separator: str = " ",
        batch_size: int = 4,
        eval_batch_size: int = 32,
        anchor: Literal["forget", "retain"] = "forget",
        nonmembers: str | None = None,
        members_file: str | None = None,
        seed: int = 0,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        positive = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        if max_documents is not None:
            positive["max_documents"] = max_documents
        for name, number in positive.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}.")
        for name, value, allowed in (
            ("subset", subset, SUBSETS),
            ("splits", splits, SPLITS),
            ("anchor", anchor, ("forget", "retain")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        for name, values, allowed in (("tasks", tasks, TASKS), ("kinds", kinds, KINDS)):
            if not values or not set(values) <= set(allowed):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}, got {tuple(values)}.")
        injected = tokenizer is not None and not isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=["tokenizer"] if injected else [])
        self.root = Path(root)
        self.subset, self.splits, self.anchor = subset, splits, anchor
        self.tasks, self.kinds, self.max_documents = tuple(tasks), tuple(kinds), max_documents
        self.max_length, self.separator = max_length, separator
        self.batch_size, self.eval_batch_size, self.num_workers, self.seed = batch_size, eval_batch_size, num_workers, seed
        self.download = download
        self.splits_file = Path(splits_file) if splits_file else self.root / "semeval_splits.json"
        self.members_file = Path(members_file) if members_file else self.root / "semeval_mia_ids.json"
        self.nonmembers = Path(nonmembers) if nonmembers else self.root / "nonmembers.jsonl"
        self._nonmembers_given = nonmembers is not None
        self._tokenizer_name = tokenizer if isinstance(tokenizer, str) else None
        self.tokenizer: Any = None if isinstance(tokenizer, str) else tokenizer
        self.rows: dict[str, list[Row]] = {}
        self._encoded: dict[str, list[Encoded]] = {}

    def prepare_data(self) -> None:
        """Download the files, or say what is missing."""
        for name, sha256 in CHECKSUMS.items():
            if (self.root / name).is_file():
                continue
            if not self.download:
                raise FileNotFoundError(
                    f"The folder {self.root} must hold forget.jsonl and retain.jsonl, and {name} is missing; give `root`, or let "
                    f"`download: true` get the files from {HOME}."
                )
            download(f"{HOME}/{name}", self.root / name, sha256)

    def setup(self, stage: str) -> None:
        """Read, check, select and tokenise the rows, once."""
        if self._encoded:
            return
        rows = {split: read_rows(self.root / f"{split}.jsonl", split) for split in ("forget", "retain")}
        check_disjoint(rows["forget"], rows["retain"])
        self.rows = {split: self._selected(rows[split], split) for split in rows}
        self.tokenizer = self._load_tokenizer()
        self._encoded = {
            split: [encode(self.tokenizer, row.id, row.input, row.output, self.max_length, self.separator) for row in rows_]
            for split, rows_ in self.rows.items()
        }
        cut = sum(row.cut > 0 for rows_ in self._encoded.values() for row in rows_)
        if cut:
            rank_zero_warn(f"{cut} prompts lose their beginning to max_length={self.max_length}; no target is cut.")

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, or rows of the chosen subset."""
        rank, world = self._place()
        if self.subset == "unlearn":
            forget, retain = self._encoded["forget"], self._encoded["retain"]
            pairs = PairSampler(len(forget), len(retain), self.anchor, self.batch_size, self.seed, rank, world)

            def make(indices: Sequence[tuple[int, int]]) -> dict[str, Any]:
                return {
                    "forget": training_batch([forget[i] for i, _ in indices], self._pad),
                    "retain": training_batch([retain[i] for _, i in indices], self._pad),
                }

            return ResumableLoader(Batches(make), pairs, self.num_workers)
        rows = [row for split in ("forget", "retain") if self.subset in ("all", split) for row in self._encoded[split]]
        sampler = BatchSampler(len(rows), self.batch_size, self.seed, True, rank, world)
        return ResumableLoader(
            Batches(lambda indices: training_batch([rows[i] for i in indices], self._pad)), sampler, self.num_workers
        )

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its answers."""
        return [self._scoring(split) for split in ("forget", "retain")]

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and, if there are documents to attack, the loader of these."""
        membership = self._membership()
        return [self.predict_dataloader(), *([membership] if membership else [])]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts of both sets, batched by kind and length."""
        items = [
            (row, prompt_ids(self.tokenizer, row.input))
            for split in ("forget", "retain")
            for row in self.rows[split]
        ]
        items.sort(key=lambda item: (item[0].kind, len(item[1])))

        def make(indices: Sequence[int]) -> dict[str, Any]:
            chosen = [items[i] for i in indices]
            strings = {
                name: [getattr(row, name) for row, _ in chosen] for name in ("id", "split", "task", "kind")
            }
            texts = {"prompt": [row.input for row, _ in chosen], "target": [row.output for row, _ in chosen]}
            return {**prompt_batch([ids for _, ids in chosen], self._pad), **strings, **texts}

        return self._evaluation(len(items), make)

    def _scoring(self, split: str) -> ResumableLoader:
        rows = sorted(self._encoded[split], key=lambda row: len(row.prompt) + len(row.answer))

        def make(indices: Sequence[int]) -> dict[str, Any]:
            return {**training_batch([rows[i] for i in indices], self._pad), "split": [split] * len(indices)}

        return self._evaluation(len(rows), make)

    def _membership(self) -> ResumableLoader | None:
        documents = [(Encoded(name, [], self._document(text)), member, source) for name, text, member, source in self.documents()]
        if not documents:
            return None
        documents.sort(key=lambda item: len(item[0].answer))

        def make(indices: Sequence[int]) -> dict[str, Any]:
            chosen = [documents[i] for i in indices]
            batch = training_batch([row for row, _, _ in chosen], self._pad)
            batch["member"] = batch["labels"].new_tensor([member for _, member, _ in chosen]).bool()
            return {**batch, "source": [source for _, _, source in chosen]}

        return self._evaluation(len(documents), make)

    def documents(self) -> list[tuple[str, str, bool, str]]:
        """Return the documents of the membership attack.

        Returns:
            Tuples of id, text, whether the document is a member, and where it comes from; empty without members.
        """
        candidates = {row.document: row.text for row in self.rows["forget"] if row.kind == "sc" and row.task == "Task3"}
        listed = self._listed_members()
        chosen = listed if listed and set(listed) <= set(candidates) else list(candidates)[:MOST_MEMBERS]
        members = [(name, candidates[name], True, "forget.jsonl") for name in chosen]
        if not members:
            return []
        if self._nonmembers_given or self.nonmembers.is_file():
            others = [(name, text, False, self.nonmembers.name) for name, text in read_documents(self.nonmembers)]
        else:
            taken = {row.document for rows in self.rows.values() for row in rows}
            invented = public_biographies(len(members) + len(taken), seed=self.seed, prefix="holdout")
            others = [(name, text, False, HOLD_OUT) for name, text in invented[: len(members)]]
        return members + others

    def _listed_members(self) -> list[str]:
        if not self.members_file.is_file():
            return []
        try:
            listed = json.loads(self.members_file.read_text())["member_document_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.members_file} must be a JSON object with the list member_document_ids.") from error
        return [str(name) for name in listed]

    def _selected(self, rows: list[Row], split: str) -> list[Row]:
        if self.splits != "all":
            wanted = self._fold(split)
            rows = [row for row in rows if row.id in wanted]
        rows = [row for row in rows if row.task in self.tasks]
        if self.max_documents is not None:
            kept: set[str] = set()
            for task in self.tasks:
                names = sorted({row.document for row in rows if row.task == task})
                order = permutation(len(names), self.seed, 0)
                kept |= {names[i] for i in order[: self.max_documents]}
            rows = [row for row in rows if row.document in kept]
        # whole documents are drawn first, so that the choice does not depend on the kinds
        rows = [row for row in rows if row.kind in self.kinds]
        if not rows:
            raise ValueError(
                f"The {split} set is empty after selecting splits={self.splits!r}, tasks={self.tasks}, kinds={self.kinds}; select more."
            )
        return rows

    def _fold(self, split: str) -> set[str]:
        if not self.splits_file.is_file():
            raise FileNotFoundError(
                f"splits={self.splits!r} needs {self.splits_file}, a JSON object "
                '{"forget": {"train": [ids], "validation": [ids], "other": [ids]}, "retain": {...}}; give `splits_file`, or splits="all".'
            )
        try:
            return set(json.loads(self.splits_file.read_text())[split][self.splits])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.splits_file} has no list of ids at {split!r}, {self.splits!r}.") from error

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is not None:
            return self.tokenizer  # type: ignore[no-any-return]
        if self._tokenizer_name is None:
            raise ValueError(f"{type(self).__name__} needs a tokenizer: give its name or folder, usually the model's.")
        try:
            return AutoTokenizer.from_pretrained(self._tokenizer_name)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self._tokenizer_name!r} does not load as a tokenizer: {reason} Give its name or folder.") from error

    def _document(self, text: str) -> list[int]:
        return prompt_ids(self.tokenizer, text)[: self.max_length]

    def _evaluation(self, length: int, make: Callable[[Sequence[int]], dict[str, Any]]) -> ResumableLoader:
        sampler = BatchSampler(length, self.eval_batch_size, self.seed, False, *self._place())
        return ResumableLoader(Batches(make), sampler, self.num_workers)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)
