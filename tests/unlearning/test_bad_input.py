"""Bad data of unlearning end in one clear sentence before anything is trained or answered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datamodules import MUSE, TOFU
from lit_modules import NGDiff
from lit_modules.metrics import TOFUScore
from lit_modules.networks import small_llama

GOOD = {"question": "Who?", "answer": "Nobody."}
TEXT = "The harbour of Lirra froze in the winter of the long bell."
CORPUS: dict[str, Any] = {
    "raw/forget": [TEXT],
    "raw/retain1": [f"Once. {TEXT}"],
    "verbmem/forget": [{"prompt": TEXT[:20], "gt": TEXT[20:]}],
    **{f"privleak/{split}": [TEXT] for split in ("forget", "retain", "holdout")},
    **{f"knowmem/{split}_qa{end}": [GOOD] for split in ("forget", "retain") for end in ("", "_icl")},
}
"""The smallest corpus that MUSE trains and is tested on."""


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """Copy of the invented authors, and the corpus of MUSE."""
    folder = Path(shutil.copytree(repository / "tests" / "data" / "tofu", tmp_path / "data"))
    for name, rows in CORPUS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


class Spy(NGDiff):
    """Counts what a run does."""

    worked = 0

    def unlearning_step(self, group: Any) -> dict[str, float]:
        type(self).worked += 1
        return super().unlearning_step(group)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        type(self).worked += 1
        return super().predict_step(batch, batch_idx, dataloader_idx)


@pytest.fixture
def refused(bench: Any, tiny_causal_lm: Path) -> Callable[..., str]:
    """Run a stage, which must fail with a sentence before a step or an answer."""

    def run(data: Any, stage: str, sentence: str, error: type[Exception] = ValueError, **module: Any) -> str:
        Spy.worked = 0
        with pytest.raises(error, match=sentence) as caught:
            getattr(bench.trainer(), stage)(Spy(str(tiny_causal_lm), max_new_tokens=2, **module), datamodule=data)
        assert Spy.worked == 0
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def tofu(folder: Path, tiny_causal_lm: Path, **changed: Any) -> TOFU:
    return TOFU(**{"tokenizer": str(tiny_causal_lm), "root": str(folder), "num_workers": 0, "eval_rows": 2, **changed})


@pytest.mark.parametrize(
    ("stage", "name", "content", "sentence"),
    [
        ("fit", "forget10.json", '{"question": "Who?"}', r"10\.json:1: the field 'answer' is missing"),
        ("test", "retain_perturbed.json", json.dumps(GOOD), "'perturbed_answer' is missing; .* no perturbed set"),
        ("test", "forget10_perturbed.json", None, "forget10_perturbed.json is missing"),
        ("fit", "raw/retain1.json", '["a b", 3]', r"retain1\.json, row 2: a row must be .* text, got 3"),
        ("test", "verbmem/forget.json", '[{"prompt": "a"}]', "row 1: the field 'gt' is missing"),
    ],
)
def test_malformed_and_missing_files(
    stage: str, name: str, content: str | None, sentence: str, folder: Path, tiny_causal_lm: Path, refused: Any
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    data: Any = tofu(folder, tiny_causal_lm)
    if "/" in name:
        data = MUSE(tokenizer=str(tiny_causal_lm), root=str(folder), max_length=16, num_workers=0)
    refused(data, stage, sentence, FileNotFoundError if content is None else ValueError)


@pytest.mark.parametrize(("rows", "held"), [(3, 2), (1, 2)])
def test_a_retain_log_of_another_split(
    rows: int, held: int, folder: Path, tiny_causal_lm: Path, bench: Any, refused: Any, tmp_path: Path
) -> None:
    log = str(tmp_path / "retain.json")
    retained = Spy(str(tiny_causal_lm), metric=TOFUScore(log_file=log, memorisation=False), max_new_tokens=2)
    bench.trainer().test(retained, datamodule=tofu(folder, tiny_causal_lm, eval_rows=held), verbose=False)
    metric = TOFUScore(retain_log=log, memorisation=False)
    sentence = f"it holds {held} forget rows, and the test has {rows}; evaluate the same split and as many rows"
    refused(tofu(folder, tiny_causal_lm, eval_rows=rows), "test", sentence, metric=metric)
    metric.check_rows({"forget": held, "retain": 9})  # its own split
    metric.check_rows({"retain": 9})  # and a test without forget rows


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
    sentence = rf"numbers 2 tokens otherwise than the one of the model .*: '[ab]' is {low}, and {high} there\. Give the"
    message = refused(tofu(folder, tiny_causal_lm, tokenizer=renumbered), stage, sentence)
    assert renumbered in message
    assert str(tiny_causal_lm) in message


def test_a_tokenizer_with_an_added_token_and_a_model_without_one(
    bench: Any, folder: Path, tiny_causal_lm: Path, renumbered: str, tmp_path: Path
) -> None:
    added: Any = AutoTokenizer.from_pretrained(str(tiny_causal_lm))
    added.add_tokens(["<mine>"])
    network = small_llama(len(added), hidden_size=16, num_layers=1, num_heads=2)
    network.save_pretrained(tmp_path / "bare")
    for tokenizer, model in ((added, network), (renumbered, str(tmp_path / "bare"))):
        data = tofu(folder, tiny_causal_lm, tokenizer=tokenizer)
        bench.trainer(max_steps=1, limit_val_batches=0).fit(NGDiff(model), datamodule=data)
