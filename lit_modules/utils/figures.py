"""Figures in one style: colours that can be told apart, labels beside what they name, a bitmap and two vector files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.utils.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("data") / "figures.mplstyle"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5195")
"""Colours of series, those of the style file."""
MARKERS = "os^DvXP*"
REST = "#b5b5b5"
"""Colour of what stands behind the series."""
FORMATS = ("png", "svg", "pdf")
_UNDATED = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the project's style within the block, or within a function that this decorates."""
    from matplotlib import rc_context

    with rc_context(fname=STYLE):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure that no window belongs to.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: str | Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, each whole or not at all; the same numbers give the same files.

    Args:
        figure: The figure.
        path: The PNG file; the others lie beside it.

    Returns:
        The files.

    Raises:
        ValueError: If the path does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path must be the PNG file, beside which the others are written; got {path}.")
    files = [path.with_suffix(f".{kind}") for kind in FORMATS]
    with figure_style():
        for kind, file in zip(FORMATS, files, strict=True):
            with whole_file(file) as part:
                figure.savefig(part, format=kind, metadata=_UNDATED[kind])
    return files


def series_styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return colour and marker of each series.

    Raises:
        ValueError: If there are more than eight: nobody tells more apart.

    Example:
        >>> series_styles(["PGD"])
        {'PGD': {'color': '#0072B2', 'marker': 'o'}}
    """
    if len(names) > len(COLOURS):
        raise ValueError(
            f"A figure must have at most {len(COLOURS)} series in colour, got {len(names)}; draw the rest in grey."
        )
    return {
        name: {"color": colour, "marker": marker} for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False)
    }


def label_right(axes: "Axes", points: Mapping[str, tuple[float, float, str]], leaders: bool = False) -> None:
    """Write names right of the axes, each at the height of its point and none upon another.

    Call this when everything is drawn, as the limits of the axes must be known.

    Args:
        axes: The axes.
        points: Horizontal and vertical place of each name's point, in data units, and its colour.
        leaders: Whether a line leads from the point to its name.
    """
    axes.autoscale_view()
    figure: Any = axes.figure
    size = 8.0
    rows = axes.get_subplotspec().get_gridspec().nrows if axes.get_subplotspec() is not None else 1  # type: ignore[union-attr]
    gap = 1.25 * size / 72 / (0.7 * figure.get_figheight() / rows)  # height of a line, as a share of the axes
    ends = axes.transAxes.inverted().transform(axes.transData.transform([point[:2] for point in points.values()]))
    wanted = dict(zip(points, ends[:, 1].tolist(), strict=True))
    for name, height in spread(wanted, gap).items():
        x, y, colour = points[name]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops=arrow if leaders or abs(height - wanted[name]) > gap / 2 else None,
            parse_math=False,
        )


def spread(wanted: Mapping[str, float], gap: float) -> dict[str, float]:
    """Return heights that are at least a gap apart, in the order of those wanted and as near to them as can be.

    Example:
        >>> spread({"a": 0.5, "b": 0.5}, gap=0.2)
        {'a': 0.4, 'b': 0.6}
    """
    blocks: list[tuple[list[str], float]] = []  # names that touch, and the middle of them
    for name in sorted(wanted, key=wanted.__getitem__):
        blocks.append(([name], wanted[name]))
        while len(blocks) > 1:
            (lower, low), (upper, high) = blocks[-2:]
            if high - low >= gap * (len(lower) + len(upper)) / 2:
                break
            names = lower + upper
            blocks[-2:] = [(names, sum(wanted[each] for each in names) / len(names))]
    return {
        name: round(middle + gap * (index - (len(names) - 1) / 2), 9)
        for names, middle in blocks
        for index, name in enumerate(names)
    }


def end_axes(axes: "Axes") -> None:
    """Let each axis end where the values end, and take off the marks beyond.

    Call this when everything is drawn.
    """
    axes.autoscale_view()
    box = axes.dataLim
    for axis, side, (low, high) in (
        (axes.xaxis, "bottom", sorted((box.x0, box.x1))),
        (axes.yaxis, "left", sorted((box.y0, box.y1))),
    ):
        limits = [float(limit) for limit in axis.get_view_interval()]
        low, high = max(low, min(limits)), min(high, max(limits))  # limits that were given may cut values off
        if not high > low:
            continue
        slack = 1e-9 * (high - low)
        marks = [mark for mark in axis.get_ticklocs() if low - slack <= mark <= high + slack]
        if len(marks) < 2:
            marks = [low, high]
            axis.set_ticks(marks, [f"{mark:.3g}" for mark in marks])
        else:
            axis.set_ticks(marks)
        if axis.get_scale() == "log":
            axis.set_minor_locator(_no_marks())
        axes.spines[side].set_bounds(low, high)
        axis.set_view_interval(limits[0], limits[1], ignore=True)


def _no_marks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
