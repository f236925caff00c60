"""WMDP: papers and code behind hazardous knowledge to forget, and other texts to retain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_modules.utils.arguments import Unpack

from ..common.checks import are_missing, check_at_least, check_choices
from ..common.forget_retain import SETS, ForgetRetainArguments, ForgetRetainData
from ..common.sampling import ResumableLoader
from ..common.text import Encoded
from ..muse.rows import encode_blocks, read_texts

TOPICS = ("bio", "cyber")
CORPORA = "https://huggingface.co/datasets/cais/wmdp-corpora"
FORM = "https://docs.google.com/forms/d/e/1FAIpQLSdnQc8Qn0ozSDu3VE8HLoHPvhpukX1t1dIwE5K5rJw9lnOjKw/viewform"
WIKITEXT = "wikitext-2-raw-v1/test"
"""Part of Wikitext that the authors retain."""


class WMDP(ForgetRetainData):
    """Corpora of WMDP to forget, biology and cybersecurity, and texts to retain.

    ``root`` is the folder of the corpora as they are published, a text in each row:

    - ``<topic>-forget-corpus.jsonl`` and ``<topic>-retain-corpus.jsonl``, rows with the string ``text``, or strings; or
      the Parquet files of https://huggingface.co/datasets/cais/wmdp-corpora (MIT) in folders of these names. The
      corpus ``bio-forget-corpus`` is not public: the authors give it out on request.
    - ``wikitext-2-raw-v1/test*.parquet`` of https://huggingface.co/datasets/Salesforce/wikitext, or ``.jsonl``.

    Nothing is downloaded. A text shorter than ``min_length`` is left out. Of a longer one than ``max_length`` the
    beginning counts, as in the authors' code, or all blocks. Every token of a block is scored, but the first one where
    the tokenizer puts none before it. Batches of training and validation are those of
    :class:`~datamodules.common.forget_retain.ForgetRetainData`.

    - Test: the rows of both sets as tasks with ``split`` and ``row`` (int64, ``(batch,)``).

    What is left of the knowledge is asked by lm-eval's ``wmdp_bio``, ``wmdp_cyber`` and ``mmlu``, on the folder that
    ``callbacks.SavePretrained`` writes; :class:`lit_modules.metrics.WMDPScore` reads them.

    Args:
        tokenizer: Tokenizer, or its name or folder; the command line takes the model's.
        root: Folder of the corpora.
        topics: Topics to forget.
        retain: Texts to retain: ``"wikitext"``, as the authors', ``"corpus"``, the topics' retain corpora, or a file of
            texts that ends with ``.txt`` (one text), ``.json``, ``.jsonl`` or ``.parquet``.
        max_texts: Texts of each corpus, the first ones; ``None`` takes all.
        min_length: Characters of the shortest text.
        blocks: The part of a text to take: its first ``max_length`` tokens, or all blocks of as many.
        eval_rows: Rows of each set in validation and test, the first ones; ``None`` takes all.

    Raises:
        ValueError: If an argument is out of its range or, in ``setup``, a row is malformed or no text is left.
        FileNotFoundError: If a corpus is missing; the message says how to get it.

    References:
        Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv 2403.03218.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        root: str = "data/wmdp",
        topics: tuple[str, ...] = TOPICS,
        retain: str = "wikitext",
        max_texts: int | None = None,
        min_length: int = 50,
        blocks: Literal["first", "all"] = "first",
        eval_rows: int | None = None,
        **shared: Unpack[ForgetRetainArguments],
    ) -> None:
        super().__init__(tokenizer=tokenizer, root=root, **shared)
        check_at_least(1, max_texts=max_texts, min_length=min_length, eval_rows=eval_rows)
        if not topics:
            raise ValueError(f"topics must name at least one of {', '.join(TOPICS)}, got none.")
        for topic in topics:
            check_choices(TOPICS, topics=topic)
        check_choices(("first", "all"), blocks=blocks)
        self.topics, self.retain = tuple(dict.fromkeys(topics)), retain
        self.max_texts, self.min_length, self.blocks, self.eval_rows = max_texts, min_length, blocks, eval_rows

    def prepare_data(self) -> None:
        """Say what is missing, and how to get it."""
        self._files()

    def setup(self, stage: str) -> None:
        """Read, check and tokenise the corpora, once."""
        self.tokenizer = self._load_tokenizer()
        if not self.encoded:
            self.encoded = {
                name: [row for corpus, files in corpora.items() for row in self._rows(corpus, files)]
                for name, corpora in self._files().items()
            }

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return a loader of each set, to score its rows."""
        return [self._scoring(name, self.encoded[name][: self.eval_rows]) for name in SETS]

    def test_dataloader(self) -> ResumableLoader:
        """Return the rows of both sets, to score."""
        items: list[tuple[Encoded, dict[str, Any]]] = [
            (row, {"split": name, "row": number})
            for name in SETS
            for number, row in enumerate(self.encoded[name][: self.eval_rows])
        ]
        return self._in_order(sorted(items, key=lambda item: len(item[0])))

    def _rows(self, corpus: str, files: Sequence[Path]) -> list[Encoded]:
        texts = [text for file in files for text in read_texts(file)]
        chosen = [(number, text) for number, text in enumerate(texts) if len(text) > self.min_length][: self.max_texts]
        if not chosen:
            raise ValueError(f"{files[0]} must hold a text of more than min_length={self.min_length} characters.")
        last = 1 if self.blocks == "first" else None
        return [
            block
            for number, text in chosen
            for block in encode_blocks(self.tokenizer, f"{corpus}/{number}", text, self.max_length)[:last]
        ]

    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """Return the files of each corpus of each set."""
        corpora = {"forget": [f"{topic}-forget-corpus" for topic in self.topics], "retain": [WIKITEXT]}
        if self.retain == "corpus":
            corpora["retain"] = [f"{topic}-retain-corpus" for topic in self.topics]
        elif self.retain != "wikitext":
            corpora["retain"] = []
        found = {name: {corpus: find_corpus(self.root, corpus) for corpus in corpora[name]} for name in SETS}
        missing = [corpus for name in SETS for corpus, files in found[name].items() if not files]
        if missing:
            ways = " ".join(dict.fromkeys(map(self._way, missing)))
            raise FileNotFoundError(
                f"WMDP needs {', '.join(corpus for name in SETS for corpus in corpora[name])} in the folder "
                f"{self.root}, as .jsonl or Parquet files, and {are_missing(missing, ', ')}. {ways}"
            )
        if not corpora["retain"]:
            if not Path(self.retain).is_file():
                raise FileNotFoundError(
                    f"retain must be 'wikitext', 'corpus' or a file of texts, and there is no file {self.retain!r}."
                )
            found["retain"] = {Path(self.retain).stem: [Path(self.retain)]}
        return found

    def _way(self, corpus: str) -> str:
        """Return the way to get a corpus."""
        if corpus == "bio-forget-corpus":
            return f"The authors give out bio-forget-corpus on request ({FORM}); put bio-forget-corpus.jsonl there."
        if corpus == WIKITEXT:
            return (
                "Wikitext: hf download Salesforce/wikitext --repo-type dataset --include 'wikitext-2-raw-v1/test*' "
                f"--local-dir {self.root}; or give retain, a file of your own."
            )
        return f"The other corpora: hf download cais/wmdp-corpora --repo-type dataset --local-dir {self.root}."


def find_corpus(root: Path, corpus: str) -> list[Path]:
    """Return the files of a corpus: one that has its name, or the Parquet files of a hub's copy, in their order.

    Args:
        root: Folder of the corpora.
        corpus: Its name, such as ``"cyber-forget-corpus"``, or ``"wikitext-2-raw-v1/test"`` for a split of one.
    """
    for ending in (".jsonl", ".parquet"):
        if (root / f"{corpus}{ending}").is_file():
            return [root / f"{corpus}{ending}"]
    folder, _, split = corpus.partition("/")
    return sorted((root / folder).glob(f"{split or 'train'}-*.parquet"))
