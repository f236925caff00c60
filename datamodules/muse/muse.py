"""MUSE: news articles or novels to forget and to retain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_modules.utils.arguments import Unpack
from lit_modules.utils.progress import shown, track

from ..common.checks import are_missing, check_at_least, check_choices
from ..common.forget_retain import SETS, ForgetRetainData, TrainingArguments
from ..common.sampling import ResumableLoader
from ..common.text import Encoded, encode_document, longest
from .rows import ENDINGS, encode_blocks, find_file, question_prompt, read_records, read_texts

FOLDS = (1, 2, 3, 4)
ATTACKED = ("forget", "retain", "holdout")
VERBMEM_TOKENS, KNOWMEM_TOKENS = 128, 32  # of the benchmark's evaluation
ADDRESS = "https://huggingface.co/muse-bench"


class MUSE(ForgetRetainData):
    """Texts of MUSE, News or Books, on files that the user supplies.

    The texts, BBC articles and novels, are not cleared for redistribution, so nothing is downloaded. ``root`` is the
    folder of one corpus in the layout of https://huggingface.co/muse-bench, a file for each split that ends with
    ``.txt``, ``.json``, ``.jsonl`` or ``.parquet``:

    - ``raw/{forget,retain1}``: texts to forget, and to retain while unlearning. ``raw/retain2`` is for evaluation.
    - ``scal/forget_1`` to ``forget_4``, each holding the one before: forget sets of growing size.
    - ``sust/forget_1`` to ``forget_4``: requests that come one after the other.
    - ``verbmem/forget`` with ``prompt`` and ``gt``, the words that follow.
    - ``knowmem/{forget,retain}_qa`` with ``question`` and ``answer``, and ``..._qa_icl``, examples shown before each.
    - ``privleak/{forget,retain,holdout}``: texts for the membership attack.

    Texts are cut into blocks of ``max_length`` tokens without loss. Batches of training and validation are those of
    :class:`~datamodules.common.forget_retain.ForgetRetainData`.

    - Test, first loader, and predict: ``input_ids`` and ``attention_mask`` of prompts, padded on the left, with ``id``,
      ``split``, ``kind`` (``"verbmem"`` or ``"knowmem"``), ``row`` and ``max_new_tokens`` (int64, ``(batch,)``),
      ``prompt`` and ``target``, of ``verbmem`` the first 128 tokens, a beginning of sequence counted.
    - Test, second loader: texts of ``privleak`` as tasks with every token labelled, ``split`` (``"forget"``,
      ``"retain"`` or ``"holdout"``) and ``row``.

    Scalability: one run for each ``fold``, all from the same model. Sustainability: one run for each ``request``, each
    from the model that the run before left; ``lit-modules sequence`` does both.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the corpus.
        fold: Number of the forget set of ``scal``, 1 to 4; ``None`` takes ``raw/forget``.
        request: Number of the forget set of ``sust``, 1 to 4; ``None`` takes ``raw/forget``.
        retain: Splits of ``raw`` to retain; a model that is to know all takes ``retain1`` and ``retain2``.
        max_blocks: Blocks of the forget set and of the retain set to train on, the first ones; ``None`` takes all.
        eval_rows: Rows of each evaluated file, the first ones; ``None`` takes all.
        max_length: Largest number of tokens of a block and of an evaluated text; a longer prompt loses its beginning.
        eval_batch_size: Rows in a batch of validation, test and predict, on each device.

    Raises:
        ValueError: If an argument is out of its range, both ``fold`` and ``request`` are given or, in ``setup``, a row
            is malformed.
        FileNotFoundError: If files are missing: training needs its two sets, a test those of the last three items.

    References:
        Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", arXiv 2407.06460.
    """

    licence = "BBC articles or novels of others, not cleared for redistribution"

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/muse/news",
        fold: int | None = None,
        request: int | None = None,
        retain: tuple[str, ...] = ("retain1",),
        max_blocks: int | None = None,
        eval_rows: int | None = None,
        max_length: int = 2048,
        eval_batch_size: int = 8,
        **shared: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(
            tokenizer=tokenizer, root=root, max_length=max_length, eval_batch_size=eval_batch_size, **shared
        )
        check_at_least(1, max_blocks=max_blocks, eval_rows=eval_rows)
        check_choices((None, *FOLDS), fold=fold, request=request)
        if fold is not None and request is not None:
            raise ValueError(f"fold and request exclude each other, got fold={fold} and request={request}.")
        if not retain:
            raise ValueError("retain must name at least one split of raw, such as 'retain1', got none.")
        self.retain, self.max_blocks, self.eval_rows = tuple(retain), max_blocks, eval_rows
        self.forget = ("raw", "forget")
        if fold is not None:
            self.forget = ("scal", f"forget_{fold}")
        if request is not None:
            self.forget = ("sust", f"forget_{request}")
        self._prompts: list[tuple[Encoded, dict[str, Any]]] = []
        self._documents: list[tuple[Encoded, dict[str, Any]]] = []

    def setup(self, stage: str) -> None:
        """Read, check and tokenise the rows that the stage needs, once."""
        self.tokenizer = self._load_tokenizer()
        if stage in ("fit", "validate") and not self.encoded:
            sets = {"forget": [self.forget], "retain": [("raw", split) for split in self.retain]}
            files = self._files([key for keys in sets.values() for key in keys], "Training")
            with shown(self.trainer):
                self.encoded = {
                    name: [
                        block
                        for key in keys
                        for number, text in enumerate(track(read_texts(files[key]), f"cutting {'/'.join(key)}"))
                        for block in encode_blocks(self.tokenizer, f"{'/'.join(key)}/{number}", text, self.max_length)
                    ][: self.max_blocks]
                    for name, keys in sets.items()
                }
        if stage in ("test", "predict") and not self._prompts:
            self._set_up_prompts()
        if stage == "test" and not self._documents:
            with shown(self.trainer):
                self._set_up_documents()

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of prompts and that of texts to attack."""
        return [self.predict_dataloader(), self._in_order(self._documents)]

    def predict_dataloader(self) -> ResumableLoader:
        """Return prompts, batched by kind and length."""
        return self._in_order(self._prompts, prompts=True)

    def longest_row(self) -> tuple[str, int]:
        """Return name and tokens of the longest row that was set up, for a model to compare with its positions."""
        evaluated = [row for row, _ in (*self._prompts, *self._documents)]
        return longest([*(row for rows in self.encoded.values() for row in rows), *evaluated])

    def _set_up_prompts(self) -> None:
        questions_and_examples = [("knowmem", f"{split}_qa{end}") for split in SETS for end in ("", "_icl")]
        files = self._files([("verbmem", "forget"), *questions_and_examples], "A test")
        items: list[tuple[Encoded, dict[str, Any]]] = []

        def add(kind: str, split: str, row: int, prompt: str, target: str, count: int) -> None:
            ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
            if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
            cut = max(0, len(ids) - self.max_length)
            fact = {"split": split, "kind": kind, "row": row, "prompt": prompt, "target": target}
            encoded = Encoded(f"{kind}/{split}/{row}", ids[cut:], [], cut)
            items.append((encoded, {**fact, "max_new_tokens": count}))

        passages = read_records(files["verbmem", "forget"], ("prompt", "gt"))
        for row, passage in enumerate(passages[: self.eval_rows]):
            # special tokens count among the first tokens, as in the official code, and are no part of the text
            ids = self.tokenizer(passage["gt"], verbose=False)["input_ids"][:VERBMEM_TOKENS]
            target = self.tokenizer.decode(ids, skip_special_tokens=True)
            add("verbmem", "forget", row, passage["prompt"], target, VERBMEM_TOKENS)
        for split in SETS:
            fields = ("question", "answer")
            shown = read_records(files["knowmem", f"{split}_qa_icl"], fields)
            questions = read_records(files["knowmem", f"{split}_qa"], fields)
            for row, question in enumerate(questions[: self.eval_rows]):
                prompt = question_prompt(question["question"], shown)
                add("knowmem", split, row, prompt, question["answer"], KNOWMEM_TOKENS)
        self._warn_of_cuts([row for row, _ in items])
        self._prompts = sorted(items, key=lambda item: (item[1]["kind"], len(item[0].prompt)))

    def _set_up_documents(self) -> None:
        files = self._files([("privleak", split) for split in ATTACKED], "A test")
        items = []
        for split in ATTACKED:
            texts = read_texts(files["privleak", split])[: self.eval_rows]
            for row, text in enumerate(track(texts, f"reading privleak/{split}")):
                encoded = encode_document(self.tokenizer, f"privleak/{split}/{row}", text, self.max_length)
                items.append((encoded, {"split": split, "row": row}))
        self._warn_of_cuts([row for row, _ in items], "texts of privleak lose their end")
        self._documents = sorted(items, key=lambda item: len(item[0]))

    def _files(self, keys: Sequence[tuple[str, str]], what: str) -> dict[tuple[str, str], Path]:
        paths = {key: find_file(self.root, *key) for key in keys}
        missing = ["/".join(key) for key, path in paths.items() if path is None]
        if missing:
            raise FileNotFoundError(
                f"{what} needs {', '.join('/'.join(key) for key in keys)} in the folder {self.root}, each with an "
                f"ending of {', '.join(ENDINGS)}, and {are_missing(missing, ', ')}; the texts are not redistributed "
                f"here: get them from {ADDRESS} and give `root`."
            )
        return {key: path for key, path in paths.items() if path is not None}
