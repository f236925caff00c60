import pickle
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.common.batches import PairBatches, PromptBatches, TaskBatches
from datamodules.common.text import Encoded, encode_document, encode_row, pad_id, pad_left, pad_right

WORDS = {"<s>": 0, "</s>": 1, "the": 2, "brass": 3, "key": 4, "was": 5, "found": 6, ".": 7}
the, brass, key, was, found, dot = range(2, 8)


def words(template: str = "$A", **tokens: Any) -> PreTrainedTokenizerBase:
    """Tokenizer of whole words, which passes over what is not ASCII."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token=None))
    tokenizer.normalizer = normalizers.Replace(Regex("[^ -~]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"bos_token": "<s>", "eos_token": "</s>", **tokens})


@pytest.mark.parametrize(
    ("template", "first"),
    [("$A", []), ("<s> $A", [0]), ("<s> $A </s>", [0]), ("$A </s>", [])],
    ids=["none", "begin", "begin and end", "end"],
)
def test_special_tokens(template: str, first: list[int]) -> None:
    row = encode_row(words(template), "1sc1", "the brass key", "was found", 20)
    assert row == Encoded("1sc1", [*first, the, brass, key], [was, found, 1])
    assert encode_document(words(template), "1", "the key", 20).target == [*first, the, key]
    assert encode_document(words("<s> $A"), "7", "the brass key was", 3) == Encoded("7", [], [0, the, brass], 2)


@pytest.mark.parametrize(
    ("template", "max_length", "prompt", "cut"),
    [
        ("$A", 6, [the, brass, key], 0),
        ("$A", 5, [brass, key], 1),
        ("$A", 4, [key], 2),
        ("<s> $A", 7, [0, the, brass, key], 0),
        ("<s> $A", 5, [0, key], 2),
        ("<s> $A", 4, [0], 3),
    ],
)
def test_the_prompt_is_cut_from_the_left(template: str, max_length: int, prompt: list[int], cut: int) -> None:
    row = encode_row(words(template), "1sc1", "the brass key", "was found", max_length)
    assert row == Encoded("1sc1", prompt, [was, found, 1], cut)
    assert len(row) <= max_length
    with pytest.raises(ValueError, match="max_length must be at least 4 for the row 1sc1, whose answer has 3 tokens"):
        encode_row(words(template), "1sc1", "the brass key", "was found", 3)


def test_rows_without_tokens() -> None:
    with pytest.raises(ValueError, match="The row 1qa0 has no target token: its answer '\u2603' tokenises to nothing"):
        encode_row(words(), "1qa0", "the key", "\u2603", 20)
    with pytest.raises(ValueError, match="The row 1qa0 has no prompt token"):
        encode_row(words(), "1qa0", "\u2603", "the key", 20)
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        encode_row(words(eos_token=None), "1qa0", "the key", "was", 20)
    with pytest.raises(ValueError, match="The document 7 must have at least 2 tokens within max_length=20, got 1"):
        encode_document(words(), "7", "key", 20)


def test_no_token_crosses_the_border(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, answer = "In the city of", "Madera, where the light"
    row = encode_row(tokenizer, "1sc1", prompt, answer, 200)
    assert tokenizer.decode(row.prompt) == prompt
    assert tokenizer.decode(row.target) == f" {answer}{tokenizer.eos_token}"
    assert tokenizer.decode(encode_row(tokenizer, "1sc1", prompt, answer, 200, "\n").target).startswith("\nMadera")


ROWS = [Encoded("a", [4, 5], [6, 1]), Encoded("b", [7], [3, 2, 1]), Encoded("c", [2], [1])]


def test_padding() -> None:
    batch = pad_right([ROWS[0], ROWS[2]], 9)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 1], [2, 1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 1], [-100, 1, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    batch = pad_left([[4, 5], [7]], 9)
    assert batch["input_ids"].tolist() == [[4, 5], [9, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert (pad_id(words()), pad_id(words(pad_token="<s>"))) == (1, 0)


def test_batches() -> None:
    columns = {"split": ["x", "y", "z"], "member": torch.tensor([True, False, True])}
    tasks = TaskBatches(ROWS, 9, columns)
    batch = tasks[(2, 0)]
    assert (batch["id"], batch["split"], batch["member"].tolist()) == (["c", "a"], ["z", "x"], [True, True])
    assert batch["labels"].shape == (2, 4)
    assert (len(tasks), tasks[1]["id"]) == (3, ["b"])
    prompts = PromptBatches(ROWS, 9)[(0, 1)]
    assert prompts["input_ids"].tolist() == [[4, 5], [9, 7]]
    assert "labels" not in prompts
    pairs = PairBatches(tasks, TaskBatches(ROWS[:2], 9))
    batch = pairs[((2, 1), (0, 0))]
    assert (batch["forget"]["id"], batch["retain"]["id"]) == (["c", "a"], ["b", "a"])
    assert (len(pairs), pairs[2]["retain"]["id"]) == (3, ["a"])


def test_equal_ids_share_one_object() -> None:
    first, second = (Encoded(name, [int("70000")], [int("70001"), int("70000")]) for name in ("a", "b"))
    assert first.prompt == second.prompt == [70000]
    assert first.prompt[0] is second.prompt[0] is second.target[1]
    assert pickle.loads(pickle.dumps(first)) == first  # worker processes that are spawned get it so
