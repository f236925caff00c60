"""TOFU: fictitious authors to forget and to retain."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..common.batches import Column, PairBatches, PromptBatches, TaskBatches
from ..common.download import download as download_file
from ..common.sampling import BatchSampler, PairSampler, ResumableLoader, batch_loader, place_of, training_loader
from ..common.text import Encoded, longest, pad_id
from .rows import Question, check_disjoint, check_same, read_questions, read_refusals
from .templates import Template, check_template

HOME = "https://raw.githubusercontent.com/OPTML-Group/Unlearn-Simple/f1a355d3cb16cdaa2dfbda163a2e954c67886a4c"
REFUSALS_HOME = "https://raw.githubusercontent.com/locuslab/tofu/bdc209ea7c6cc2e7079ea1afb6468d3ddcc65f8e"
REFUSALS = "idontknow.jsonl"
CHECKSUMS = {
    "forget01.json": "d0047332bd27a489c552659831f4ffff080e2b9b6e063c7c951ac4de9d494a63",
    "forget05.json": "88542818f98fd6f880ecaea71bc3f3e7a34f959944e5ff1cdef7ea8c5c137173",
    "forget10.json": "0044c8c2e70a38be93f62ec6cb1c1cc2a1f55a8df2fb549a4da2da8dde9d92f6",
    "retain99.json": "e699ae5fe685996cd7d0a60cbcbeae717e989a2fd0caf00b4d545ba39ccefc61",
    "retain95.json": "6625bb8e7e01f27a237bd273b961fcf2fb51568157702acdcd934b13398aa2fc",
    "retain90.json": "debcf019c41db7b30b62ca6ad41fd8a4bcd29a5b321c21d2961974e308dfca55",
    "forget01_perturbed.json": "d8d8a80bd25e853b52fad0e3301d86fa4db6bc2b665cd79ea937346186a0944a",
    "forget05_perturbed.json": "7596c863a3f7eafb551a167363826f71a7327f28617a0a533fed06108a50ccdb",
    "forget10_perturbed.json": "6fbcb946c57ea1d7b2124cea0e61bf3b5409d1bc10d02368f090109450ed73c7",
    "retain_perturbed.json": "fc69f33bad70d3dca65920bdb54380039e3e8872dd16bbae20c1a839b99533fb",
    "real_authors_perturbed.json": "a23255383ac75a5fbe5acd57622a03fb9c368954fd7b2428afa152b784d9533a",
    "world_facts_perturbed.json": "0e171838040d0ec94b1ce248d891508e85e3b77344370077caa27b61898eb3e1",
    REFUSALS: "eb9a1e32a6f4112088306e1a65d297240f75513dd5223b2acb326454675fd605",
}
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SETS = ("forget", "retain")
SUBSETS = ("unlearn", "all", "forget", "retain")


class RefusalBatches(PairBatches):
    """Batches ``{"forget": task, "retain": task, "idk": task}``; the last holds the forget rows' questions refused.

    Args:
        forget: Rows to forget.
        retain: Rows to retain.
        refusals: The forget rows' questions with a refusal each, in the order of ``forget``.
    """

    def __init__(self, forget: TaskBatches, retain: TaskBatches, refusals: TaskBatches) -> None:
        super().__init__(forget, retain)
        self.refusals = refusals

    def __getitem__(self, indices: int | Sequence[tuple[int, int]]) -> dict[str, dict[str, Any]]:
        """Return the batch of some pairs, or of one."""
        if isinstance(indices, int):
            indices = [(indices % len(self.forget), indices % len(self.retain))]
        return {**super().__getitem__(indices), "idk": self.refusals[[forget for forget, _ in indices]]}


class TOFU(LightningDataModule):
    """Questions and answers on 200 fictitious authors, some of them to forget.

    The files are those of the benchmark, https://github.com/locuslab/tofu, MIT, copyright CMU Locus Lab: JSON lines in
    spite of their ending. An author has 20 questions; ``forget01``, ``forget05`` and ``forget10`` are the last 2, 10
    and 20 authors (40, 200 and 400 rows), ``retain99``, ``retain95`` and ``retain90`` the others; both together are
    ``full``. ``..._perturbed`` hold wrong answers and paraphrases, for ``retain`` of the first 20 authors. Real authors
    and world facts show what else a model forgets.

    Batches are dicts; a task has ``input_ids``, ``attention_mask`` and ``labels`` (-100 on prompts and padding), int64
    of shape ``(batch, tokens)``, padded on the right, and ``id``. All strings come in lists. Answers end with the end
    of sequence, in a chat behind the end of the template's turn.

    - Training with ``subset="unlearn"``: ``{"forget": task, "retain": task}``, with ``refusals`` also ``"idk"``, the
      forget rows' questions with refusals as answers; otherwise a task.
    - Validation, a loader of each set: a task with ``split``.
    - Test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts, padded on the left, with ``id``,
      ``split`` (``"forget"``, ``"retain"``, ``"real_authors"`` or ``"world_facts"``), ``row`` (int64, ``(batch,)``, its
      number in the file), ``prompt`` and ``target``.
    - Test, second loader: tasks with ``split``, ``row``, ``role`` (``"answer"``, ``"paraphrased"`` or ``"perturbed"``),
      ``choice`` (int64, ``(batch,)``, the number of a perturbed answer, else 0) and ``target``, the answer. With
      hold-out rows, for membership attacks, these come with the split ``"holdout"``.

    The order of training is a function of ``seed`` and the epoch. A run that was stopped in the middle of an epoch goes
    on with the next batch. ``W`` devices see the rows that one device with ``W`` times the ``batch_size`` sees.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        download: Whether to download the files, unless they are there; checks their SHA-256.
        split: What to forget; the retain set is the rest.
        subset: What to train on: pairs for unlearning, both sets, or one of them.
        template: Form of question and answer: ``"plain"``, ``"phi"`` and ``"llama2"`` as the official evaluation has
            them, or ``"chat"``, the tokenizer's own.
        system_prompt: First message of a chat.
        template_arguments: Values that a chat template reads, such as ``{"enable_thinking": False}``; a template that
            prints a date prints ``date_string``, by default 10 Apr 2025, that of open-unlearning's results.
        questions: Whether the test asks the questions or, where there are some, their paraphrases.
        refusals: Whether to add refusals; each forget row has one of ``idontknow.jsonl``, drawn with ``seed``.
        max_rows: Rows of the forget set and of the retain set to train on, the first ones; ``None`` takes all.
        eval_rows: Rows of each set to evaluate, the first ones; ``None`` takes all. The official logs have 300.
        max_length: Largest number of tokens of question and answer.
        batch_size: Rows of each set in a training batch, on each device.
        eval_batch_size: Rows in a batch of validation, test and predict, on each device.
        anchor: The set that an epoch goes through once; the other is paired at random.
        holdout: JSON lines with ``question`` and ``answer`` that the model never saw; by default ``holdout01.json`` for
            ``forget01`` and so on in ``root``, if it is there.
        seed: Seed of the order and of the refusals.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range or, in ``setup``, a file is malformed, a question is in both
            sets, or a perturbed set is not that of the forget set.
        FileNotFoundError: If files are missing: training needs the two sets, a test the four perturbed ones.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/tofu",
        download: bool = False,
        split: Literal["forget01", "forget05", "forget10"] = "forget10",
        subset: Literal["unlearn", "all", "forget", "retain"] = "unlearn",
        template: Literal["plain", "phi", "llama2", "chat"] = "plain",
        system_prompt: str | None = None,
        template_arguments: dict[str, Any] | None = None,
        questions: Literal["original", "paraphrased"] = "original",
        refusals: bool = False,
        max_rows: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 512,
        batch_size: int = 4,
        eval_batch_size: int = 32,
        anchor: Literal["forget", "retain"] = "forget",
        holdout: str | None = None,
        seed: int = 0,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"max_rows": max_rows, "eval_rows": eval_rows, "max_length": max_length}
        for name, size in {**sizes, "batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
        choices: dict[str, tuple[str, Sequence[str]]] = {
            "split": (split, tuple(RETAIN)),
            "subset": (subset, SUBSETS),
            "questions": (questions, ("original", "paraphrased")),
            "anchor": (anchor, SETS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be of {', '.join(map(repr, allowed))}, got {value!r}.")
        check_template(template, system_prompt, template_arguments)
        named = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if named else ["tokenizer"])
        self.root, self.download = Path(root), download
        self.split, self.subset, self.anchor, self.refusals = split, subset, anchor, refusals
        self.template, self.system_prompt, self.questions = template, system_prompt, questions
        self.template_arguments = template_arguments
        self.max_rows, self.eval_rows, self.max_length = max_rows, eval_rows, max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.num_workers = seed, num_workers
        self.files = {"forget": f"{split}.json", "retain": f"{RETAIN[split]}.json"}
        self.perturbed_files = {
            "forget": f"{split}_perturbed.json",
            "retain": "retain_perturbed.json",
            "real_authors": "real_authors_perturbed.json",
            "world_facts": "world_facts_perturbed.json",
        }
        self.holdout = Path(holdout) if holdout else self.root / f"{split.replace('forget', 'holdout')}.json"
        self._holdout_given = holdout is not None
        self._tokenizer_name = tokenizer if isinstance(tokenizer, str) else None
        # Any: a tokenizer after `setup` at the latest, and None before, which readers need not check
        self.tokenizer: Any = None if isinstance(tokenizer, str) else tokenizer
        self.rows: dict[str, list[Question]] = {}
        self.evaluated: dict[str, list[Question]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._refused: list[Encoded] = []
        self._answers: list[tuple[Encoded, dict[str, Any]]] = []

    def prepare_data(self) -> None:
        """Download the files, or say what is missing."""
        if not self.download:
            return
        for name in (*self.files.values(), *self.perturbed_files.values()):
            download_file(f"{HOME}/TOFU/TOFU_data/{name}", self.root / name, CHECKSUMS[name])
        download_file(f"{REFUSALS_HOME}/data/{REFUSALS}", self.root / REFUSALS, CHECKSUMS[REFUSALS])

    def setup(self, stage: str) -> None:
        """Read, check and tokenise the rows that the stage needs, once."""
        self.tokenizer = self._load_tokenizer()
        template = self._make_template()
        if stage in ("fit", "validate") and not self._encoded:
            self._set_up_training(template)
        if stage in ("test", "predict") and not self._answers:
            self._set_up_evaluation(template)

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, or rows of the chosen subset."""
        if self.subset != "unlearn":
            rows = [row for name in SETS if self.subset in ("all", name) for row in self._encoded[name]]
            sampler = BatchSampler(len(rows), self.batch_size, self.seed, True, *place_of(self))
            return self._training(TaskBatches(rows, self._pad), sampler)
        forget, retain = (TaskBatches(self._encoded[name], self._pad) for name in SETS)
        sampler = PairSampler(len(forget), len(retain), self.anchor, self.batch_size, self.seed, *place_of(self))
        if self.refusals:
            return self._training(RefusalBatches(forget, retain, TaskBatches(self._refused, self._pad)), sampler)
        return self._training(PairBatches(forget, retain), sampler)

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its answers."""
        loaders = []
        for name in SETS:
            rows = sorted(self._encoded[name][: self.eval_rows], key=len)
            loaders.append(self._evaluation(TaskBatches(rows, self._pad, {"split": [name] * len(rows)})))
        return loaders

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and that of answers to score."""
        rows = [row for row, _ in self._answers]
        facts = [fact for _, fact in self._answers]
        columns: dict[str, Column] = {name: [fact[name] for fact in facts] for name in ("split", "role", "target")}
        columns |= {name: torch.tensor([fact[name] for fact in facts]) for name in ("row", "choice")}
        return [self.predict_dataloader(), self._evaluation(TaskBatches(rows, self._pad, columns))]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts of the four evaluated sets, batched by length."""
        template = self._make_template()
        # the rows of the answers, of which each question has one
        items = [(row, fact) for row, fact in self._answers if fact["role"] == "answer" and fact["split"] != "holdout"]
        items.sort(key=lambda item: len(item[0].prompt))
        questions = [self._asked(self.evaluated[fact["split"]][fact["row"]]) for _, fact in items]
        columns: dict[str, Column] = {name: [fact[name] for _, fact in items] for name in ("split", "target")}
        columns |= {"row": torch.tensor([fact["row"] for _, fact in items])}
        columns |= {"prompt": [template.prompt(question) for question in questions]}
        return self._evaluation(PromptBatches([row for row, _ in items], self._pad, columns))

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row that was set up, for a model to compare with its positions."""
        scored = [row for row, _ in self._answers]
        return longest([*(row for rows in self._encoded.values() for row in rows), *self._refused, *scored])

    def _make_template(self) -> Template:
        return Template(self.template, self.tokenizer, self.max_length, self.system_prompt, self.template_arguments)

    def _set_up_training(self, template: Template) -> None:
        self._check_files(self.files, "Training")
        rows = {name: read_questions(self.root / file) for name, file in self.files.items()}
        check_disjoint(rows["forget"], rows["retain"])
        self.rows = {name: rows[name][: self.max_rows] for name in SETS}
        encoded = {
            name: [template.encode(row.id, row.question, row.answer) for row in self.rows[name]] for name in SETS
        }
        if self.refusals:
            refusals = read_refusals(self._existing(REFUSALS))
            generator = random.Random(f"{self.seed}/refusals")
            # one for each row and not for each epoch, so that what a reference model says of it can be kept
            self._refused = [
                template.encode(f"{row.id}/idk", row.question, generator.choice(refusals))
                for row in self.rows["forget"]
            ]
        self._warn_of_cuts([row for name in SETS for row in encoded[name]])
        self._encoded = encoded

    def _set_up_evaluation(self, template: Template) -> None:
        self._check_files(self.perturbed_files, "A test")
        sets = {name: read_questions(self.root / file, perturbed=True) for name, file in self.perturbed_files.items()}
        if (self.root / self.files["forget"]).is_file():
            check_same(sets["forget"], read_questions(self.root / self.files["forget"]))
        if self._holdout_given or self.holdout.is_file():
            sets["holdout"] = read_questions(self.holdout)
        self.evaluated = {name: rows[: self.eval_rows] for name, rows in sets.items()}
        answers = []
        for split, rows in self.evaluated.items():
            for row in rows:
                texts = [("answer", 0, row.answer)]
                if row.paraphrased_answer is not None:
                    texts.append(("paraphrased", 0, row.paraphrased_answer))
                texts += [("perturbed", choice, text) for choice, text in enumerate(row.perturbed_answers)]
                for role, choice, text in texts:
                    fact = {"split": split, "row": row.row, "role": role, "choice": choice, "target": text}
                    name = f"{row.id}/{role}{choice}" if role == "perturbed" else f"{row.id}/{role}"
                    answers.append((template.encode(name, self._asked(row), text), fact))
        self._warn_of_cuts([row for row, _ in answers])
        answers.sort(key=lambda item: len(item[0]))
        self._answers = answers

    def _asked(self, row: Question) -> str:
        return (self.questions == "paraphrased" and row.paraphrased_question) or row.question

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

    def _check_files(self, files: dict[str, str], what: str) -> None:
        missing = [name for name in files.values() if not (self.root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{what} needs {', '.join(files.values())} in the folder {self.root}, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing; give `root`, or let `download: true` get the files "
                f"from {HOME}."
            )

    def _existing(self, name: str) -> Path:
        self._check_files({name: name}, "refusals=True")
        return self.root / name

    def _warn_of_cuts(self, rows: Sequence[Encoded]) -> None:
        cut = sum(row.cut > 0 for row in rows)
        if cut:
            rank_zero_warn(f"{cut} of {len(rows)} prompts lose their beginning to max_length={self.max_length}.")

    def _training(self, dataset: TaskBatches | PairBatches, sampler: BatchSampler) -> ResumableLoader:
        return training_loader(self, dataset, sampler, self.num_workers)

    def _evaluation(self, dataset: TaskBatches) -> ResumableLoader:
        sampler = BatchSampler(len(dataset), self.eval_batch_size, self.seed, False, *place_of(self))
        return batch_loader(dataset, sampler, self.num_workers)

    @property
    def _pad(self) -> int:
        return pad_id(self.tokenizer)
