"""Bad data of unlearning end in one clear sentence before anything is trained or answered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from datamodules import MUSE, TOFU
from lit_modules import NPO, NGDiff
from lit_modules.metrics import TOFUScore
from lit_modules.metrics.muse import MUSEScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.pretrained import model_hash

Edit = Callable[[Path], None]


def write(name: str, content: str) -> Edit:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


GOOD = {"question": "Who?", "answer": "Nobody."}
PERTURBED = {**GOOD, "perturbed_answer": ["All."], "paraphrased_answer": "No one."}


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """Copy of the invented authors."""
    return Path(shutil.copytree(repository / "tests" / "data" / "tofu", tmp_path / "tofu"))


class Spy(NGDiff):
    """Counts what a run does."""

    worked = 0

    def unlearning_step(self, group: Any) -> dict[str, float]:
        """Count a step."""
        type(self).worked += 1
        return super().unlearning_step(group)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Count answers."""
        type(self).worked += 1
        return super().predict_step(batch, batch_idx, dataloader_idx)


@pytest.fixture
def refused(bench: Any, tiny_causal_lm: Path) -> Callable[..., None]:
    """Run a stage, which must fail with a sentence before a step or an answer."""

    def run(data: Any, stage: str, sentence: str, error: type[Exception] = ValueError, **module: Any) -> str:
        Spy.worked = 0
        settings = {"model": str(tiny_causal_lm), "max_new_tokens": 2, **module}
        with pytest.raises(error, match=sentence) as caught:
            getattr(bench.trainer(), stage)(Spy(**settings), datamodule=data() if callable(data) else data)
        assert Spy.worked == 0
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def tofu(folder: Path, tiny_causal_lm: Path, **changed: Any) -> TOFU:
    return TOFU(**{"tokenizer": str(tiny_causal_lm), "root": str(folder), "num_workers": 0, "eval_rows": 2, **changed})


@pytest.mark.parametrize(
    ("stage", "edit", "sentence"),
    [
        ("fit", write("forget10.json", lines(GOOD, {"question": "Who?"})), r"10\.json:2: the field 'answer' is miss"),
        ("fit", write("retain90.json", lines(GOOD, '{"question": "Who?", ')), r"0\.json:2: a line must be JSON, got"),
        ("fit", write("retain90.json", lines(["Who?", "Nobody."])), r"with the strings question, answer, got \['Who\?'"),
        ("fit", write("forget10.json", lines({**GOOD, "answer": "\t"})), r"not blank, got '\\t'"),
        ("fit", write("forget10.json", ""), r"forget10\.json is empty; it must hold at least one line"),
        ("test", write("retain_perturbed.json", lines(GOOD)), "'perturbed_answer' is missing; .* no perturbed set"),
        (
            "test",
            write("world_facts_perturbed.json", lines({**PERTURBED, "perturbed_answer": "All."})),
            r"world_facts_perturbed\.json:1: the field 'perturbed_answer' must be a list of strings",
        ),
        (
            "test",
            write("forget10_perturbed.json", lines(PERTURBED)),
            "forget10_perturbed must hold the questions of forget10 in their order, and row 0 differs; take both",
        ),
    ],
)  # fmt: skip
def test_malformed_rows_of_tofu(
    stage: str, edit: Edit, sentence: str, folder: Path, tiny_causal_lm: Path, refused: Any
) -> None:
    edit(folder)
    refused(tofu(folder, tiny_causal_lm), stage, sentence)


def test_a_missing_perturbed_set(folder: Path, tiny_causal_lm: Path, refused: Any) -> None:
    for name in ("forget10", "real_authors"):
        (folder / f"{name}_perturbed.json").rename(folder / f"{name}.bak")
        said = refused(tofu(folder, tiny_causal_lm), "test", f"{name}_perturbed.json is missing", FileNotFoundError)
        assert str(folder) in said
        (folder / f"{name}.bak").rename(folder / f"{name}_perturbed.json")


def corpus(folder: Path) -> Path:
    """Write the smallest corpus that MUSE trains and is tested on."""
    text = "The harbour of Lirra froze in the winter of the long bell."
    files: dict[str, Any] = {
        "raw/forget.json": [text],
        "raw/retain1.json": [f"Once. {text}"],
        "verbmem/forget.json": [{"prompt": text[:20], "gt": text[20:]}],
        **{f"privleak/{split}.json": [text] for split in ("forget", "retain", "holdout")},
        **{f"knowmem/{split}_qa{end}.json": [GOOD] for split in ("forget", "retain") for end in ("", "_icl")},
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("stage", "edit", "sentence"),
    [
        ("fit", write("raw/forget.json", '[{"txt": "a"}]'), r"forget\.json, row 1: the field 'text' is missing"),
        ("fit", write("raw/retain1.json", '["a b", 3]'), r"retain1\.json, row 2: a row must be .* text, got 3"),
        ("fit", write("raw/forget.json", '[""]'), "row 1: the field 'text' must be a string that is not blank, got ''"),
        ("fit", write("raw/forget.json", "[]"), r"forget\.json must hold at least one row, got none"),
        ("fit", write("raw/forget.json", "text"), r"forget\.json:1: the file must be a JSON array of rows"),
        ("test", write("verbmem/forget.json", '[{"prompt": "a"}]'), "row 1: the field 'gt' is missing"),
        ("test", write("knowmem/retain_qa.json", '[{"question": 1, "answer": "a"}]'), "'question' must be .*, got 1"),
        ("test", write("privleak/holdout.json", "{}"), r"holdout\.json must be a JSON array of rows, got"),
    ],
)
def test_malformed_rows_of_muse(
    stage: str, edit: Edit, sentence: str, tmp_path: Path, tiny_causal_lm: Path, refused: Any
) -> None:
    root = corpus(tmp_path / "corpus")
    edit(root)
    data = MUSE(tokenizer=str(tiny_causal_lm), root=str(root), max_length=16, num_workers=0)
    refused(data, stage, sentence)


@pytest.mark.parametrize(("rows", "held"), [(3, 2), (1, 2)])
def test_a_retain_log_of_another_split(
    rows: int, held: int, folder: Path, tiny_causal_lm: Path, bench: Any, refused: Any, tmp_path: Path
) -> None:
    log = str(tmp_path / "retain.json")
    retained = Spy(str(tiny_causal_lm), metric=TOFUScore(log_file=log, memorisation=False), max_new_tokens=2)
    bench.trainer().test(retained, datamodule=tofu(folder, tiny_causal_lm, eval_rows=held), verbose=False)
    retained.results()
    metric = TOFUScore(retain_log=log, memorisation=False)
    sentence = f"it holds {held} forget rows, and the test has {rows}; evaluate the same split and as many rows"
    refused(tofu(folder, tiny_causal_lm, eval_rows=rows), "test", sentence, metric=metric)
    metric.check_rows({"forget": held, "retain": 9})  # its own split
    metric.check_rows({"retain": 9})  # and a test without forget rows


def test_a_log_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("[]")
    for score in (TOFUScore, MUSEScore):
        with pytest.raises(ValueError, match=r"log\.json"):
            score(retain_log=str(tmp_path / "log.json"))


@pytest.fixture
def renumbered(tiny_causal_lm: Path, tmp_path: Path) -> str:
    """Folder of the tiny model's tokenizer with two of its tokens exchanged, of the same size."""
    path = Path(shutil.copytree(tiny_causal_lm, tmp_path / "renumbered"))
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_tokenizer_of_another_model(
    stage: str, folder: Path, tiny_causal_lm: Path, renumbered: str, refused: Any
) -> None:
    own = AutoTokenizer.from_pretrained(str(tiny_causal_lm)).get_vocab()
    low, high = sorted((own["a"], own["b"]))
    said = refused(
        tofu(folder, tiny_causal_lm, tokenizer=renumbered),
        stage,
        rf"numbers 2 tokens otherwise than the one of the model .*: '[ab]' is {low}, and {high} there\. Give the token",
    )
    assert renumbered in said
    assert str(tiny_causal_lm) in said


def test_a_tokenizer_with_an_added_token_and_a_model_without_one(
    bench: Any, folder: Path, tiny_causal_lm: Path, renumbered: str, tmp_path: Path
) -> None:
    added: Any = AutoTokenizer.from_pretrained(str(tiny_causal_lm))
    assert len(added) < 410
    added.add_tokens(["<mine>"])
    network = small_llama(len(added), hidden_size=16, num_layers=1, num_heads=2)
    network.save_pretrained(tmp_path / "bare")
    for tokenizer, model in ((added, str(tmp_path / "bare")), (renumbered, str(tmp_path / "bare")), (added, network)):
        data = tofu(folder, tiny_causal_lm, tokenizer=tokenizer)
        bench.trainer(max_steps=1, limit_val_batches=0).fit(NGDiff(model), datamodule=data)


def test_a_cache_that_another_model_made(bench: Any, tmp_path: Path) -> None:
    network = bench.network()
    own, other = model_hash(network, "32-true"), "f" * 64
    (tmp_path / f"{own}.json").write_text(json.dumps({"model": other, "rows": {"a": -1.0}}))
    before = [parameter.clone() for parameter in network.parameters()]
    module = NPO(network, tokenizer=bench.tokenizer(), cache_dir=str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"made by the model ffffffffffff, and this run starts from the model {own[:12]}"
    ):
        bench.trainer().fit(module, bench.loader(bench.pairs(8)))
    for was, now in zip(before, network.parameters(), strict=True):
        assert torch.equal(was, now)
    assert json.loads((tmp_path / f"{own}.json").read_text())["model"] == other  # left as it was
