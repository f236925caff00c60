"""LUME: forget and retain sets of the unlearning benchmark."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..common.batches import Column, GroupBatches, PairBatches, PromptBatches, TaskBatches
from ..common.download import download as download_file
from ..common.sampling import (
    BatchSampler,
    GroupSampler,
    PairSampler,
    ResumableLoader,
    batch_loader,
    permutation,
    place_of,
    training_loader,
)
from ..common.text import Encoded, encode_document, encode_row, longest, pad_id
from .generator import public_biographies
from .rows import KINDS, TASKS, Row, check_disjoint, read_documents, read_rows

COMMIT = "b2fa8f9c567715f1e2c6d442213f33b2e9a28fe6"
HOME = f"https://raw.githubusercontent.com/amazon-science/lume-llm-unlearning/{COMMIT}/data"
CHECKSUMS = {
    "forget.jsonl": "3a74f30223c35b173664dfea5b1c5939587f1eac868a9764891f30c2c317c381",
    "retain.jsonl": "ec8826a91d9fb9e5a50ba732549e8eff75fc99c2f67d6873d1ea36fd403a003d",
}
SETS = ("forget", "retain")
SUBSETS = ("unlearn", "all", "forget", "retain")
SPLITS = ("all", "train", "validation", "other")
MOST_MEMBERS = 150
HOLD_OUT = "synthetic hold-out"


class LUME(LightningDataModule):
    """Forget and retain sets of LUME, with its three tasks and two kinds of rows.

    Task1 are stories, Task2 biographies with personal data, Task3 public biographies; a row asks to complete a document
    (``sc``) or a question about it (``qa``). The files ``forget.jsonl`` (2732 rows) and ``retain.jsonl`` (2734 rows)
    are those of the release of 11 April 2025, https://github.com/amazon-science/lume-llm-unlearning, Apache-2.0,
    copyright Amazon.com. The texts of Task3 are from Wikipedia (CC BY-SA) and concern real public persons; the
    personal data of Task2 are synthetic.

    Batches are dicts; a task has ``input_ids``, ``attention_mask`` and ``labels`` (-100 on prompts and padding), int64
    of shape ``(batch, tokens)``, padded on the right, and ``id``. All strings come in lists. Answers end with the end
    of sequence.

    - Training with ``subset="unlearn"``: ``{"forget": task, "retain": task}``; otherwise a task. With ``by_task`` a set
      is cut into its tasks: ``{"forget_task1": task, ..., "retain_task3": task}``, ``batch_size`` rows of each.
    - Validation, a loader of each set: a task with ``split``.
    - Test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts, padded on the left, with ``id``,
      ``split``, ``task``, ``kind``, ``prompt`` and ``target``. Prompts are cut as in training.
    - Test, second loader: whole documents as tasks with every token labelled, ``member`` (bool, ``(batch,)``) and
      ``source``.

    Members are the documents that ``members_file`` lists; without such a file, or with ``max_documents``, they are the
    first 150 Task3 documents of the forget set. The texts of the benchmark's non-members are not part of the release:
    without a file of them, as many invented biographies take their place, and ``source`` says ``"synthetic hold-out"``.
    If the selection leaves no member, there is a warning and no second loader.

    The order of training is a function of ``seed`` and the epoch. A run that was stopped in the middle of an epoch goes
    on with the next batch. ``W`` devices see the rows that one device with ``W`` times the ``batch_size`` sees.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        download: Whether to download the two files, unless they are there; checks their SHA-256.
        subset: What to train on: pairs for unlearning, both sets, or one of them.
        splits: Fold of the SemEval-2025 challenge, from ``splits_file``.
        splits_file: JSON ``{"forget": {"train": [row ids], "validation": [...], "other": [...]}, "retain": {...}}``; by
            default ``semeval_splits.json`` in ``root``.
        tasks: Tasks to keep.
        kinds: Kinds of rows to keep.
        max_documents: Documents of each set and task to keep, drawn with ``document_seed``; ``None`` keeps all.
        max_length: Largest number of tokens of a row; a longer one loses the beginning of its prompt.
        separator: Text between prompt and answer.
        batch_size: Rows of each set in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and predict, on each device.
        anchor: The set that an epoch goes through once; the other is paired at random. With ``by_task`` it is the
            longest task of this set; the rows of the others come at random, repeated where a task is shorter.
        nonmembers: JSON lines with ``id`` and ``document``; by default ``nonmembers.jsonl`` in ``root`` if it is there.
        members_file: JSON ``{"member_document_ids": [ids]}``; by default ``semeval_mia_ids.json`` in ``root`` if it is
            there.
        seed: Seed of the order.
        document_seed: Seed of the choice of ``max_documents`` and of the invented non-members, so that runs with
            different orders share them.
        num_workers: Worker processes of each loader.
        by_task: Whether a training batch holds the tasks of each set apart, for ``lit_modules.NGDiff``.

    Raises:
        ValueError: If an argument is out of its range or, in ``setup``, a file is malformed, a set is empty after the
            selection, or a document is in both sets.
        FileNotFoundError: If files are missing, and are not to be downloaded.

    References:
        Ramakrishna et al., "LUME: LLM Unlearning with Multitask Evaluations", arXiv 2502.15097.
        Ramakrishna et al., "SemEval-2025 Task 4: Unlearning sensitive content from Large Language Models",
        arXiv 2504.02883.
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
        document_seed: int = 0,
        num_workers: int = 4,
        by_task: bool = False,
    ) -> None:
        super().__init__()
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, max_length=max_length)
        _at_least(1, max_documents=1 if max_documents is None else max_documents)
        _at_least(0, num_workers=num_workers)
        _some_of(SUBSETS, subset=[subset])
        _some_of(SPLITS, splits=[splits])
        _some_of(SETS, anchor=[anchor])
        _some_of(TASKS, tasks=tasks)
        _some_of(KINDS, kinds=kinds)
        if by_task and subset != "unlearn":
            raise ValueError(
                f"by_task cuts the sets of subset='unlearn' into tasks, got subset={subset!r}; leave one of the two."
            )
        named = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if named else ["tokenizer"])
        self.by_task = by_task
        self.root = Path(root)
        self.download = download
        self.subset, self.splits, self.anchor = subset, splits, anchor
        self.tasks, self.kinds, self.max_documents = tuple(tasks), tuple(kinds), max_documents
        self.max_length, self.separator = max_length, separator
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.document_seed, self.num_workers = seed, document_seed, num_workers
        self.splits_file = Path(splits_file) if splits_file else self.root / "semeval_splits.json"
        self.members_file = Path(members_file) if members_file else self.root / "semeval_mia_ids.json"
        self.nonmembers = Path(nonmembers) if nonmembers else self.root / "nonmembers.jsonl"
        self._members_given, self._nonmembers_given = members_file is not None, nonmembers is not None
        self._tokenizer_name = tokenizer if isinstance(tokenizer, str) else None
        # Any: a tokenizer after `setup` at the latest, and None before, which readers need not check
        self.tokenizer: Any = None if isinstance(tokenizer, str) else tokenizer
        self.rows: dict[str, list[Row]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._public: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Download the files, or say what is missing."""
        if self.download:
            for name, sha256 in CHECKSUMS.items():
                download_file(f"{HOME}/{name}", self.root / name, sha256)
        self._check_files()

    def setup(self, stage: str) -> None:
        """Read, check, select and tokenise the rows, once."""
        if self._encoded:
            return
        self._check_files()
        rows = {name: read_rows(self.root / f"{name}.jsonl", name) for name in SETS}
        check_disjoint(rows["forget"], rows["retain"])
        self.rows = {name: self._select(rows[name], name) for name in SETS}
        self._public = {row.document: row.text for row in rows["forget"] if row.task == "Task3" and row.kind == "sc"}
        self.tokenizer = self._load_tokenizer()
        encoded = {
            name: [
                encode_row(self.tokenizer, row.id, row.input, row.output, self.max_length, self.separator)
                for row in self.rows[name]
            ]
            for name in SETS
        }
        self._warn_of_cuts([row for name in SETS for row in encoded[name]], "prompts lose their beginning")
        self._encoded = encoded

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, or rows of the chosen subset."""
        if self.subset != "unlearn":
            rows = [row for name in SETS if self.subset in ("all", name) for row in self._encoded[name]]
            sampler = BatchSampler(len(rows), self.batch_size, self.seed, True, *place_of(self))
            return self._training(TaskBatches(rows, self._pad), sampler)
        if self.by_task:
            groups = {f"{name}_{task.lower()}": rows for name in SETS for task, rows in self._by_task(name).items()}
            anchors = [place for place, name in enumerate(groups) if name.startswith(self.anchor)]
            lengths = [len(rows) for rows in groups.values()]
            together = GroupSampler(lengths, anchors, self.batch_size, self.seed, *place_of(self))
            return self._training(GroupBatches(groups), together)
        forget, retain = (TaskBatches(self._encoded[name], self._pad) for name in SETS)
        pairs = PairSampler(len(forget), len(retain), self.anchor, self.batch_size, self.seed, *place_of(self))
        return self._training(PairBatches(forget, retain), pairs)

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its answers."""
        return [self._scoring(name) for name in SETS]

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and, if there are members, the loader of documents to attack."""
        return [self.predict_dataloader(), *self._membership()]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts of both sets, batched by kind and length."""
        items = [item for name in SETS for item in zip(self.rows[name], self._encoded[name], strict=True)]
        items.sort(key=lambda item: (item[0].kind, len(item[1].prompt)))
        rows = [row for row, _ in items]
        columns = {name: [str(getattr(row, name)) for row in rows] for name in ("split", "task", "kind")}
        columns |= {"prompt": [row.input for row in rows], "target": [row.output for row in rows]}
        return self._evaluation(PromptBatches([encoded for _, encoded in items], self._pad, columns))

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row, of which a test asks the prompt alone, for a model to compare."""
        rows = [row for name in SETS for row in self._encoded[name]]
        asked = self.trainer is not None and self.trainer.state.fn in ("test", "predict")
        return longest([Encoded(row.id, row.prompt, []) for row in rows] if asked else rows)

    def documents(self) -> list[tuple[str, str, bool, str]]:
        """Return the documents of the membership attack.

        Returns:
            Tuples of id, text, whether the document is a member, and where it comes from; empty without members.

        Raises:
            ValueError: If a file of members or non-members is malformed or contradicts the two sets.
        """
        selected = {row.document for row in self.rows["forget"]}
        listed = self._listed_members()
        names = [name for name in self._public if name in selected][:MOST_MEMBERS] if listed is None else listed
        members = [(name, self._public[name], True, "forget.jsonl") for name in names if name in selected]
        if not members:
            return []
        if not self._nonmembers_given and not self.nonmembers.is_file():
            invented = public_biographies(len(members), seed=self.document_seed, prefix="holdout")
            return members + [(name, text, False, HOLD_OUT) for name, text in invented]
        others = read_documents(self.nonmembers)
        known = {row.document for name in SETS for row in self.rows[name]}
        for name, _ in others:
            if name in known:
                raise ValueError(f"{self.nonmembers} must hold documents of neither set, got {name}.")
        return members + [(name, text, False, self.nonmembers.name) for name, text in others]

    def _by_task(self, name: str) -> dict[str, TaskBatches]:
        """Return the training rows of each task of a set."""
        rows: dict[str, list[Encoded]] = {task: [] for task in self.tasks}
        for row, encoded in zip(self.rows[name], self._encoded[name], strict=True):
            rows[row.task].append(encoded)
        empty = [task for task in self.tasks if not rows[task]]
        if empty:
            raise ValueError(
                f"by_task needs rows of each task in both sets, and the {name} set has none of {', '.join(empty)}; "
                f"give tasks without {'it' if len(empty) == 1 else 'them'}, or select more."
            )
        return {task: TaskBatches(found, self._pad) for task, found in rows.items()}

    def _scoring(self, name: str) -> ResumableLoader:
        rows = sorted(self._encoded[name], key=len)
        return self._evaluation(TaskBatches(rows, self._pad, {"split": [name] * len(rows)}))

    def _membership(self) -> list[ResumableLoader]:
        documents = self.documents()
        if not documents:
            rank_zero_warn("The selected forget rows hold no Task3 member, so there is no membership attack.")
            return []
        items = [
            (encode_document(self.tokenizer, name, text, self.max_length), member, source)
            for name, text, member, source in documents
        ]
        rows = [row for row, _, _ in items]
        self._warn_of_cuts(rows, "documents of the membership attack lose their end")
        items.sort(key=lambda item: len(item[0]))
        columns: dict[str, Column] = {
            "member": torch.tensor([member for _, member, _ in items]),
            "source": [source for _, _, source in items],
        }
        return [self._evaluation(TaskBatches([row for row, _, _ in items], self._pad, columns))]

    def _listed_members(self) -> list[str] | None:
        """Return the members that a file lists, or None without such a file."""
        if not self._members_given and (self.max_documents is not None or not self.members_file.is_file()):
            return None
        listed = _read_ids(self.members_file, ["member_document_ids"])
        unknown = [name for name in listed if name not in self._public]
        if unknown:
            raise ValueError(
                f"{self.members_file} must list Task3 documents of the forget set, got {len(unknown)} others, "
                f"such as {unknown[0]!r}."
            )
        return listed

    def _select(self, rows: list[Row], name: str) -> list[Row]:
        if self.splits != "all":
            wanted = set(_read_ids(self.splits_file, [name, self.splits]))
            rows = [row for row in rows if row.id in wanted]
        rows = [row for row in rows if row.task in self.tasks]
        if self.max_documents is not None:
            # before the kinds, so that the choice of documents does not depend on them
            kept: set[str] = set()
            for task in self.tasks:
                names = sorted({row.document for row in rows if row.task == task})
                kept.update(names[i] for i in permutation(len(names), self.document_seed, 0)[: self.max_documents])
            rows = [row for row in rows if row.document in kept]
        rows = [row for row in rows if row.kind in self.kinds]
        if not rows:
            raise ValueError(
                f"The {name} set is empty after selecting splits={self.splits!r}, tasks={self.tasks} and "
                f"kinds={self.kinds}; select more."
            )
        return rows

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            return self.tokenizer
        if self._tokenizer_name is None:
            raise ValueError(f"{type(self).__name__} needs a tokenizer: give its name or folder, usually the model's.")
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._tokenizer_name)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"tokenizer must be the name or folder of a tokenizer, got {self._tokenizer_name!r}: {reason}"
            ) from error
        return tokenizer

    def _check_files(self) -> None:
        missing = [name for name in CHECKSUMS if not (self.root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"The folder {self.root} must hold {' and '.join(CHECKSUMS)}, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing; {self._remedy()}."
            )

    def _remedy(self) -> str:
        return f"give `root`, or let `download: true` get the files from {HOME}"

    def _warn_of_cuts(self, rows: Sequence[Encoded], what: str) -> None:
        cut = sum(row.cut > 0 for row in rows)
        if cut:
            rank_zero_warn(f"{cut} of {len(rows)} {what} to max_length={self.max_length}.")

    def _training(self, dataset: TaskBatches | PairBatches | GroupBatches, sampler: BatchSampler) -> ResumableLoader:
        return training_loader(self, dataset, sampler, self.num_workers)

    def _evaluation(self, dataset: TaskBatches) -> ResumableLoader:
        sampler = BatchSampler(len(dataset), self.eval_batch_size, self.seed, False, *place_of(self))
        return batch_loader(dataset, sampler, self.num_workers)

    @property
    def _pad(self) -> int:
        return pad_id(self.tokenizer)


def _read_ids(path: Path, keys: Sequence[str]) -> list[str]:
    """Return the list of strings that a JSON file holds at the given keys."""
    where = "".join(f"[{key!r}]" for key in keys)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; it must be JSON with a list of ids at {where}.")
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON with a list of ids at {where}.") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} must be JSON with a list of ids at {where}.")
    return found


def _at_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")


def _some_of(allowed: Sequence[str], **choices: Collection[str]) -> None:
    for name, values in choices.items():
        unknown = [value for value in values if value not in allowed]
        if unknown or not values:
            raise ValueError(
                f"{name} must be of {', '.join(map(repr, allowed))}, got {(unknown[0] if unknown else values)!r}."
            )
