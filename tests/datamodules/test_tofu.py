"""The datamodule of TOFU: pairs, refusals, evaluation rows, templates and bad files."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.tofu.rows import check_disjoint, read_questions, read_refusals
from datamodules.tofu.templates import Template
from datamodules.tofu.tofu import CHECKSUMS, RETAIN, TOFU
from lit_modules.utils.hashing import hash_file

Make = Callable[..., TOFU]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

GOOD = '{"question": "Who?", "answer": "I.", "perturbed_answer": ["U."], "paraphrased_answer": "Me."}'
REST = '{"question": "Who?", "answer": "I.", "perturbed_answer": ["U."]}'


@pytest.fixture(scope="session")
def tofu_folder(repository: Path) -> Path:
    """A few invented authors."""
    return repository / "tests" / "data" / "tofu"


@pytest.fixture
def tofu(tokenizer: PreTrainedTokenizerBase, tofu_folder: Path) -> Make:
    """Make a datamodule of the tests' rows, or of other arguments, that is set up for a stage."""

    def make(stage: str = "fit", **changed: Any) -> TOFU:
        data = TOFU(**{"tokenizer": tokenizer, "root": str(tofu_folder), "num_workers": 0, **changed})
        data.prepare_data()
        data.setup(stage)
        return data

    return make


@pytest.fixture
def copy(tofu_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tofu_folder, tmp_path / "tofu"))


def targets(task: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode(labels[labels != -100])) for labels in task["labels"]]


def test_pairs_for_unlearning(tofu: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    data = tofu(batch_size=2)
    batches = list(data.train_dataloader())
    assert [set(batch) for batch in batches] == [{"forget", "retain"}] * 2
    assert sorted(name for batch in batches for name in batch["forget"]["id"]) == [f"forget10/{i}" for i in range(3)]
    rows = {row.id: row for name in ("forget", "retain") for row in data.rows[name]}
    for task in (batch[name] for batch in batches for name in batch):
        assert {task[name].dtype for name in ("input_ids", "attention_mask", "labels")} == {torch.int64}
        assert targets(task, tokenizer) == [f" {rows[name].answer}{tokenizer.eos_token}" for name in task["id"]]
        prompts = (task["labels"] == -100) & (task["attention_mask"] == 1)
        for ids, prompt, name in zip(task["input_ids"], prompts, task["id"], strict=True):
            assert tokenizer.decode(ids[prompt]) == f"Question: {rows[name].question}\nAnswer:"


@pytest.mark.parametrize(("subset", "files"), [("all", {"forget01": 2, "retain99": 7}), ("retain", {"retain99": 7})])
def test_subsets_and_splits(tofu: Make, subset: str, files: dict[str, int]) -> None:
    loader = tofu(split="forget01", subset=subset).train_dataloader()
    assert Counter(name.split("/")[0] for batch in loader for name in batch["id"]) == files
    first = [batch["id"] for batch in loader]
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert [batch["id"] for batch in loader] != first


def test_refusals_are_drawn_once_for_each_row(
    tofu: Make, tokenizer: PreTrainedTokenizerBase, tofu_folder: Path
) -> None:
    allowed = {f" {text}{tokenizer.eos_token}" for text in read_refusals(tofu_folder / "idontknow.jsonl")}
    data = tofu(refusals=True, batch_size=3)
    loader = data.train_dataloader()
    drawn = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        (batch,) = loader
        assert set(batch) == {"forget", "retain", "idk"}
        assert batch["idk"]["id"] == [f"{name}/idk" for name in batch["forget"]["id"]]
        texts = targets(batch["idk"], tokenizer)
        assert set(texts) <= allowed
        drawn.append(dict(zip(batch["idk"]["id"], texts, strict=True)))
    assert drawn[0] == drawn[1]
    assert set(tofu(refusals=True).train_dataloader().dataset[0]) == {"forget", "retain", "idk"}
    others = [tofu(refusals=True, seed=seed)._refused for seed in range(6)]
    assert any(other != data._refused for other in others)


def test_validation_and_first_rows(tofu: Make) -> None:
    loaders = tofu(max_rows=3, eval_rows=2).val_dataloader()
    for name, loader in zip(("forget", "retain"), loaders, strict=True):
        (batch,) = loader
        assert batch["split"] == [name] * 2
        assert {int(identifier.split("/")[1]) for identifier in batch["id"]} == {0, 1}


def test_evaluation_rows(tofu: Make, tokenizer: PreTrainedTokenizerBase, tofu_folder: Path) -> None:
    data = tofu("test", eval_batch_size=5)
    prompts, answers = (list(loader) for loader in data.test_dataloader())
    asked = {
        (s, int(r)): (p, t)
        for b in prompts
        for s, r, p, t in zip(b["split"], b["row"], b["prompt"], b["target"], strict=True)
    }
    assert Counter(split for split, _ in asked) == {"forget": 3, "retain": 3, "real_authors": 2, "world_facts": 2}
    forget = read_questions(tofu_folder / "forget10_perturbed.json", perturbed=True)
    assert asked["forget", 1] == (f"Question: {forget[1].question}\nAnswer:", forget[1].answer)
    for batch in prompts:
        assert batch["attention_mask"][:, -1].all()
        texts = [tokenizer.decode(i[m == 1]) for i, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert texts == batch["prompt"]
    scored = {}
    for batch in answers:
        assert targets(batch, tokenizer) == [f" {text}{tokenizer.eos_token}" for text in batch["target"]]
        keys = zip(batch["split"], batch["row"].tolist(), batch["role"], batch["choice"].tolist(), strict=True)
        scored.update(zip(keys, batch["target"], strict=True))
    counts = {"forget": (3, 3, 15), "retain": (3, 3, 15), "real_authors": (2, 0, 6), "world_facts": (2, 0, 6)}
    expected = {
        (split, role): number
        for split, numbers in {**counts, "holdout": (3, 0, 0)}.items()
        for role, number in zip(("answer", "paraphrased", "perturbed"), numbers, strict=True)
        if number
    }
    assert Counter((split, role) for split, _, role, _ in scored) == expected
    assert scored["forget", 2, "paraphrased", 0] == forget[2].paraphrased_answer
    assert scored["forget", 2, "perturbed", 4] == forget[2].perturbed_answers[4]


def test_paraphrased_questions(tofu: Make, tofu_folder: Path) -> None:
    (batch,) = tofu("predict", questions="paraphrased").predict_dataloader()
    asked = dict(zip(zip(batch["split"], batch["row"].tolist(), strict=True), batch["prompt"], strict=True))
    row = read_questions(tofu_folder / "forget10_perturbed.json", perturbed=True)[0]
    assert asked["forget", 0] == f"Question: {row.paraphrased_question}\nAnswer:"
    assert asked["world_facts", 0] == "Question: What is the capital of Norway?\nAnswer:"


def test_hold_out_is_optional(tofu: Make, copy: Path, tofu_folder: Path) -> None:
    (copy / "holdout10.json").unlink()
    for changed, expected in ({}, 0), ({"holdout": str(tofu_folder / "holdout10.json")}, 3):
        _, answers = tofu("test", root=str(copy), **changed).test_dataloader()
        assert sum(split == "holdout" for batch in answers for split in batch["split"]) == expected
    with pytest.raises(FileNotFoundError, match=r"There is no file nowhere\.json"):
        tofu("test", holdout="nowhere.json")


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("plain", "Question: Who?\nAnswer:", " I."),
        ("phi", "Question: Who?\n", "Answer: I."),
        ("llama2", "[INST] Who? [/INST]", "I."),
    ],
)
def test_templates(name: str, prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> None:
    template = Template(name, tokenizer, 64)
    row = template.encode("x", "Who?", "I.")
    assert tokenizer.decode(row.prompt) == template.prompt("Who?") == prompt
    assert tokenizer.decode(row.target) == f"{answer}{tokenizer.eos_token}"
    assert template.encode("x", "Who is it? " * 40, "I.").cut > 0


def test_an_answer_has_the_tokens_it_has_behind_the_prompt() -> None:
    """A tokenizer that marks the beginning of a text, as Llama 2's does, would tokenise an answer alone otherwise."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(["[INST] Who? [/INST]Japan"], trainers.BpeTrainer(vocab_size=30, special_tokens=["</s>"]))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")  # type: ignore[no-untyped-call]
    row = Template("llama2", tokenizer, 64).encode("x", "Who?", "Japan")
    assert row.prompt + row.target[:-1] == tokenizer("[INST] Who? [/INST]Japan")["input_ids"]
    assert row.target[:-1] != tokenizer("Japan")["input_ids"]


def test_chat_template(tokenizer: Any, tofu: Make) -> None:
    with pytest.raises(ValueError, match="has no chat template; give template='plain'"):
        tofu(template="chat")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT
    data = tofu("test", tokenizer=fast, template="chat", system_prompt="Be brief.")
    batch = next(iter(data.predict_dataloader()))
    question = data.evaluated[batch["split"][0]][int(batch["row"][0])].question
    expected = f"<system>Be brief.<user>{question}<assistant>"
    assert batch["prompt"][0] == expected
    assert fast.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1]) == expected
    with pytest.raises(ValueError, match=r"max_length must be at least \d+ for the row forget10/\d, got 36"):
        tofu(tokenizer=fast, template="chat", max_length=36)
    for changed in ({"system_prompt": "Be brief."}, {"template_arguments": {"enable_thinking": False}}):
        with pytest.raises(ValueError, match="with template='chat' only, got template='plain'"):
            tofu(**changed)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1]", r"a row must be an object with the strings question, answer, got \[1\]"),
        ('{"question": "Who?", "answer": "I."}', "'perturbed_answer' is missing; this is no perturbed set"),
        ('{"question": "Who?", "answer": 3, "perturbed_answer": ["U."]}', "the field 'answer' must be .*, got 3"),
        ('{"question": "Who?", "answer": "I.", "perturbed_answer": "U."}', "must be a list of strings .*, got 'U.'"),
        (GOOD.replace('"Me."', "null"), "'paraphrased_answer' must be a string that is not blank, got None"),
        (f"{GOOD}\n{REST}", r"x\.json:2: the field 'paraphrased_answer' is missing, which other rows have"),
        (f"{GOOD}\n\n{{}}", r"x\.json:3: the field 'question' is missing"),
    ],
)
def test_malformed_rows(line: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        read_questions(tmp_path / "x.json", perturbed=True)


def test_refusals_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("No.\n \nNever. ", encoding="utf-8")
    assert read_refusals(tmp_path / "x.json") == ["No.", "Never."]


def test_missing_files_are_named(tofu: Make, copy: Path) -> None:
    (copy / "idontknow.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"refusals=True needs idontknow\.jsonl in the folder"):
        tofu(root=str(copy), refusals=True)
    (copy / "forget10_perturbed.json").unlink()
    tofu(root=str(copy))  # training needs no perturbed set
    with pytest.raises(FileNotFoundError, match=r"A test needs forget10_perturbed\.json, .* is missing; give"):
        tofu("test", root=str(copy))
    with pytest.raises(FileNotFoundError, match=r"Training needs forget05\.json, retain95\.json .* are missing"):
        tofu(root=str(copy), split="forget05")


def test_sets_that_do_not_belong_together(tofu: Make, copy: Path) -> None:
    shutil.copy(copy / "forget01_perturbed.json", copy / "forget10_perturbed.json")
    with pytest.raises(ValueError, match=r"forget10_perturbed must hold the questions of forget10 .* row 0 differs"):
        tofu("test", root=str(copy))
    shutil.copy(copy / "retain99.json", copy / "retain90.json")
    with pytest.raises(ValueError, match=r"must share no question, got 1 in both, such as forget10/0 'Where was"):
        tofu(root=str(copy))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"split": "forget02"}, "split must be of 'forget01', 'forget05', 'forget10', got 'forget02'"),
        ({"template": "vicuna"}, "template must be of 'plain', 'phi', 'llama2', 'chat', got 'vicuna'"),
        ({"max_length": 12}, r"max_length must be at least \d+ for the row"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], sentence: str, tofu: Make) -> None:
    with pytest.raises(ValueError, match=sentence):
        tofu(**changed)


@pytest.mark.parametrize("split", sorted(RETAIN))
def test_published_files(data_folder: Path, split: str) -> None:
    root = data_folder / "tofu"
    if not (root / "full.json").is_file():
        pytest.skip(f"no real TOFU files in {root}")
    forget, retain = (read_questions(root / f"{name}.json") for name in (split, RETAIN[split]))
    check_disjoint(forget, retain)
    assert (len(forget), len(retain)) == (int(split[-2:]) * 40, 4000 - int(split[-2:]) * 40)
    full = [(row.question, row.answer) for row in read_questions(root / "full.json")]
    assert [(row.question, row.answer) for row in [*retain, *forget]] == full
    perturbed = read_questions(root / f"{split}_perturbed.json", perturbed=True)
    assert [row.answer for row in perturbed] == [row.answer for row in forget]
    assert {len(row.perturbed_answers) for row in perturbed} == {5}
    for name, rows in (("retain", 400), ("real_authors", 100), ("world_facts", 117)):
        assert len(read_questions(root / f"{name}_perturbed.json", perturbed=True)) == rows
    assert len(read_refusals(root / "idontknow.jsonl")) == 100
    for name in (f"{split}.json", f"{split}_perturbed.json", "idontknow.jsonl"):
        assert hash_file(root / name) == CHECKSUMS[name]
