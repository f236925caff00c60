"""Figure and page of the demonstration: accuracies with intervals, and each pair's pictures, features and answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_modules.coda.core.concepts import safe_name
from lit_modules.datamodules import drawn
from lit_modules.demos.coda.update import (
    AMOUNTS,
    LLAVA,
    LLAVA_ROWS,
    REAL,
    ROWS,
    UNTAUGHT,
    Answers,
    cell,
    interval,
    pair_accuracies,
    percent,
)
from lit_modules.demos.coda.world import MOST_SYNTHETIC, SHOTS, drawn_folder
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole
from lit_modules.utils.html import data_url, render_html
from lit_modules.utils.json_lines import read_json_lines

COLOURS = ("#9ecae1", "#2171b5")
"""Bars of one synthetic picture and of five."""
SHOWN_ROWS = (UNTAUGHT, REAL, "flip", "no contrast", "contrast", "CoDA")
"""Rows of the page; the whole table opens on demand."""
ASKED = 5
"""Test pictures of each concept that are shown with their answers."""
STAGES = {"before": cell(UNTAUGHT, 0), REAL: cell(REAL, 0), "CoDA": cell("CoDA", MOST_SYNTHETIC)}
"""Answers that are shown: before the update, after that on real pictures alone, and after that of CoDA."""


@dataclass(frozen=True)
class Side:
    """Concept of a pair, as it is shown.

    Args:
        name: Its name.
        differs: Phrases of the attributes in which it differs from the other one.
        kept: Features that CoDA kept, those of the prompt.
        plain: First features of the plain list, those that the generator obeys.
        real: Paths of its real pictures.
        plain_pictures: Paths of pictures of the plain list.
        pictures: Paths of CoDA's pictures.
        asked: Paths of some test pictures.
    """

    name: str
    differs: list[str]
    kept: list[str]
    plain: list[str]
    real: list[Path]
    plain_pictures: list[Path]
    pictures: list[Path]
    asked: list[Path]


def read_sides(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[tuple[Side, Side]]:
    """Return the two sides of each pair of a run, the novel species first."""
    looks = {row["name"]: row["attributes"] for _, row in read_json_lines(folder / "data" / "concepts.jsonl")}
    features = {}
    for row in ("no contrast", "CoDA"):
        listed = json.loads((drawn_folder(folder, row) / "features.json").read_text(encoding="utf-8"))
        features[row] = {entry["target"]: entry["features"] for entry in listed}

    def side(name: str, other: str) -> Side:
        look, against = looks[name], looks[other]
        made = {row: drawn_folder(folder, row) / "train" / safe_name(name) for row in features}
        return Side(
            name,
            differs=[drawn.creatures.PHRASES[key][value] for key, value in look.items() if against[key] != value],
            kept=features["CoDA"][name],
            plain=features["no contrast"][name][:3],
            real=sorted((folder / "data" / "train" / name).glob("*.png")),
            plain_pictures=sorted(made["no contrast"].glob("*.png"))[:MOST_SYNTHETIC],
            pictures=sorted(made["CoDA"].glob("*.png"))[:MOST_SYNTHETIC],
            asked=sorted((folder / "data" / "test" / name).glob("*.png"))[:ASKED],
        )

    return [(side(novel, known), side(known, novel)) for novel, known in pairs]


def typical_pair(pairs: Sequence[tuple[str, str]], answers: Mapping[str, Answers]) -> int:
    """Return the number of the pair whose gain by CoDA over real pictures is the median one."""
    after, before = (pair_accuracies(answers[STAGES[stage]], pairs) for stage in ("CoDA", REAL))
    gains = [one - other for one, other in zip(after, before, strict=True)]
    return sorted(range(len(pairs)), key=lambda number: (gains[number], number))[(len(pairs) - 1) // 2]


@figure_style()
def draw_figure(path: Path, folder: Path, pairs: Sequence[tuple[str, str]], answers: Mapping[str, Answers]) -> None:
    """Draw the accuracy of each row with its interval, and the pictures of a typical pair."""
    figure = new_figure(13.5, 7.2)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1, 1.05], wspace=0.03)
    _draw_bars(halves[0], {name: pair_accuracies(row, pairs) for name, row in answers.items()})
    number = typical_pair(pairs, answers)
    _draw_pair(halves[1], *read_sides(folder, pairs)[number], answers=answers)
    save_figure(figure, path)


def _draw_bars(figure: Any, accuracies: Mapping[str, list[float]]) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[len(ROWS), len(LLAVA_ROWS)])
    height = 0.38
    for row, name in enumerate(ROWS):
        for bar, synthetic in enumerate(AMOUNTS):
            if name == REAL and bar:
                continue
            at = row + (0 if name == REAL else (bar - 0.5) * height)
            colour, label = "#969696" if name == REAL else COLOURS[bar], "" if row != 1 else f"+ {synthetic} further"
            _draw_bar(above, accuracies[cell(name, synthetic)], at, height=height, color=colour, label=label)
    for row, name in enumerate(LLAVA_ROWS):
        colour = COLOURS[1] if row > 1 else "#969696"
        _draw_bar(below, accuracies[cell(name, MOST_SYNTHETIC)], row, height=0.6, color=colour)
    labels = {REAL: f"{SHOTS} {REAL} pictures alone", "CoDA": "CoDA: contrast +\nD + G + verification"}
    _name_rows(above, [labels.get(row, row) for row in ROWS])
    _name_rows(below, [row.removeprefix(LLAVA) for row in LLAVA_ROWS])
    below.set(xlim=(40, 101), xlabel="accuracy, % (50: guessing); lines: 95 % interval over 12 pairs")
    above.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.0, 0.99), frameon=False, fontsize=9)
    title = f"What joins {SHOTS} real pictures of each creature;\nequal optimisation steps"
    figure.suptitle(title, fontsize=11)
    above.set_title("ResNet", loc="left", fontsize=10)
    below.set_title(f"LLaVA-NeXT; + {MOST_SYNTHETIC} further", loc="left", fontsize=10)


def _draw_bar(axes: Any, values: Sequence[float], at: float, **style: Any) -> None:
    """Draw the mean accuracy of a cell with its interval."""
    mean, (low, high) = fmean(values), interval(values)
    axes.barh(at, 100 * mean, **style)
    axes.errorbar(100 * mean, at, xerr=[[100 * (mean - low)], [100 * (high - mean)]], color="black", capsize=3)
    dark = style["color"] == COLOURS[1]
    axes.annotate(f"{100 * mean:.0f}", (41, at), va="center", fontsize=9, color="white" if dark else "black")


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _draw_pair(figure: Any, novel: Side, known: Side, answers: Mapping[str, Answers]) -> None:
    from PIL import Image

    rows = [
        (f"{novel.name} (new)\nreal", novel.real),
        (f"{known.name} (relative)\nreal", known.real),
        (f"plain list:\n{_lines(novel.plain)}", novel.plain_pictures),
        (f"CoDA kept:\n{_lines(novel.kept[:3])}", novel.pictures),
        (f"test, {novel.name}", novel.asked),
        (f"test, {known.name}", known.asked),
    ]
    differs, against = (" and ".join(side.differs) for side in (novel, known))
    title = f"A typical pair: {novel.name} has {differs},\n{known.name} {against}"
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), MOST_SYNTHETIC, height_ratios=[1] * 4 + [1.5] * 2)
    for line, (label, paths) in zip(grid, rows, strict=True):
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axes, path in zip(line, paths, strict=True):
            axes.set_axis_off()
            axes.imshow(Image.open(path), interpolation="nearest")
    for line, side in zip(grid[4:], (novel, known), strict=True):
        for axes, path in zip(line, side.asked, strict=True):
            for place, (stage, row) in enumerate(STAGES.items()):
                name = answers[row][f"test/{side.name}/{path.name}"]
                style = {"ha": "center", "fontsize": 7, "color": "seagreen" if name == side.name else "crimson"}
                axes.text(0.5, -0.1 - 0.16 * place, f"{stage}: {name}", transform=axes.transAxes, **style)


def _lines(features: Sequence[str]) -> str:
    return "\n".join(features)


def write_page(path: Path, folder: Path, pairs: Sequence[tuple[str, str]], answers: Mapping[str, Answers]) -> None:
    """Write the page: the figure and a short table, the whole table on demand, and a part for each pair.

    Args:
        path: File to write.
        folder: Folder of the run, with ``report.png``.
        pairs: Names of each pair.
        answers: Answers of each cell.
    """
    accuracies = {name: pair_accuracies(row, pairs) for name, row in answers.items()}

    def table(rows: Sequence[str]) -> list[list[str]]:
        columns = [[f"{row} {SHOTS}:{synthetic}" for synthetic in (0, *AMOUNTS)] for row in rows]
        cells = [[percent(accuracies[name]) if name in accuracies else "" for name in names] for names in columns]
        return [[row, *line] for row, line in zip(rows, cells, strict=True)]

    shown = []
    for number, (novel, known) in enumerate(read_sides(folder, pairs)):
        sides = [
            {
                "side": side,
                "real": _urls(side.real),
                "plain_pictures": _urls(side.plain_pictures),
                "pictures": _urls(side.pictures),
                "asked": [
                    (url, [(stage, answers[name][f"test/{side.name}/{file.name}"]) for stage, name in STAGES.items()])
                    for file, url in zip(side.asked, _urls(side.asked), strict=True)
                ],
            }
            for side in (novel, known)
        ]
        shares = [f"{stage} {100 * accuracies[name][number]:.0f} %" for stage, name in STAGES.items()]
        shown.append({"title": f"{novel.name} and {known.name}", "accuracies": ", ".join(shares), "sides": sides})
    values = {
        "figure": data_url((folder / "report.png").read_bytes(), "image/png"),
        "amounts": [f"{SHOTS}:{synthetic}" for synthetic in (0, *AMOUNTS)],
        "rows": table(SHOWN_ROWS),
        "all_rows": table((UNTAUGHT, *ROWS)),
        "image_text_rows": table(LLAVA_ROWS),
        "pairs": shown,
        "typical": typical_pair(pairs, answers),
    }
    write_whole(path, render_html(__package__, "data/report.html.j2", values))


def _urls(paths: Sequence[Path]) -> list[str]:
    return [data_url(path.read_bytes(), "image/png") for path in paths]
