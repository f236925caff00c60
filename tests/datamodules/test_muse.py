"""The datamodule of MUSE: blocks without loss, folds and requests, evaluation rows and bad files."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from datamodules.muse.muse import MUSE
from datamodules.muse.rows import encode_blocks, read_records, read_texts

Make = Callable[..., MUSE]
TEXT = "The harbour of Lirra froze in the winter of the long bell, and nobody crossed it."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every file of a corpus, in all formats."""
    files: dict[str, Any] = {
        "raw/forget.txt": TEXT,
        "raw/retain1.json": [{"text": f"Text {i}. {TEXT}"} for i in range(3)],
        "raw/retain2.json": [TEXT],
        **{f"scal/forget_{i}.json": [TEXT] * i for i in range(1, 5)},
        **{f"sust/forget_{i}.json": [f"{i}. {TEXT}"] for i in range(1, 5)},
        "verbmem/forget.json": [{"prompt": TEXT[:30], "gt": TEXT[30:] * 9}],
        **{
            f"privleak/{s}.json": [{"text": f"{s} {i} {TEXT}"} for i in range(2)]
            for s in ("forget", "retain", "holdout")
        },
        **{
            f"knowmem/{s}_qa{end}.json": [{"question": f"Who of {s}{end}?", "answer": "Nobody."}]
            for s in ("forget", "retain")
            for end in ("", "_icl")
        },
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.fixture
def beginning(tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    """A tokenizer that puts a beginning of sequence first."""
    end, backend = str(tokenizer.eos_token), tokenizer._tokenizer  # type: ignore[attr-defined]
    backend.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)])
    yield tokenizer
    backend.post_processor = TemplateProcessing(single="$A", special_tokens=[])


@pytest.fixture
def muse(tokenizer: PreTrainedTokenizerBase, root: Path) -> Make:
    def make(stage: str = "fit", **changed: Any) -> MUSE:
        data = MUSE(**{"tokenizer": tokenizer, "root": str(root), "num_workers": 0, "max_length": 16, **changed})
        data.setup(stage)
        return data

    return make


def test_each_token_is_scored_once(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    for length in (2, 5, 16, 500):
        blocks = encode_blocks(tokenizer, "x", TEXT, length)
        assert [token for block in blocks for token in block.target] == ids
        assert max(map(len, blocks)) <= length
        assert [len(block.prompt) for block in blocks] == [0] + [1] * (len(blocks) - 1)
        assert all(after.prompt == before.target[-1:] for before, after in pairwise(blocks))


def test_a_beginning_of_sequence_begins_each_block_and_counts_among_the_first_tokens(
    beginning: PreTrainedTokenizerBase, muse: Make
) -> None:
    """As in the official code, which cuts what the tokenizer gives, special tokens included."""
    blocks = encode_blocks(beginning, "x", TEXT, 5)
    assert all(block.prompt == [beginning.eos_token_id] for block in blocks)
    assert [token for block in blocks for token in block.target] == beginning(TEXT)["input_ids"][1:]
    prompts = next(iter(muse("test", max_length=400).predict_dataloader()))
    (target,) = (t for t, kind in zip(prompts["target"], prompts["kind"], strict=True) if kind == "verbmem")
    assert target == beginning.decode(beginning(TEXT[30:] * 9)["input_ids"][1:128])
    assert str(beginning.eos_token) not in target


def test_batches_have_the_roles_of_unlearning(muse: Make) -> None:
    data = muse(batch_size=2)
    batches = list(data.train_dataloader())
    names = [name for batch in batches for name in batch["forget"]["id"]]
    assert sorted(names) == sorted({f"raw/forget/0/{i}" for i in range(len(names))})
    for task in (batch[name] for batch in batches for name in ("forget", "retain")):
        assert {task[name].dtype for name in ("input_ids", "attention_mask", "labels")} == {torch.int64}
    assert [next(iter(loader))["split"][0] for loader in data.val_dataloader()] == ["forget", "retain"]


def test_folds_and_requests_choose_the_forget_set(muse: Make) -> None:
    sizes = [len(muse(fold=i, subset="forget", batch_size=1).train_dataloader()) for i in range(1, 5)]
    assert sizes == [sizes[0] * i for i in range(1, 5)]
    batch = next(iter(muse(request=3, batch_size=1).train_dataloader()))
    assert batch["forget"]["id"][0].startswith("sust/forget_3/0/")
    whole = muse(subset="all", retain=("retain1", "retain2"), batch_size=1000)
    (batch,) = whole.train_dataloader()
    assert {"/".join(name.split("/")[:2]) for name in batch["id"]} == {"raw/forget", "raw/retain1", "raw/retain2"}


def test_evaluation_asks_and_attacks(muse: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    data = muse("test", max_length=400)
    prompts, texts = (next(iter(loader)) for loader in data.test_dataloader())
    assert sorted(prompts["kind"]) == ["knowmem", "knowmem", "verbmem"]
    rows = dict(zip(prompts["id"], range(3), strict=True))
    row = rows["knowmem/forget/0"]
    shot = "Question: Who of forget_icl?\nAnswer: Nobody.\n\n"
    assert prompts["prompt"][row] == f"{shot}Question: Who of forget?\nAnswer: "
    assert prompts["max_new_tokens"][row] == 32
    row = rows["verbmem/forget/0"]
    assert prompts["max_new_tokens"][row] == 128
    assert len(tokenizer(prompts["target"][row])["input_ids"]) == 128
    assert sorted(zip(texts["split"], texts["row"].tolist(), strict=True)) == [
        (split, row) for split in ("forget", "holdout", "retain") for row in range(2)
    ]
    assert texts["labels"][texts["attention_mask"].bool()].ne(-100).all()


def test_parquet_and_json_lines(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a", "b"]}), tmp_path / "forget-00000-of-00001.parquet")
    assert read_texts(tmp_path / "forget-00000-of-00001.parquet") == ["a", "b"]
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n"b"\n', encoding="utf-8")
    assert read_texts(tmp_path / "x.jsonl") == ["a", "b"]
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_texts(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"prompt": "a", "gt": "b"}, {"prompt": "a"}]', r"x.json, row 2: the field 'gt' is missing"),
        ("x.json", '{"a": 1}', "must be a JSON array of rows, got"),
        ("x.json", '[\n{"a" 1}]', "x.json:2: the file must be a JSON array"),
        ("x.jsonl", '{"prompt": "a", "gt": "b"}\n{', r"x.jsonl:2: a line must be JSON, got '\{'"),
        ("x.txt", "a", "must be JSON or Parquet"),
    ],
)
def test_malformed_rows_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name, ("prompt", "gt"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fold": 5}, "fold must be of None, 1, 2, 3, 4, got 5"),
        ({"fold": 1, "request": 2}, "exclude each other, got fold=1 and request=2"),
        ({"retain": ()}, "retain must name at least one split"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], message: str, muse: Make) -> None:
    with pytest.raises(ValueError, match=message):
        muse(**changed)


def test_missing_files_are_named(muse: Make, root: Path) -> None:
    (root / "privleak" / "holdout.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"and privleak/holdout is missing; .*muse-bench"):
        muse("test")
    with pytest.raises(FileNotFoundError, match="raw/retain9 is missing"):
        muse(retain=("retain9",))
