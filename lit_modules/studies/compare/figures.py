"""The figures of a comparison: forget against retain with every run as a point, and numbers against the rate."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_modules.studies.compare.report import SCORE, Comparison
from lit_modules.utils.files import whole_file

MARKERS = "osD^v<>PXph*d"
FORMATS = ("png", "svg")


def draw(folder: Path, comparison: Comparison) -> list[Path]:
    """Draw ``pareto`` and ``rates``, each as PNG and SVG.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    matplotlib.rcParams["svg.hashsalt"] = "lit-modules"  # the same numbers give the same file
    return [*_pareto(folder, comparison), *_rates(folder, comparison)]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats: none has both a lower first and a higher second number.

    Example:
        >>> front([(0.1, 0.5), (0.2, 0.9), (0.3, 0.8)])
        [(0.1, 0.5), (0.2, 0.9)]
    """
    kept: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def _pareto(folder: Path, comparison: Comparison) -> list[Path]:
    from matplotlib import pyplot as plt

    panels = comparison.pareto
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels) + 2.6, 5.6), squeeze=False)
    styles = _styles(comparison)
    rates = sorted({row["learning_rate"] for row in comparison.rows})
    for panel, axis in zip(panels, axes.flat, strict=True):
        x, y, log = panel["x"], panel["y"], bool(panel.get("log_x"))
        for method, (colour, marker) in styles.items():
            rows = [row for row in comparison.rows if row["method"] == method and _shown(row[x], row[y], log)]
            sizes = [30 + 25 * rates.index(row["learning_rate"]) for row in rows]
            axis.scatter(
                [row[x] for row in rows],
                [row[y] for row in rows],
                s=sizes,
                color=colour,
                marker=marker,
                alpha=0.65,
                linewidths=0,
                label=method,
            )
        for name, colour in zip(comparison.references, ("black", "dimgray"), strict=True):
            place = [math.nan if n is None else float(n) for n in map(comparison.references[name].get, (x, y))]
            if _shown(place[0], place[1], log):
                axis.scatter(*place, s=160, color=colour, marker="*", label=f"({name})", zorder=3)
        if (x, y) == (comparison.forget, comparison.retain):
            points = front([(row[x], row[y]) for row in comparison.rows if _shown(row[x], row[y], log)])
            axis.step(*zip(*points, strict=True), where="post", color="black", linewidth=0.8, alpha=0.6, label="front")
        axis.set(xlabel=_words(x, panel), ylabel=y.removeprefix("test/"), xscale="log" if log else "linear")
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize="small")
    figure.suptitle("Each point a run; the larger, the larger its rate", fontsize="medium")
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / figure.get_figwidth(), 1))
    return _save(figure, folder, "pareto")


def _rates(folder: Path, comparison: Comparison) -> list[Path]:
    from matplotlib import pyplot as plt

    names = [SCORE, comparison.forget, comparison.retain]
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names) + 2.6, 4.6), squeeze=False)
    for name, axis in zip(names, axes.flat, strict=True):
        for method, (colour, marker) in _styles(comparison).items():
            cells = sorted((c for c in comparison.cells if c.method == method), key=lambda cell: cell.learning_rate)
            axis.errorbar(
                [cell.learning_rate for cell in cells],
                [cell.numbers[name][0] for cell in cells],
                [cell.numbers[name][1] or 0.0 for cell in cells],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1,
                capsize=2,
                label=method,
            )
        axis.set(xlabel="learning rate", ylabel=name.removeprefix("test/"), xscale="log")
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize="small")
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / figure.get_figwidth(), 1))
    return _save(figure, folder, "rates")


def _styles(comparison: Comparison) -> dict[str, tuple[Any, str]]:
    """Return colour and marker of each method."""
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    methods = list(dict.fromkeys(row["method"] for row in comparison.rows))
    # the strong colours first, then their pale twins
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return {name: (colours[order[i % 20]], MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)}


def _shown(x: float, y: float, log: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)


def _words(name: str, panel: dict[str, Any]) -> str:
    return str(panel.get("label") or name.removeprefix("test/"))


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    from matplotlib import pyplot as plt

    files = []
    for kind in FORMATS:
        path = folder / f"{name}.{kind}"
        with whole_file(path) as part:
            figure.savefig(part, dpi=130, format=kind, metadata={"Date": None} if kind == "svg" else None)
        files.append(path)
    plt.close(figure)
    return files
