"""Alternate answers of forget rows: drawn from the model before it unlearns, once, and kept on disk."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_modules.unlearning.core.answers import end_of_sequence, prompts_and_answers, with_answers
from lit_modules.unlearning.core.arguments import check_positive
from lit_modules.utils.chat import ChatTemplate
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_hash, stable_seed

INSTRUCTION = (
    "Question: {question}\nAnswer: {answer}\n"
    "Now write another version of the answer with some alternate plausible facts that change answer details.\n"
)
"""The question put to the model, of arXiv 2409.13474."""
OPENING = "Alternate Answer:"
"""Beginning of the model's own words."""
STOPS = ("Question:", "Q:")
"""Texts at which the authors' code cuts an alternate."""
BETWEEN_SAVES = 16
"""Rows that a killed run loses at most."""
Sampler = Callable[[str, int], list[str]]


class Alternates:
    """Alternate answers of forget rows.

    A row's answers are drawn from a seed of their own, made of ``seed`` and the text put to the model, so neither the
    order of the rows nor the batch size changes them. They are kept in one file for each model and settings, which runs
    share, and written as they come: a run that was killed goes on. Question and answer are the lists ``question`` and
    ``answer`` of the forget task, as ``datamodules.TOFU`` gives them, or else the texts of the row's tokens.

    Args:
        number: Alternates of each row.
        instruction: Text with ``{question}`` and ``{answer}``.
        opening: Beginning of the model's answer, which is no part of the alternate.
        chat: Whether the instruction is a user's turn of the tokenizer's chat template.
        temperature: Divisor of the logits.
        top_p: Smallest probability mass to draw from, in (0, 1].
        max_new_tokens: Most tokens of an alternate.
        seed: Seed of the draws.
        separator: Text put before an alternate, and scored with it.

    Raises:
        ValueError: If a number is out of its range, or the instruction lacks a placeholder.
    """

    def __init__(
        self,
        number: int,
        *,
        instruction: str,
        opening: str,
        chat: bool,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        separator: str,
    ) -> None:
        for name, value in {"num_alternates": number, "max_alternate_tokens": max_new_tokens}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        check_positive(temperature=temperature)
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be a share in (0, 1], got {top_p}.")
        for placeholder in ("{question}", "{answer}"):
            if placeholder not in instruction:
                raise ValueError(f"instruction must hold {placeholder}, got {instruction!r}.")
        self.number, self.instruction, self.opening, self.chat = number, instruction, opening, chat
        self.temperature, self.top_p, self.max_new_tokens = temperature, top_p, max_new_tokens
        self.seed, self.separator = seed, separator
        self.drawn: dict[str, list[str]] = {}
        self.useless = 0
        """Alternates that were drawn and are empty, or the answer itself."""
        self._path: Path | None = None
        self._unsaved = 0

    def open(self, folder: Path | None, model: str) -> None:
        """Read what earlier runs from the same model, with the same settings, have drawn.

        Args:
            folder: Folder of the files, or ``None`` to keep the answers in memory alone.
            model: Hash of the model.

        Raises:
            ValueError: If the file is broken.
        """
        sampling = [self.number, self.temperature, self.top_p, self.max_new_tokens, self.seed, list(STOPS)]
        self._path = None if folder is None else folder / f"alternates-{stable_hash(model, sampling)[:32]}.json"
        self.drawn = {**self._read(), **self.drawn}

    def save(self) -> None:
        """Write the answers, together with those that another run has written meanwhile."""
        if self._path is not None and self._unsaved:
            self.drawn = {**self._read(), **self.drawn}
            write_whole(self._path, json.dumps(self.drawn, ensure_ascii=False, indent=1))
        self._unsaved = 0

    def draw(self, batch: dict[str, Any], tokenizer: PreTrainedTokenizerBase, sampler: Sampler) -> int:
        """Draw the alternates of the rows of a batch that have none; return the number of these.

        Args:
            batch: Batch with the task ``"forget"``.
            tokenizer: Tokenizer.
            sampler: Returns texts that go on from a text, drawn with a seed.
        """
        new = 0
        for text, answer in self._texts(batch["forget"], tokenizer):
            if (key := stable_hash(text)) in self.drawn:
                continue
            found = [_cut(sampled) for sampled in sampler(text, stable_seed(self.seed, text))]
            self.useless += sum(not alternate or alternate == answer.strip() for alternate in found)
            self.drawn[key] = found
            new += 1
            self._unsaved += 1
            if self._unsaved >= BETWEEN_SAVES:
                self.save()
        return new

    def tasks(self, batch: dict[str, Any], tokenizer: Callable[[], PreTrainedTokenizerBase]) -> Sequence[Any]:
        """Return the forget rows with each of their alternates in turn: a task for each number.

        The task ``"alternate"`` of a batch, if the data bring one, is the only one.

        Raises:
            ValueError: If ``"alternate"`` has not as many rows as ``"forget"``, or no alternate of a row was drawn.
        """
        if "alternate" in batch:
            rows, expected = len(batch["alternate"]["labels"]), len(batch["forget"]["labels"])
            if rows != expected:
                raise ValueError(
                    f"A batch must have an alternate for each of its {expected} forget rows, got {rows} in 'alternate'."
                )
            return [batch["alternate"]]
        return self._encode(batch["forget"], tokenizer())

    def _encode(self, task: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        end = end_of_sequence(tokenizer, "alternates")
        pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        keys = [stable_hash(text) for text, _ in self._texts(task, tokenizer)]
        for index, key in enumerate(keys):
            if key not in self.drawn:
                name = task["id"][index] if "id" in task else index
                raise ValueError(
                    f"The row {name} has no alternate answers: it is not among those that were seen before the first "
                    "step. Let an epoch of the training loader bring all rows, as anchor='forget' does."
                )
        return [
            with_answers(task, [self._ids(self.drawn[key][number], tokenizer, end) for key in keys], pad)
            for number in range(self.number)
        ]

    def _ids(self, text: str, tokenizer: PreTrainedTokenizerBase, end: int) -> list[int]:
        return [*tokenizer(self.separator + text, add_special_tokens=False)["input_ids"], end]

    def _texts(self, task: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """Return the text put to the model for each row, and the row's answer."""
        if "question" in task and "answer" in task:
            pairs = list(zip(task["question"], task["answer"], strict=True))
        else:
            pairs = [
                (_decoded(tokenizer, prompt), _decoded(tokenizer, answer))
                for prompt, answer in prompts_and_answers(task)
            ]
        asked = [
            self.instruction.replace("{question}", question).replace("{answer}", answer) for question, answer in pairs
        ]
        if self.chat:
            template = ChatTemplate(tokenizer)
            asked = [template.prompt([{"role": "user", "content": text}]) for text in asked]
        return [(text + self.opening, answer) for text, (_, answer) in zip(asked, pairs, strict=True)]

    def _read(self) -> dict[str, list[str]]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(key): [str(text) for text in texts] for key, texts in content.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self._path} must hold {{hash: [text, ...]}}, and does not ({error}); delete it, and the run makes "
                "it anew."
            ) from error


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Tensor:
    """Return the ids of a text put to the model; a chat template has written the special tokens already."""
    ids = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    if not chat and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return torch.tensor(ids, dtype=torch.int64)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _cut(text: str) -> str:
    for stop in STOPS:
        text = text.partition(stop)[0]
    return text.strip()
