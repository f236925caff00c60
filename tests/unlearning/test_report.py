"""The table and the picture of a run."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lit_modules.unlearning.core.report import plot_report, read_metrics, table, twelve_numbers


def record(forget: float, retain: float) -> dict[str, Any]:
    def split(value: float) -> dict[str, Any]:
        tasks = {f"Task{n}": {"regurgitation-score": value, "knowledge-score": value} for n in (1, 2, 3)}
        return {"overall-regurgitation-score": value, "overall-knowledge-score": value, **tasks}

    return {
        "forget-set": split(forget),
        "retain-set": split(retain),
        "mia_loss_acc": 0.75,
        "mia_final_score": 0.5,
        "mmlu_average": None,
        "harmonic-mean-task-aggregate": 0.25,
        "aggregate-score": -1.0,
    }


def test_table_shows_the_raw_numbers_before_and_after_and_what_is_missing() -> None:
    numbers = twelve_numbers(record(0.125, 0.875))
    assert len(numbers) == 12
    assert (numbers["forget Task1 regurgitation"], numbers["retain Task3 knowledge"]) == (0.125, 0.875)
    console = Console(record=True, width=100)
    console.print(table(record(1.0, 1.0), record(0.125, 0.875)))
    lines = console.export_text().splitlines()
    row = next(line for line in lines if "forget Task2 knowledge" in line)
    assert row.split("│")[2:5] == ["  1.000 ", "  0.125 ", "      0 "]
    assert "-" in next(line for line in lines if "MMLU" in line)


def test_metrics_are_read_with_their_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/lr,val/loss\n0,0,0.5,\n0,1,0.25,\n0,1,,3.0\n")
    assert read_metrics(tmp_path) == {"train/lr": [(0, 0.5), (1, 0.25)], "val/loss": [(1, 3.0)]}
    with pytest.raises(FileNotFoundError, match=r"log the run with CSVLogger"):
        read_metrics(tmp_path / "nothing")


def test_picture_is_drawn_with_and_without_probes(tmp_path: Path) -> None:
    losses: dict[str, Any] = {"train/forget_loss": [(0, 1.0), (1, 2.0)], "val/retain_loss": [(1, 0.5)]}
    probes = {"probe": [1.0, 1.0, 2.0], "lr": [1e-4, 1e-4, 2e-4], "accepted": [1.0, 1.0, 0.0]}
    probed = {f"adaptive_lr/{name}": list(enumerate(values)) for name, values in probes.items()}
    for number, metrics in enumerate((losses, losses | {"train/lr": [(0, 1e-4), (1, 1e-4)]} | probed)):
        file = tmp_path / f"{number}.png"
        plot_report(metrics, record(1.0, 1.0), record(0.0, 1.0), file)
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size > 10_000
