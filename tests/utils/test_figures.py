"""One style for every figure: at most eight series, labels that do not cover each other, bitmap and vector files."""

import ast
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from matplotlib.axes import Axes

from lit_modules.studies.compare.report import SHOWN, Comparison, _best, _cells, draw, leading
from lit_modules.utils.figures import (
    COLOURS,
    MARKERS,
    STYLE,
    end_axes,
    figure_style,
    label_right,
    new_figure,
    save_figure,
    series_styles,
    spread,
)

ROOT = Path(__file__).resolve().parents[2]
FORGET, RETAIN = "test/forget", "test/retain"


def imports_matplotlib(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "matplotlib" for name in names):
            return True
    return False


def test_one_file_draws_in_one_style() -> None:
    paths = [
        path
        for part in ("lit_modules", "datamodules", "callbacks", "benchmarks")
        for path in ROOT.glob(f"{part}/**/*.py")
    ]
    assert [path.relative_to(ROOT).as_posix() for path in paths if imports_matplotlib(path)] == [
        "lit_modules/utils/figures.py"
    ]
    cycle = matplotlib.rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
    assert cycle == list(COLOURS)
    assert len(set(COLOURS)) == len(set(MARKERS)) == 8


@figure_style()
def drawn() -> tuple[object, Axes]:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2, 3], [0.2, 0.5, 0.4])
    end_axes(axes)
    return figure, axes


def test_style_holds_within_a_drawing_function_alone() -> None:
    before = dict(matplotlib.rcParams)
    _, axes = drawn()
    assert not axes.spines["top"].get_visible()
    assert axes.lines[0].get_color() == COLOURS[0]
    assert dict(matplotlib.rcParams) == before


def test_axes_end_where_values_end() -> None:
    _, axes = drawn()
    assert axes.spines["bottom"].get_bounds() == pytest.approx((1, 3))
    assert axes.spines["left"].get_bounds() == pytest.approx((0.2, 0.5))
    assert all(1 <= mark <= 3 for mark in axes.get_xticks())
    assert all(0.2 - 1e-6 <= mark <= 0.5 + 1e-6 for mark in axes.get_yticks())


def test_files_of_three_kinds_are_the_same_each_time(tmp_path: Path) -> None:
    first = save_figure(drawn()[0], tmp_path / "one.png")  # type: ignore[arg-type]
    again = save_figure(drawn()[0], tmp_path / "two.png")  # type: ignore[arg-type]
    assert [path.name for path in first] == ["one.png", "one.svg", "one.pdf"]
    heads = [path.read_bytes()[:5] for path in first]
    assert heads == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    with pytest.raises(ValueError, match="path must be the PNG file"):
        save_figure(drawn()[0], tmp_path / "one.svg")  # type: ignore[arg-type]


def test_more_than_eight_series_are_refused() -> None:
    styles = series_styles([str(number) for number in range(8)])
    assert len({style["color"] for style in styles.values()}) == 8
    with pytest.raises(ValueError, match="at most 8 series in colour, got 9"):
        series_styles([str(number) for number in range(9)])


def test_labels_keep_their_order_and_do_not_cover_each_other() -> None:
    wanted = {"a": 0.5, "b": 0.52, "c": 0.49, "d": 0.1}
    heights = spread(wanted, 0.1)
    assert sorted(heights, key=heights.__getitem__) == ["d", "c", "a", "b"]
    assert all(high - low >= 0.1 - 1e-9 for low, high in pairwise(sorted(heights.values())))
    assert heights["d"] == 0.1
    with figure_style():
        figure = new_figure(4, 3)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        label_right(axes, {name: (1, height, "black") for name, height in wanted.items()})
        figure.draw_without_rendering()
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in axes.texts] == ["d", "c", "a", "b"]
    assert all(upper.y0 >= lower.y1 - 3 for lower, upper in pairwise(boxes))  # letters have room above and below


def comparison(methods: int) -> Comparison:
    rows = [
        {"method": f"method {number}", "learning_rate": rate, "seed": 0, "failed": False}
        | {"score": 1 - number / 40 - rate, FORGET: 0.1 + number / 40, RETAIN: 0.9 - number / 40 - rate}
        for number in range(methods)
        for rate in (1e-3, 1e-2)
    ]
    references = {"start": {FORGET: 0.9, RETAIN: 0.95}, "retain only": {FORGET: 0.1, RETAIN: 0.9}}
    panel = [{"x": FORGET, "y": RETAIN}]
    return Comparison(rows, _cells(rows), _best(rows), False, references, FORGET, RETAIN, [RETAIN], panel)


def test_comparison_of_many_methods_names_the_front_and_the_best(tmp_path: Path) -> None:
    many = comparison(18)
    assert leading(many) == [f"method {number}" for number in range(SHOWN)]
    files = draw(tmp_path, many)
    assert {path.name for path in files} == {
        f"{name}.{kind}" for name in ("pareto", "rates") for kind in ("png", "svg", "pdf")
    }
    assert all(path.stat().st_size > 1000 for path in files)
    assert leading(comparison(3)) == ["method 0", "method 1", "method 2"]
