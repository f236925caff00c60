"""The study's table and figure, and its settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_modules.studies.study import METHODS, RATES, _data, draw, main, markdown, scores, summarise


def run(method: str, rate: float, seed: int, forget: float, retain: float, **more: Any) -> dict[str, Any]:
    def split(value: float) -> dict[str, Any]:
        return {f"Task{n}": {"regurgitation-score": value, "knowledge-score": value} for n in (1, 2, 3)}

    record = {"forget-set": split(forget), "retain-set": split(retain), "harmonic-mean-task-aggregate": retain - forget}
    result = {"method": method, "rate": rate, "seed": seed, "record": record, "losses": {"forget": 2.0, "retain": 1.0}}
    return {**result, "negative": 0.0, "last_rate": rate, **more}


RUNS = [
    run("NGDiff", 1e-4, 0, 0.0, 1.0),
    run("NGDiff", 1e-4, 1, 0.5, 1.0),
    run("NGDiff", 1e-3, 0, 0.0, 0.25),
    run("GradientDifference", 1e-4, 0, 0.25, 0.5, negative=0.75),
    {"method": "GradientDifference", "rate": 1e-3, "seed": 0, "failed": "the loss is nan"},
    run("NGDiff + AdaptiveLR", 1e-4, 0, 0.0, 1.0, probes=4, accepted=3, falling=1.0),
]


def test_means_and_deviations_over_seeds() -> None:
    assert scores(RUNS[3]) == {"aggregate": 0.25, "forget": 0.25, "retain": 0.5}
    rows = {(row["method"], row["rate"]): row for row in summarise(RUNS)}
    assert rows["NGDiff", 1e-4]["aggregate"] == (0.75, 0.25)
    assert rows["GradientDifference", 1e-4]["negative"] == 0.75
    assert rows["GradientDifference", 1e-3]["failed"] == 1
    assert rows["GradientDifference", 1e-3]["aggregate"] is None


def test_table_and_figure(tmp_path: Path) -> None:
    text = markdown(summarise(RUNS), RUNS[0]["record"])
    assert "| NGDiff | 0.0001 | 2 | 0.250 +- 0.250 | 1.000 +- 0.000 | 0.750 +- 0.250 |" in text
    assert "| NGDiff | 0.250 | 0.750 | 0.500 |" in text
    # a run that failed counts
    assert "| GradientDifference | 0.001 | 0 of 1 | - |" in text
    assert "| GradientDifference | 0.000 | 0.250 | 0.250 |" in text
    draw(RUNS, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_absurd_options_and_another_studys_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--seeds must be at least 1, got 0\."):
        main(["ngdiff", "--data", "x", "--folder", str(tmp_path), "--seeds", "0"])
    (tmp_path / "settings.json").write_text(json.dumps({"data": "another"}))
    with pytest.raises(ValueError, match="give another --folder"):
        main(["ngdiff", "--data", "x", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["ngdif"])


def test_seeds_share_the_documents_and_not_the_order(tiny_causal_lm: Path, lume_folder: Path, tmp_path: Path) -> None:
    asked = {"data": str(lume_folder), "documents": 1}
    seen = []
    for arguments in ({"seed": 0}, {"seed": 1}, {}):
        data = _data(tmp_path, asked, tokenizer=str(tiny_causal_lm), batch_size=1, **arguments)
        data.prepare_data()
        data.setup("fit")
        order = [batch["forget"]["id"][0] for batch in data.train_dataloader()]
        seen.append((data.rows, data.documents(), order))
    assert seen[0][:2] == seen[1][:2] == seen[2][:2]
    assert seen[0][2] == seen[2][2] != seen[1][2]
    assert sorted(seen[0][2]) == sorted(seen[1][2])


def test_finished_study_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data": "x", "documents": 4, "epochs": 6, "period": 2}
    runs = [run(method, rate, 0, 0.0, 1.0) for method in METHODS for rate in RATES]
    (tmp_path / "settings.json").write_text(json.dumps(settings) + "\n")
    (tmp_path / "start.json").write_text(json.dumps(runs[0]["record"]) + "\n")
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in runs))
    assert main(["ngdiff", "--data", "x", "--folder", str(tmp_path), "--seeds", "1", "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)
    assert (tmp_path / "table.md").read_text() == markdown(summarise(runs), runs[0]["record"])
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(runs)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data must be the folder .* nowhere has no forget\.jsonl"):
        main(["ngdiff", "--data", "nowhere", "--folder", str(tmp_path)])
