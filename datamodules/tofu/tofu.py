"""TOFU: fictitious authors to forget and to retain."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_modules.utils.arguments import Unpack
from lit_modules.utils.progress import shown, track

from ..common.batches import PairBatches, TaskBatches
from ..common.checks import are_missing, check_at_least, check_choices, check_request, in_request
from ..common.download import download as download_file
from ..common.forget_retain import SETS, ForgetRetainArguments, ForgetRetainData
from ..common.sampling import ResumableLoader
from ..common.text import Encoded, longest
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
QUESTIONS = 20
"""Questions on an author."""
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


class RefusalBatches(PairBatches):
    """Batches ``{"forget": task, "retain": task, "idk": task}``; the last holds the forget rows' questions refused."""

    def __init__(self, forget: TaskBatches, retain: TaskBatches, refusals: TaskBatches) -> None:
        super().__init__(forget, retain)
        self.refusals = refusals

    def __getitem__(self, indices: int | Sequence[tuple[int, int]]) -> dict[str, dict[str, Any]]:
        """Return the batch of some pairs, or of one."""
        if isinstance(indices, int):
            indices = [(indices % len(self.forget), indices % len(self.retain))]
        return {**super().__getitem__(indices), "idk": self.refusals[[forget for forget, _ in indices]]}


class TOFU(ForgetRetainData):
    """Questions and answers on 200 fictitious authors, some of them to forget.

    The files are those of the benchmark, https://github.com/locuslab/tofu, MIT, copyright CMU Locus Lab: JSON lines in
    spite of their ending. An author has 20 questions; ``forget01``, ``forget05`` and ``forget10`` are the last 2, 10
    and 20 authors (40, 200 and 400 rows), ``retain99``, ``retain95`` and ``retain90`` the others; both together are
    ``full``. ``..._perturbed`` hold wrong answers and paraphrases, for ``retain`` of the first 20 authors. Real authors
    and world facts show what else a model forgets.

    Batches of training and validation are those of :class:`~datamodules.common.forget_retain.ForgetRetainData`; with
    ``refusals`` a pair also has the task ``"idk"``, the forget rows' questions with refusals as answers. The task
    ``"forget"`` of a pair has the texts ``question`` and ``answer`` too. Answers end with the end of sequence, in a
    chat behind the end of the template's turn.

    - Test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts, padded on the left, with ``id``,
      ``split`` (``"forget"``, ``"retain"``, ``"real_authors"`` or ``"world_facts"``), ``row`` (int64, ``(batch,)``, its
      number in the file), ``prompt`` and ``target``.
    - Test, second loader: tasks with ``split``, ``row``, ``role`` (``"answer"``, ``"paraphrased"`` or ``"perturbed"``),
      ``choice`` (int64, ``(batch,)``, the number of a perturbed answer, else 0) and ``target``, the answer. With
      hold-out rows, for membership attacks, these come with the split ``"holdout"``.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the files.
        download: Whether to download the files, unless they are there; checks their SHA-256.
        split: Set to forget; the retain set is the rest.
        template: Form of question and answer: ``"plain"``, ``"phi"`` and ``"llama2"`` as the official evaluation has
            them, or ``"chat"``, the tokenizer's own.
        system_prompt: First message of a chat.
        template_arguments: Values that a chat template reads, such as ``{"enable_thinking": False}``; a template that
            prints a date prints ``date_string``, by default 10 Apr 2025, that of open-unlearning's results.
        questions: Whether the test asks the questions or, where there are some, their paraphrases.
        refusals: Whether to add refusals; each forget row has one of ``idontknow.jsonl``, drawn with ``seed``.
        max_rows: Rows of the forget set and of the retain set to train on, the first ones; ``None`` takes all.
        eval_rows: Rows of each set to evaluate, the first ones; ``None`` takes all. The official logs have 300.
        request: Number of the part of the forget set to train on and to evaluate, from 1, for requests that come one
            after the other (``lit-modules sequence``); ``None`` takes all.
        requests: Parts of the forget set, of whole authors and similar size.
        holdout: JSON lines with ``question`` and ``answer`` that the model never saw; by default ``holdout01.json`` for
            ``forget01`` and so on in ``root``, if it is there.

    Raises:
        ValueError: If an argument is out of its range or, in ``setup``, a file is malformed, a question is in both
            sets, or a perturbed set is not that of the forget set.
        FileNotFoundError: If files are missing: training needs the two sets, a test the four perturbed ones.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121.
    """

    licence = "MIT, copyright CMU Locus Lab"

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/tofu",
        download: bool = False,
        split: Literal["forget01", "forget05", "forget10"] = "forget10",
        template: Literal["plain", "phi", "llama2", "chat"] = "plain",
        system_prompt: str | None = None,
        template_arguments: dict[str, Any] | None = None,
        questions: Literal["original", "paraphrased"] = "original",
        refusals: bool = False,
        max_rows: int | None = None,
        eval_rows: int | None = None,
        request: int | None = None,
        requests: int = 4,
        holdout: str | None = None,
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(tokenizer=tokenizer, root=root, **shared)
        check_at_least(1, max_rows=max_rows, eval_rows=eval_rows)
        check_choices(RETAIN, split=split)
        check_request(request, requests)
        check_choices(("original", "paraphrased"), questions=questions)
        check_template(template, system_prompt, template_arguments)
        self.download, self.split, self.questions, self.refusals = download, split, questions, refusals
        self.template, self.system_prompt, self.template_arguments = template, system_prompt, template_arguments
        self.max_rows, self.eval_rows, self.request, self.requests = max_rows, eval_rows, request, requests
        self.files = {"forget": f"{split}.json", "retain": f"{RETAIN[split]}.json"}
        self.perturbed_files = {
            "forget": f"{split}_perturbed.json",
            "retain": "retain_perturbed.json",
            "real_authors": "real_authors_perturbed.json",
            "world_facts": "world_facts_perturbed.json",
        }
        self.holdout = Path(holdout) if holdout else self.root / f"{split.replace('forget', 'holdout')}.json"
        self._holdout_given = holdout is not None
        self.rows: dict[str, list[Question]] = {}
        self.evaluated: dict[str, list[Question]] = {}
        self._refused: list[Encoded] = []
        self._answers: list[tuple[Encoded, dict[str, Any]]] = []

    def prepare_data(self) -> None:
        """Download the files, or say what is missing."""
        if not self.download:
            return
        with shown(self.trainer):
            for name in (*self.files.values(), *self.perturbed_files.values()):
                download_file(f"{HOME}/TOFU/TOFU_data/{name}", self.root / name, CHECKSUMS[name])
            download_file(f"{REFUSALS_HOME}/data/{REFUSALS}", self.root / REFUSALS, CHECKSUMS[REFUSALS])

    def setup(self, stage: str) -> None:
        """Read, check and tokenise the rows that the stage needs, once."""
        self.tokenizer = self._load_tokenizer()
        template = self._make_template()
        with shown(self.trainer):
            if stage in ("fit", "validate") and not self.encoded:
                self._set_up_training(template)
            if stage in ("test", "predict") and not self._answers:
                self._set_up_evaluation(template)

    def train_dataloader(self) -> ResumableLoader:
        """Return pairs for unlearning, or rows of the chosen subset."""
        if self.subset != "unlearn" or not self.refusals:
            return super().train_dataloader()
        forget, retain = (self._tasks(self.encoded[name], self.texts.get(name)) for name in SETS)
        return self._pairs(RefusalBatches(forget, retain, self._tasks(self._refused)))

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its answers."""
        return [self._scoring(name, self.encoded[name][: self.eval_rows]) for name in SETS]

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and that of answers to score."""
        return [self.predict_dataloader(), self._in_order(self._answers)]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts of the four evaluated sets, batched by length."""
        template = self._make_template()
        questions = {(name, row.row): row for name, rows in self.evaluated.items() for row in rows}
        items = []
        for row, fact in self._answers:
            if fact["role"] == "answer" and fact["split"] != "holdout":  # each question has one such answer
                question = self._asked(questions[fact["split"], fact["row"]])
                facts = {name: fact[name] for name in ("split", "row", "target")}
                items.append((row, {**facts, "prompt": template.prompt(question)}))
        return self._in_order(sorted(items, key=lambda item: len(item[0].prompt)), prompts=True)

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row that was set up, for a model to compare with its positions."""
        scored = [row for row, _ in self._answers]
        return longest([*(row for rows in self.encoded.values() for row in rows), *self._refused, *scored])

    def _make_template(self) -> Template:
        return Template(self.template, self.tokenizer, self.max_length, self.system_prompt, self.template_arguments)

    def _set_up_training(self, template: Template) -> None:
        self._check_files(self.files, "Training")
        rows = {name: read_questions(self.root / file) for name, file in self.files.items()}
        check_disjoint(rows["forget"], rows["retain"])
        self.rows = {name: rows[name][: self.max_rows] for name in SETS}
        self.rows["forget"] = self._requested(self.rows["forget"])
        encoded = {
            name: [
                template.encode(row.id, row.question, row.answer)
                for row in track(self.rows[name], f"reading {name} rows")
            ]
            for name in SETS
        }
        if self.refusals:
            self._check_files({REFUSALS: REFUSALS}, "refusals=True")
            refusals = read_refusals(self.root / REFUSALS)
            generator = random.Random(f"{self.seed}/refusals")
            # one for each row and not for each epoch, so that what a reference model says of it can be kept
            self._refused = [
                template.encode(f"{row.id}/idk", row.question, generator.choice(refusals))
                for row in self.rows["forget"]
            ]
        self._warn_of_cuts([row for name in SETS for row in encoded[name]])
        self.encoded = encoded
        forget = self.rows["forget"]
        self.texts["forget"] = {"question": [row.question for row in forget], "answer": [row.answer for row in forget]}

    def _set_up_evaluation(self, template: Template) -> None:
        self._check_files(self.perturbed_files, "A test")
        sets = {name: read_questions(self.root / file, perturbed=True) for name, file in self.perturbed_files.items()}
        if (self.root / self.files["forget"]).is_file():
            check_same(sets["forget"], read_questions(self.root / self.files["forget"]))
        if self._holdout_given or self.holdout.is_file():
            sets["holdout"] = read_questions(self.holdout)
        self.evaluated = {name: rows[: self.eval_rows] for name, rows in sets.items()}
        self.evaluated["forget"] = self._requested(self.evaluated["forget"])
        answers = []
        for split, rows in self.evaluated.items():
            for row in track(rows, f"reading {split} rows"):
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

    def _requested(self, rows: list[Question]) -> list[Question]:
        """Return the forget rows of the request: those of some authors, who have 20 questions each."""
        authors = list(dict.fromkeys(row.row // QUESTIONS for row in rows))
        chosen = in_request(authors, self.request, self.requests, "authors")
        wanted = {author for author, asked in zip(authors, chosen, strict=True) if asked}
        return [row for row in rows if row.row // QUESTIONS in wanted]

    def _asked(self, row: Question) -> str:
        return (self.questions == "paraphrased" and row.paraphrased_question) or row.question

    def _check_files(self, files: dict[str, str], what: str) -> None:
        missing = [name for name in files.values() if not (self.root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{what} needs {', '.join(files.values())} in the folder {self.root}, and "
                f"{are_missing(missing, ', ')}; give `root`, or let `download: true` get the files from {HOME}."
            )
