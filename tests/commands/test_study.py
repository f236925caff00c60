"""The study's table and figure, and its settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_modules.commands.study import draw, main, markdown, scores, summarise


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
    assert "| NGDiff | 0.0001 | 0.250 +- 0.250 | 1.000 +- 0.000 | 0.750 +- 0.250 |" in text
    assert "| NGDiff | 0.250 | 0.750 | 0.500 |" in text
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
