"""WMDP: corpora in the published layouts, what is missing, and a run from end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datamodules.wmdp.wmdp import FORM, WMDP, find_corpus
from lit_modules.cli import main

LONG = "The harbour of Lirra froze in the winter of the long bell, and nobody crossed it until spring. "


def write_rows(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in texts]), path)
    else:
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    root = tmp_path / "wmdp"
    for topic in ("bio", "cyber"):
        write_rows(root / f"{topic}-forget-corpus.jsonl", [f"{topic} {i} {LONG * (i + 1)}" for i in range(4)])
        write_rows(root / f"{topic}-retain-corpus.jsonl", [f"kept {topic} {i} {LONG}" for i in range(3)])
    write_rows(root / "wikitext-2-raw-v1" / "test.jsonl", ["= Lirra =", *(f"wiki {i} {LONG}" for i in range(6))])
    return root


@pytest.fixture
def wmdp(corpora: Path, tiny_causal_lm: Path) -> Callable[..., WMDP]:
    def make(**arguments: Any) -> WMDP:
        settings: dict[str, Any] = {"max_length": 48, "batch_size": 2, "eval_batch_size": 3, "num_workers": 0}
        return WMDP(str(tiny_causal_lm), **{"root": str(corpora)} | settings | arguments)

    return make


def names(data: WMDP) -> dict[str, list[str]]:
    data.setup("fit")
    return {name: [row.id for row in rows] for name, rows in data.encoded.items()}


def test_texts_to_forget_and_to_retain(wmdp: Callable[..., WMDP], tiny_causal_lm: Path) -> None:
    data = wmdp()
    data.prepare_data()
    rows = names(data)
    assert rows["forget"] == [f"{topic}-forget-corpus/{i}/0" for topic in ("bio", "cyber") for i in range(4)]
    assert rows["retain"] == [f"wikitext-2-raw-v1/test/{i}/0" for i in range(1, 7)]  # a heading is too short
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    first = data.encoded["forget"][0]
    assert tokenizer.decode(first.prompt + first.target) == f"bio 0 {LONG}"[: len(tokenizer.decode(first.target))]
    assert max(map(len, data.encoded["forget"])) == 48  # the beginning of a long text
    batches = list(data.train_dataloader())
    assert len(batches) == 4  # an epoch goes through the forget set
    assert all(set(batch) == {"forget", "retain"} for batch in batches)
    assert all(batch["forget"]["labels"].ne(-100).sum(1).min() > 1 for batch in batches)
    scored = [
        pair for batch in data.test_dataloader() for pair in zip(batch["split"], batch["row"].tolist(), strict=True)
    ]
    assert sorted(scored) == [("forget", i) for i in range(8)] + [("retain", i) for i in range(6)]
    assert names(wmdp(topics=("cyber",), retain="corpus", max_texts=2)) == {
        "forget": ["cyber-forget-corpus/0/0", "cyber-forget-corpus/1/0"],
        "retain": ["cyber-retain-corpus/0/0", "cyber-retain-corpus/1/0"],
    }
    whole = wmdp(blocks="all", topics=("bio",))
    assert names(whole)["forget"].count("bio-forget-corpus/3/1") == 1
    tokens = sum(len(row.target) for row in whole.encoded["forget"] if row.id.startswith("bio-forget-corpus/3/"))
    assert tokens == len(tokenizer(f"bio 3 {LONG * 4}")["input_ids"])  # none is lost, none is scored twice


def test_parquet_files_of_the_hub_and_a_file_of_ones_own(
    wmdp: Callable[..., WMDP], corpora: Path, tmp_path: Path
) -> None:
    for number in (1, 0):
        write_rows(corpora / "cyber-retain-corpus" / f"train-0000{number}-of-00002.parquet", [f"part {number} {LONG}"])
    (corpora / "cyber-retain-corpus.jsonl").unlink()
    assert [path.name for path in find_corpus(corpora, "cyber-retain-corpus")] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    data = wmdp(retain="corpus", topics=("cyber",))
    assert names(data)["retain"] == ["cyber-retain-corpus/0/0", "cyber-retain-corpus/1/0"]
    (tmp_path / "mine.json").write_text(json.dumps([LONG, LONG * 2]), encoding="utf-8")
    assert names(wmdp(retain=str(tmp_path / "mine.json")))["retain"] == ["mine/0/0", "mine/1/0"]


def test_what_is_missing_is_told(wmdp: Callable[..., WMDP], corpora: Path) -> None:
    (corpora / "bio-forget-corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"bio-forget-corpus is missing\. The authors give out") as error:
        wmdp().prepare_data()
    assert FORM in str(error.value)
    (corpora / "wikitext-2-raw-v1" / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"hf download Salesforce/wikitext .* or give retain, a file"):
        wmdp(topics=("cyber",)).prepare_data()
    (corpora / "cyber-retain-corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="hf download cais/wmdp-corpora --repo-type dataset --local-dir"):
        wmdp(topics=("cyber",), retain="corpus").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"or a file of texts, and there is no file 'mine\.txt'"):
        wmdp(topics=("cyber",), retain="mine.txt").prepare_data()
    for arguments, message in (
        ({"topics": ()}, "topics must name at least one of bio, cyber, got none"),
        ({"topics": ("chem",)}, "topics must be of 'bio', 'cyber', got 'chem'"),
        ({"blocks": "last"}, "blocks must be of 'first', 'all', got 'last'"),
        ({"max_texts": 0}, "max_texts must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            wmdp(**arguments)
    with pytest.raises(ValueError, match="must hold a text of more than min_length=5000 characters"):
        wmdp(topics=("cyber",), retain=str(corpora / "cyber-forget-corpus.jsonl"), min_length=5000).setup("fit")


@pytest.mark.parametrize("method", ["RMU", "NGDiff", "NPO"])
def test_a_run_from_the_corpora_to_the_record(
    method: str, corpora: Path, tiny_causal_lm: Path, quiet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [f"--model={method}", f"--model.model={tiny_causal_lm}", "--data=WMDP", f"--data.root={corpora}"]
    line += ["--data.max_length=32", "--data.max_texts=2", "--model.metric=WMDPScore", *quiet]
    if method == "RMU":
        line += ["--model.layer=0", r"--model.train_only=['layers\.0\.mlp\.down_proj']", "--model.retain_weight=1200"]
    saving = ["--trainer.callbacks=lit_modules.callbacks.SavePretrained", "--trainer.callbacks.folder=saved"]
    main(["fit", *line, *saving, "--trainer.max_epochs=1", "--trainer.logger=false"])
    assert (tmp_path / "saved" / "config.json").is_file()
    measured = {"wmdp_bio": 0.29, "wmdp_cyber": 0.27, "mmlu": 0.57}
    content = {"results": {task: {"acc,none": value} for task, value in measured.items()}}
    (tmp_path / "harness" / "saved").mkdir(parents=True)
    (tmp_path / "harness" / "saved" / "results_1.json").write_text(json.dumps(content), encoding="utf-8")
    record = ["--trainer.callbacks=lit_modules.callbacks.ResultRecord", "--trainer.callbacks.folder=."]
    main(["test", *line, "--model.model=saved", "--model.metric.results=harness", *record])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {task: results[task] for task in measured} == measured
    assert results["forget/nll"] > 0
    assert results["retain/nll"] > 0
