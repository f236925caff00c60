"""Picture and page of the demonstration: one row of typical pictures, one figure with intervals, the rest on demand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole
from lit_modules.utils.html import render_html

if TYPE_CHECKING:
    from torch import Tensor

    from lit_modules.demos.synthia.scores import Scores

REAL = "real drawings"
COLOURS = {
    "frozen": "#8c8c8c",
    "no contrast": "#9ecae1",
    "random order": "#2171b5",
    "curriculum": "#d94701",
    REAL: "#3a923a",
}
LEAD = ("frozen", "random order", "curriculum", REAL)
"""Arms of the row of pictures."""
SHOWN = 2
"""Pictures of each arm in that row: the first ones, unselected."""
PANELS = {
    "one": "one affordance asked for: shown",
    "held out": "held-out pair asked for: both shown",
    "novelty": "novelty of pictures that show both",
}
Results = Mapping[str, "Mapping[str, Scores]"]
"""Scores by arm and set."""


def typical_row(scores: "Scores") -> int:
    """Return the row whose share of pictures that show all is the median over rows, the first of equal ones."""
    shares: list[int] = scores.all_shown.sum(1).tolist()
    return shares.index(median_low(shares))


@figure_style()
def plot(path: Path, results: Results, pictures: "Mapping[str, Tensor]", rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the row of pictures of a typical held-out pair, and below it the numbers with intervals.

    Args:
        path: File.
        results: Scores by arm, `REAL` among them, and set.
        pictures: By arm, those of the held-out pairs, uint8, ``(pairs, pictures, 3, height, width)``.
        rows: Held-out pairs.
    """
    figure = new_figure(13, 6)
    blocks: Any = figure.subfigures(2, 1, height_ratios=[1, 1], hspace=0.02)
    _draw_pictures(blocks[0], results, pictures, rows)
    axes = blocks[1].subplots(1, len(PANELS), sharey=True)
    names = list(results)
    for axis, (panel, title) in zip(axes, PANELS.items(), strict=True):
        for place, name in enumerate(names):
            scores = results[name]["one" if panel == "one" else "held out"]
            value = scores.novelty_if_shown() if panel == "novelty" else scores.shown()
            error = [[value.mean - value.low], [value.high - value.mean]]
            axis.barh(place, value.mean, xerr=error, color=COLOURS[name], height=0.62, ecolor="#333333", capsize=3)
            axis.text(value.high + 0.02, place, f"{value.mean:.2f}", va="center", fontsize=10)
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
        axis.set_title(title, fontsize=11, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    blocks[1].supxlabel("mean and 95 % interval over pairs (left: over affordances)", fontsize=9, color="#555555")
    save_figure(figure, path)


def write_page(
    path: Path, results: Results, pictures: "Mapping[str, Tensor]", rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page, one file that needs no network: `report.png` beside it first, tables and all pairs on demand.

    Args:
        path: File; the picture lies beside it.
        results: As for `plot`.
        pictures: As for `plot`.
        rows: Held-out pairs.
    """
    from lit_modules.synthia.core.images import data_uri
    from lit_modules.utils.html import data_url

    table = [
        {
            "arm": name,
            "values": [_text(sets["one"].shown())]
            + [_text(sets[key].shown()) if key in sets else "" for key in ("trained", "held out")]
            + [_text(sets["held out"].novelty_if_shown())],
        }
        for name, sets in results.items()
    ]
    pairs = [
        {
            "affordances": row["pos_prompts"],
            "distance": f"{row['tdistance']:.2f}",
            "arms": [
                {
                    "name": name,
                    "pictures": [
                        {
                            "uri": data_uri(pictures[name][index, number]),
                            "found": list(zip(row["pos_prompts"], found, strict=True)),
                        }
                        for number, found in enumerate(results[name]["held out"].found[index, :4].tolist())
                    ],
                }
                for name in results
            ],
        }
        for index, row in enumerate(rows)
    ]
    values = {
        "lead": data_url(path.with_name("report.png").read_bytes(), "image/png"),
        "columns": ["one affordance", "both, trained pairs", "both, held-out pairs", "novelty of pictures with both"],
        "table": table,
        "pairs": pairs,
    }
    write_whole(path, render_html("lit_modules.demos.synthia", "data/page.html.j2", values))


def _draw_pictures(
    figure: Any, results: Results, pictures: "Mapping[str, Tensor]", rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draw the first pictures of a typical pair by each arm, with a mark for each affordance below."""
    pair = typical_row(results["random order"]["held out"])
    wanted = rows[pair]["pos_prompts"]
    figure.suptitle(f'"a new design that has functions of {", ".join(wanted)}", a pair that was held out', fontsize=12)
    groups = figure.subfigures(1, len(LEAD), wspace=0.03)
    for group, name in zip(groups, LEAD, strict=True):
        group.suptitle(name, fontsize=11, color=COLOURS[name], fontweight="bold")
        for number, axis in enumerate(group.subplots(1, SHOWN)):
            axis.imshow(pictures[name][pair, number].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_anchor("N")
            for line, (word, found) in enumerate(
                zip(wanted, results[name]["held out"].found[pair, number].tolist(), strict=True)
            ):
                mark, colour = ("\N{CHECK MARK}", "#2b7a2b") if found else ("\N{BALLOT X}", "#b2182b")
                place = -0.09 - 0.16 * line
                text = f"{mark} {word}"
                axis.text(0.5, place, text, transform=axis.transAxes, ha="center", va="top", color=colour, fontsize=9)


def _text(value: Any) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
