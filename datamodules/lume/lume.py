"""LUME: forget and retain sets of the unlearning benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_modules.utils.arguments import Unpack
from lit_modules.utils.progress import shown, track

from ..common.batches import GroupBatches, TaskBatches
from ..common.checks import are_missing, check_at_least, check_choices, check_request, in_request
from ..common.download import download as download_file
from ..common.forget_retain import SETS, ForgetRetainArguments, ForgetRetainData
from ..common.sampling import GroupSampler, ResumableLoader, permutation
from ..common.text import Encoded, encode_document, encode_row, longest
from .generator import public_biographies
from .rows import KINDS, TASKS, Row, check_disjoint, read_documents, read_rows

COMMIT = "b2fa8f9c567715f1e2c6d442213f33b2e9a28fe6"
HOME = f"https://raw.githubusercontent.com/amazon-science/lume-llm-unlearning/{COMMIT}/data"
CHECKSUMS = {
    "forget.jsonl": "3a74f30223c35b173664dfea5b1c5939587f1eac868a9764891f30c2c317c381",
    "retain.jsonl": "ec8826a91d9fb9e5a50ba732549e8eff75fc99c2f67d6873d1ea36fd403a003d",
}
SPLITS = ("all", "train", "validation", "other")
MOST_MEMBERS = 150
HOLD_OUT = "synthetic hold-out"


class LUME(ForgetRetainData):
    """Forget and retain sets of LUME, with its three tasks and two kinds of rows.

    Task1 are stories, Task2 biographies with personal data, Task3 public biographies; a row asks to complete a document
    (``sc``) or a question about it (``qa``). The files ``forget.jsonl`` (2732 rows) and ``retain.jsonl`` (2734 rows)
    are those of the release of 11 April 2025, https://github.com/amazon-science/lume-llm-unlearning, Apache-2.0,
    copyright Amazon.com. The texts of Task3 are from Wikipedia (CC BY-SA) and concern real public persons; the
    personal data of Task2 are synthetic.

    Batches of training and validation are those of :class:`~datamodules.common.forget_retain.ForgetRetainData`. Answers
    end with the end of sequence. With ``by_task`` a set is cut into its tasks, ``batch_size`` rows of each:
    ``{"forget_task1": task, ..., "retain_task3": task}``; an epoch goes through the longest task of ``anchor`` once,
    and the rows of the others come at random, repeated where a task is shorter.

    - Test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts, padded on the left, with ``id``,
      ``split``, ``task``, ``kind``, ``prompt`` and ``target``. Prompts are cut as in training.
    - Test, second loader: whole documents as tasks with every token labelled, ``member`` (bool, ``(batch,)``) and
      ``source``.

    Members are the documents that ``members_file`` lists; without such a file, or with ``max_documents``, they are the
    first 150 Task3 documents of the forget set. The texts of the benchmark's non-members are not part of the release:
    without a file of them, as many invented biographies take their place, and ``source`` says ``"synthetic hold-out"``.
    If the selection leaves no member, there is a warning and no second loader.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        download: Whether to download the two files, unless they are there; checks their SHA-256.
        splits: Fold of the SemEval-2025 challenge, from ``splits_file``.
        splits_file: JSON ``{"forget": {"train": [row ids], "validation": [...], "other": [...]}, "retain": {...}}``; by
            default ``semeval_splits.json`` in ``root``.
        tasks: Tasks to keep.
        kinds: Kinds of rows to keep.
        max_documents: Documents of each set and task to keep, drawn with ``document_seed``; ``None`` keeps all.
        request: Number of the part of the forget set to take, from 1, for requests that come one after the other
            (``lit-modules sequence``); ``None`` takes all.
        requests: Parts of the forget set, of whole documents; each has as many of each task.
        separator: Text between prompt and answer.
        nonmembers: JSON lines with ``id`` and ``document``; by default ``nonmembers.jsonl`` in ``root`` if it is there.
        members_file: JSON ``{"member_document_ids": [ids]}``; by default ``semeval_mia_ids.json`` in ``root`` if it is
            there.
        document_seed: Seed of the choice of ``max_documents`` and of the invented non-members, so that runs with
            different orders share them.
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

    licence = "Apache-2.0, copyright Amazon.com; the texts of Task3 are from Wikipedia, CC BY-SA"

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/lume",
        download: bool = False,
        splits: Literal["all", "train", "validation", "other"] = "all",
        splits_file: str | None = None,
        tasks: tuple[str, ...] = TASKS,
        kinds: tuple[str, ...] = KINDS,
        max_documents: int | None = None,
        request: int | None = None,
        requests: int = 4,
        separator: str = " ",
        nonmembers: str | None = None,
        members_file: str | None = None,
        document_seed: int = 0,
        by_task: bool = False,
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(tokenizer=tokenizer, root=root, **shared)
        check_at_least(1, max_documents=max_documents)
        check_choices(SPLITS, splits=splits)
        check_request(request, requests)
        for name, values, allowed in (("tasks", tasks, TASKS), ("kinds", kinds, KINDS)):
            for value in values or (values,):
                check_choices(allowed, **{name: value})
        if by_task and self.subset != "unlearn":
            raise ValueError(
                f"by_task cuts the sets of subset='unlearn' into tasks, got subset={self.subset!r}; leave one of the "
                "two."
            )
        self.download, self.splits, self.max_documents, self.by_task = download, splits, max_documents, by_task
        self.tasks, self.kinds = tuple(tasks), tuple(kinds)
        self.separator, self.document_seed = separator, document_seed
        self.request, self.requests = request, requests
        self.splits_file = Path(splits_file) if splits_file else self.root / "semeval_splits.json"
        self.members_file = Path(members_file) if members_file else self.root / "semeval_mia_ids.json"
        self.nonmembers = Path(nonmembers) if nonmembers else self.root / "nonmembers.jsonl"
        self._members_given, self._nonmembers_given = members_file is not None, nonmembers is not None
        self.rows: dict[str, list[Row]] = {}
        self._public: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Download the files, or say what is missing."""
        if self.download:
            with shown(self.trainer):
                for name, sha256 in CHECKSUMS.items():
                    download_file(f"{HOME}/{name}", self.root / name, sha256)
        self._check_files()

    def setup(self, stage: str) -> None:
        """Read, check, select and tokenise the rows, once."""
        if self.encoded:
            return
        self._check_files()
        rows = {name: read_rows(self.root / f"{name}.jsonl", name) for name in SETS}
        check_disjoint(rows["forget"], rows["retain"])
        self.rows = {name: self._select(rows[name], name) for name in SETS}
        self._public = {row.document: row.text for row in rows["forget"] if row.task == "Task3" and row.kind == "sc"}
        self.tokenizer = self._load_tokenizer()
        limits: dict[str, Any] = {"max_length": self.max_length, "separator": self.separator}
        with shown(self.trainer):
            encoded = {
                name: [
                    encode_row(self.tokenizer, row.id, row.input, answer=row.output, **limits)
                    for row in track(rows, f"reading {name} rows")
                ]
                for name, rows in self.rows.items()
            }
        self._warn_of_cuts([row for name in SETS for row in encoded[name]])
        self.encoded = encoded

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, their tasks apart with ``by_task``, or rows of the chosen subset."""
        if not self.by_task:
            return super().train_dataloader()
        groups = {f"{name}_{task.lower()}": rows for name in SETS for task, rows in self._by_task(name).items()}
        anchors = [index for index, name in enumerate(groups) if name.startswith(self.anchor)]
        lengths = [len(rows) for rows in groups.values()]
        sampler = GroupSampler(lengths, anchors, self.batch_size, **self._share)
        return self._training(GroupBatches(groups), sampler)

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and, if there are members, the loader of documents to attack."""
        return [self.predict_dataloader(), *self._membership()]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts of both sets, batched by kind and length."""
        pairs = [pair for name in SETS for pair in zip(self.encoded[name], self.rows[name], strict=True)]
        pairs.sort(key=lambda pair: (pair[1].kind, len(pair[0].prompt)))
        facts = ("split", "task", "kind")
        items = [
            (row, {**{name: getattr(own, name) for name in facts}, "prompt": own.input, "target": own.output})
            for row, own in pairs
        ]
        return self._in_order(items, prompts=True)

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row, of which a test asks the prompt alone."""
        if self.trainer is None or self.trainer.state.fn not in ("test", "predict"):
            return super().longest_row()
        return longest([Encoded(row.id, row.prompt, []) for rows in self.encoded.values() for row in rows])

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
        for row, encoded in zip(self.rows[name], self.encoded[name], strict=True):
            rows[row.task].append(encoded)
        empty = [task for task in self.tasks if not rows[task]]
        if empty:
            raise ValueError(
                f"by_task needs rows of each task in both sets, and the {name} set has none of {', '.join(empty)}; "
                f"give tasks without {'it' if len(empty) == 1 else 'them'}, or select more."
            )
        return {task: self._tasks(encoded) for task, encoded in rows.items()}

    def _membership(self) -> list[ResumableLoader]:
        documents = self.documents()
        if not documents:
            rank_zero_warn("The selected forget rows hold no Task3 member, so there is no membership attack.")
            return []
        items = [
            (encode_document(self.tokenizer, name, text, self.max_length), {"member": member, "source": source})
            for name, text, member, source in documents
        ]
        self._warn_of_cuts([row for row, _ in items], "documents of the membership attack lose their end")
        return [self._in_order(sorted(items, key=lambda item: len(item[0])))]

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
            documents: set[str] = set()
            for task in self.tasks:
                names = sorted({row.document for row in rows if row.task == task})
                documents.update(names[i] for i in permutation(len(names), self.document_seed, 0)[: self.max_documents])
            rows = [row for row in rows if row.document in documents]
        if name == "forget" and self.request is not None:
            asked: set[str] = set()
            for task in self.tasks:
                of_task = list(dict.fromkeys(row.document for row in rows if row.task == task))
                chosen = in_request(of_task, self.request, self.requests, f"documents of {task}")
                asked.update(document for document, wanted in zip(of_task, chosen, strict=True) if wanted)
            rows = [row for row in rows if row.document in asked]
        rows = [row for row in rows if row.kind in self.kinds]
        if not rows:
            raise ValueError(
                f"The {name} set is empty after selecting splits={self.splits!r}, tasks={self.tasks} and "
                f"kinds={self.kinds}; select more."
            )
        return rows

    def _check_files(self) -> None:
        missing = [name for name in CHECKSUMS if not (self.root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"The folder {self.root} must hold {' and '.join(CHECKSUMS)}, and {are_missing(missing)}; "
                f"{self._remedy()}."
            )

    def _remedy(self) -> str:
        return f"give `root`, or let `download: true` get the files from {HOME}"


def _read_ids(path: Path, keys: Sequence[str]) -> list[str]:
    """Return the list of strings that a JSON file holds at the given keys."""
    shape = "JSON with a list of ids at " + "".join(f"[{key!r}]" for key in keys)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; it must be {shape}.")
    try:
        ids: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            ids = ids[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must be {shape}.") from error
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ValueError(f"{path} must be {shape}.")
    return ids
