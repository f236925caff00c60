"""Mean and spread over seeds, the table and the figure of a sweep."""

import math
from pathlib import Path
from typing import Any

import pytest

from lit_modules.studies.sweep.grid import Axis, grid
from lit_modules.studies.sweep.report import choose, comma_separated, draw, markdown, summarise
from lit_modules.utils.errors import UsageError

AXES = [Axis("data.variant.p", (1, math.inf)), Axis("model.eps", (0.1, 0.2)), Axis("seed_everything", (0, 1, 2))]
POINTS = grid(AXES)


def found(values: tuple[Any, ...]) -> dict[str, float | None]:
    p, eps, seed = values
    level = (10.0 if p == math.inf else 0.0) + 100 * eps
    return {"test/accuracy": level + seed, "test/robust_accuracy/linf": None if seed == 2 else 0.5, "train/loss": 1.0}


RESULTS = {point.name: found(point.values) for point in POINTS if point.values[:2] != (1, 0.2)}


def test_seeds_are_summed_up() -> None:
    rows = summarise(AXES, RESULTS, POINTS)
    assert [(row.values, row.finished) for row in rows] == [
        ((1, 0.1), 3),
        ((1, 0.2), 0),
        ((math.inf, 0.1), 3),
        ((math.inf, 0.2), 3),
    ]
    assert rows[0].numbers["test/accuracy"] == (11.0, 1.0)
    assert rows[1].numbers == {}
    assert all(map(math.isnan, (value for value in rows[0].numbers["test/robust_accuracy/linf"] if value is not None)))
    alone = summarise(AXES, {POINTS[0].name: RESULTS[POINTS[0].name]}, POINTS)
    assert alone[0].numbers["test/accuracy"] == (10.0, None)


def test_tables() -> None:
    rows = summarise(AXES, RESULTS, POINTS)
    names = choose(rows, ["test/*", "val/*"])
    assert names == ["test/accuracy", "test/robust_accuracy/linf"]
    lines = markdown(AXES, rows, names).splitlines()
    assert lines[0] == "| p | eps | runs | test/accuracy | test/robust_accuracy/linf |"
    assert lines[2:5] == [
        "| 1 | 0.1 | 3 | 11 +- 1 | nan +- nan |",
        "| 1 | 0.2 | 0 of 3 | - | - |",
        "| inf | 0.1 | 3 | 21 +- 1 | nan +- nan |",
    ]
    assert comma_separated(AXES, rows, names[:1]).splitlines() == [
        "p,eps,runs,test/accuracy,test/accuracy std",
        "1,0.1,3,11.0,1.0",
        "1,0.2,0,,",
        "inf,0.1,3,21.0,1.0",
        "inf,0.2,3,31.0,1.0",
    ]


def test_numbers_are_chosen_by_pattern() -> None:
    rows = summarise(AXES, RESULTS, POINTS)
    assert choose(rows, ["train/loss", "test/rob*"]) == ["train/loss", "test/robust_accuracy/linf"]
    with pytest.raises(UsageError, match=r"no number 'test/accurcy' for --metrics; did you mean 'test/accuracy'\?"):
        choose(rows, ["test/accurcy"])


@pytest.mark.parametrize(
    "axes",
    [AXES, [AXES[2]], [Axis("data.variant", ("Smooth", None, True))]],
    ids=["grid", "seeds alone", "names"],
)
def test_figure(axes: list[Axis], tmp_path: Path) -> None:
    points = grid(axes)
    results = {point.name: {"test/accuracy": float(i), "test/loss": None} for i, point in enumerate(points)}
    draw(axes, points, results, ["test/accuracy", "test/loss"], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
