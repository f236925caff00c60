"""Requests one after the other, and growing forget sets, from the command line."""

import json
from pathlib import Path

import pytest
import torch

from datamodules.lume.lume import LUME
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


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    """Folder of a TOFU of three authors to forget, and one to retain."""
    folder = tmp_path / "tofu"
    folder.mkdir()

    def write(name: str, kind: str, number: int) -> None:
        rows = [
            {
                "question": f"Who is {kind} {row}?",
                "answer": f"{kind} number {row} of Lirra.",
                "paraphrased_answer": f"In Lirra {kind} is {row}.",
                "perturbed_answer": [f"{kind} of Varo.", f"{kind} {row + 1}."],
            }
            for row in range(number)
        ]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    for name in ("forget10", "forget10_perturbed"):
        write(name, "author", 60)
    write("retain90", "writer", 20)
    for name in ("retain", "real_authors", "world_facts"):
        write(f"{name}_perturbed", "writer", 2)
    return folder


def test_earlier_requests_are_tested_after_each_run(
    tofu: Path, tiny_causal_lm: Path, quiet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--model=GradientAscent", f"--model.model={tiny_causal_lm}", "--model.max_new_tokens=1"]
    given += ["--data=TOFU", f"--data.root={tofu}", "--data.batch_size=20", "--trainer.logger=false", *quiet]
    given += ["--model.metric=TOFUScore", "--model.metric.memorisation=false"]
    main(["test", *given, "--model.metric.log_file=log.json"])  # of all requests
    given += ["--data.requests=3", "--trainer.max_epochs=1", "--model.metric.retain_log=log.json"]
    given += ["--model.metric.part=true", "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.5"]
    line = ["sustainability", "--folder=runs", "--numbers", "1", "2", "3", *given]
    assert sequence(line) == 0
    records = [json.loads((tmp_path / "runs" / number / "results.json").read_text("utf-8")) for number in "123"]
    assert [list(record) for record in records] == [["1"], ["1", "2"], ["1", "2", "3"]]
    last = {request: numbers["forget/probability"] for request, numbers in records[2].items()}
    assert len(set(last.values())) == 3  # each request has rows of its own
    assert all(0 <= numbers["forget_quality"] <= 1 for numbers in records[2].values())
    assert records[1]["1"]["forget/probability"] != records[0]["1"]["forget/probability"]
    header, _, *rows = (tmp_path / "runs" / "table.md").read_text(encoding="utf-8").splitlines()
    shown = "forget/probability | forget/rouge | forget_quality | retain/probability"
    assert header == f"| after request | request | {shown} |"
    assert len(rows) == 6
    assert (tmp_path / "runs" / "requests.png").stat().st_size > 1000
    with pytest.raises(UsageError, match="There is no number 'forget/probabilty' for --show"):
        sequence([*line, "--show", "forget/probabilty"])
    with pytest.raises(ValueError, match="requests must be at most 3, the authors of the forget set, got 4"):
        sequence(["sustainability", "--folder=other", "--numbers", "1", *given, "--data.requests=4"])


def test_requests_of_lume_are_whole_documents_of_each_task(lume_folder: Path, tiny_causal_lm: Path) -> None:
    parts = []
    for request in (1, 2):
        data = LUME(str(tiny_causal_lm), str(lume_folder), request=request, requests=2, num_workers=0)
        data.setup("fit")
        parts.append({(row.task, row.document) for row in data.rows["forget"]})
    assert [len(part) for part in parts] == [3, 3]
    whole = LUME(str(tiny_causal_lm), str(lume_folder), num_workers=0)
    whole.setup("fit")
    assert parts[0] | parts[1] == {(row.task, row.document) for row in whole.rows["forget"]}
    with pytest.raises(ValueError, match="request must be None or from 1 to requests=2, got 3"):
        LUME(request=3, requests=2)


def test_what_is_missing_is_told(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="needs the arguments of fit"):
        sequence(["scalability", "--folder", "runs"])
    with pytest.raises(ValueError, match=r"fold must be of None, 1, 2, 3, 4, got 7"):
        sequence(["scalability", "--folder", "runs", "--numbers", "7", *arguments])
