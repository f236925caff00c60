"""Requests one after the other, and growing forget sets, from the command line."""

import json
from pathlib import Path

import pytest
import torch

from lit_modules.cli import main
from lit_modules.studies.sequence import main as sequence
from lit_modules.unlearning.core.pretrained import load_causal_lm
from lit_modules.utils.errors import UsageError

TEXT = "The harbour of Lirra froze in the winter of the long bell."


@pytest.fixture
def arguments(tmp_path: Path, tiny_causal_lm: Path, quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    pair = [{"question": "Who?", "answer": "Nobody."}]
    files = {
        "raw/retain1": [TEXT],
        **{f"sust/forget_{i}": [f"{i} {TEXT}"] for i in (1, 2)},
        **{f"scal/forget_{i}": [TEXT] * i for i in (1, 2)},
        "verbmem/forget": [{"prompt": TEXT, "gt": TEXT}],
        **{f"knowmem/{s}_qa{end}": pair for s in ("forget", "retain") for end in ("", "_icl")},
        **{f"privleak/{s}": [f"{s} {i} {TEXT}" for i in range(2)] for s in ("forget", "retain", "holdout")},
    }
    for name, rows in files.items():
        (tmp_path / "news" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "news" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    given = ["--model=NGDiff", f"--model.model={tiny_causal_lm}", "--model.max_new_tokens=40"]
    given += ["--model.metric=lit_modules.metrics.muse.MUSEScore", "--model.metric.init_args.retrained_auc=0.5"]
    given += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1"]
    given += ["--data=MUSE", "--data.root=news", "--data.max_length=128", "--trainer.max_epochs=1"]
    return [*given, "--trainer.logger=false", "--trainer.enable_checkpointing=false", *quiet]


def test_each_request_starts_from_the_model_before(
    arguments: list[str], tiny_causal_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sustainability", "--folder", "runs", "--numbers", "1", "2", *arguments]
    assert main(["sequence", *line]) == 0
    results = json.loads((tmp_path / "runs" / "2" / "results.json").read_text(encoding="utf-8"))
    assert results["privleak_auc"] is not None
    assert results["forget/verbmem"] is not None
    assert "sustainability 2: {" in capsys.readouterr().out
    folders = [str(tiny_causal_lm), *(str(tmp_path / "runs" / number / "pretrained") for number in "12")]
    start, first, second = (
        torch.cat([p.detach().flatten() for p in load_causal_lm(folder).parameters()]) for folder in folders
    )
    # a step of SGD on a normalised difference is at most 0.1 * 2 long: the second run starts where the first ended
    assert 0 < (first - start).norm() <= 0.2 + 1e-4
    assert 0 < (second - first).norm() <= 0.2 + 1e-4
    before = (tmp_path / "runs" / "2" / "results.json").stat().st_mtime_ns
    assert sequence(line) == 0  # what is finished is not run again
    assert (tmp_path / "runs" / "2" / "results.json").stat().st_mtime_ns == before


def test_what_is_missing_is_told(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="needs the arguments of fit"):
        sequence(["scalability", "--folder", "runs"])
    with pytest.raises(ValueError, match=r"fold must be of None, 1, 2, 3, 4, got 7"):
        sequence(["scalability", "--folder", "runs", "--numbers", "7", *arguments])
