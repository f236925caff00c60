"""Report of a test of metrics: a score of each, table and figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_modules.metrics.membership import AttackAUC
from lit_modules.studies.metrics.run import PLAIN, QUANTIZED, RELEARNED
from lit_modules.studies.metrics.scores import (
    CONTROLS,
    METRICS,
    faithfulness,
    joined,
    knowledge,
    quantization_robustness,
    recovery,
    relearning_robustness,
)
from lit_modules.studies.metrics.settings import FACTS, RETAIN
from lit_modules.studies.tables import Number, csv_table, markdown_table, number, print_table, summary
from lit_modules.utils.figures import COLOURS, REST, figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole

FAITHFUL, ROBUST = 0.9, 0.5
"""Least AUC, with the lower end of its interval above a guess, and least robustness, of a metric to report."""
RULE = """\
*Knowledge* is the metric, or one less it, so that more is more knowledge of the forget set. *Faithfulness* is the AUC
by which it tells the {knowing} models that know the forget set from the {ignorant} that do not, with a bootstrap
interval of 95 % over models. The next four numbers are means over {unlearned} unlearned models, with the sample
deviation: R is the knowledge that relearning adds to the model of the retain rows over what it adds to the unlearned
one, Q the knowledge before quantization over that after it, both cut to [0, 1] and best at 1; `back` is the share of
the forgotten knowledge that came back. *Robustness* is the harmonic mean of R and Q, *overall* that of faithfulness and
robustness. {left_out}"""
LEFT_OUT = "{number} unlearned models that kept less than {share:g} of `{control}` are left out: {names}."
NONE_LEFT_OUT = "No unlearned model had to be left out for what it lost of `{control}`."


@dataclass(frozen=True)
class Score:
    """Scores of a metric.

    Args:
        name: Name of the metric.
        faithfulness: AUC with interval.
        relearning: R, mean and deviation over unlearned models.
        quantization: Q, likewise.
        back_relearned: Share that relearning brings back, likewise.
        back_quantized: Share that quantization brings back, likewise.
    """

    name: str
    faithfulness: AttackAUC
    relearning: Number
    quantization: Number
    back_relearned: Number
    back_quantized: Number

    @property
    def robustness(self) -> float:
        """Harmonic mean of R and Q."""
        return joined(self.relearning[0], self.quantization[0])

    @property
    def overall(self) -> float:
        """Harmonic mean of faithfulness and robustness."""
        return joined(self.faithfulness.auc, self.robustness)

    @property
    def verdict(self) -> str:
        """Verdict that the numbers give, in words."""
        if self.name in CONTROLS:
            return "control"
        if self.faithfulness.auc < FAITHFUL or self.faithfulness.low <= 0.5:
            return "does not tell who knows"
        if math.isnan(self.robustness):
            return "tells who knows"
        return "report" if self.robustness >= ROBUST else "tells who knows, misses what is hidden"


@dataclass(frozen=True)
class Report:
    """Scores of all metrics, and of how many models.

    Args:
        scores: Scores, the best first, controls last.
        points: Knowledge by metric and kind of model.
        rule: What the numbers are.
    """

    scores: list[Score]
    points: dict[str, dict[str, list[float]]]
    rule: str


def score(settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Report:
    """Score the metrics from the results of the finished runs.

    Raises:
        ValueError: If there are fewer than two models of a pool.
    """
    pools = {role: [record for record in results if record["role"] == role] for role in ("knowing", "ignorant")}
    for role, records in pools.items():
        if len(records) < 2:
            raise ValueError(f"A pool needs at least two models that finished, got {len(records)} {role}.")
    members = {
        (record["role"], record["name"], record["seed"]): record["conditions"]
        for record in results
        if record["role"] != "start"
    }
    names = [name for name in METRICS if all(name in record["conditions"][PLAIN] for record in pools["knowing"])]
    control = next(name for name in CONTROLS if name in names)
    unlearned = [record for record in results if record["role"] == "unlearned"]
    kept: list[Mapping[str, Any]] = []
    lost: list[Mapping[str, Any]] = []
    for record in unlearned:
        start = number(members["knowing", FACTS, record["seed"]][PLAIN][control])
        enough = number(record["conditions"][PLAIN][control]) >= settings.get("least_kept", 0.8) * start
        (kept if enough else lost).append(record)
    scores = [_score(name, pools, kept, members) for name in names]
    scores.sort(key=lambda one: (one.name in CONTROLS, -(one.overall if not math.isnan(one.overall) else -1.0)))
    left_out = NONE_LEFT_OUT.format(control=control)
    if lost:
        labels = ", ".join(f"{record['name']} (seed {record['seed']})" for record in lost)
        share = settings.get("least_kept", 0.8)
        left_out = LEFT_OUT.format(number=len(lost), share=share, control=control, names=labels)
    rule = RULE.format(
        knowing=len(pools["knowing"]), ignorant=len(pools["ignorant"]), unlearned=len(kept), left_out=left_out
    )
    points: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for record in [*pools["knowing"], *pools["ignorant"], *unlearned]:
        for name in names:
            label = record["name"] if record["role"] != "unlearned" else f"after {record['name']}"
            points[name].setdefault(label, []).append(_knowledge(name, record["conditions"][PLAIN]))
    return Report(scores, points, rule)


def table(report: Report) -> list[list[str]]:
    """Return the table as text, its header first."""
    numbers = ["R", "Q", "back, relearned", "back, quantized", "robustness", "overall"]
    lines = [["metric", "faithfulness", *numbers, "verdict"]]
    for one in report.scores:
        auc = one.faithfulness
        lines.append(
            [
                METRICS[one.name].label,
                f"{auc.auc:.2f} [{auc.low:.2f}, {auc.high:.2f}]",
                *map(_cell, (one.relearning, one.quantization, one.back_relearned, one.back_quantized)),
                _cell((one.robustness, None)),
                _cell((one.overall, None)),
                one.verdict,
            ]
        )
    return lines


def markdown(report: Report) -> str:
    """Return the table and the means of the pools in Markdown."""
    kinds = list(dict.fromkeys(kind for kinds in report.points.values() for kind in kinds))
    means = [["knowledge", *kinds]]
    for one in report.scores:
        values = report.points[one.name]
        means.append([METRICS[one.name].label, *(_cell((fmean(values[kind]), None)) for kind in kinds)])
    return "\n".join(
        [
            markdown_table(table(report)),
            report.rule,
            "",
            "Mean knowledge of each kind of model",
            "",
            markdown_table(means),
        ]
    )


def write(folder: Path, report: Report) -> list[Path]:
    """Write ``table.md`` and ``table.csv``."""
    rows: list[list[Any]] = [
        ["metric", "auc", "auc_low", "auc_high", "R", "Q", "back_relearned", "back_quantized", "robustness", "overall"]
    ]
    for one in report.scores:
        numbers = (one.relearning, one.quantization, one.back_relearned, one.back_quantized)
        rows.append([one.name, *one.faithfulness, *(mean for mean, _ in numbers), one.robustness, one.overall])
    return [
        write_whole(folder / "table.md", markdown(report)),
        write_whole(folder / "table.csv", csv_table(rows)),
    ]


def show(report: Report) -> None:
    """Print the table."""
    rows = [[row[0], row[1], row[6], row[7], row[8]] for row in table(report)]
    print_table(rows)


@figure_style()
def draw(folder: Path, report: Report) -> list[Path]:
    """Draw faithfulness with its interval, and R, Q and what came back, of each metric."""
    scores = report.scores[::-1]
    places = list(range(len(scores)))
    figure = new_figure(11, 0.34 * len(scores) + 1.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, one in zip(places, scores, strict=True):
        auc = one.faithfulness
        colour = {"report": COLOURS[2], "control": REST}.get(one.verdict, COLOURS[4])
        if one.verdict.startswith("does not"):
            colour = COLOURS[1]
        left.plot([auc.low, auc.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        left.plot(auc.auc, place, "o", color=colour)
    left.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    left.set(xlabel="faithfulness (AUC, 95 % interval)", xlim=(-0.03, 1.03))
    left.set_yticks(places, [METRICS[one.name].label for one in scores])
    for label, marker, values in (
        ("R, relearning", "o", [one.relearning[0] for one in scores]),
        ("Q, quantization", "s", [one.quantization[0] for one in scores]),
        ("share back, relearned", "x", [one.back_relearned[0] for one in scores]),
    ):
        right.plot(values, places, marker, label=label, alpha=0.75)
    right.set(xlabel="after attacks on unlearned models", xlim=(-0.03, 1.03))
    right.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return save_figure(figure, folder / "metrics.png")


def _score(
    name: str,
    pools: Mapping[str, Sequence[Mapping[str, Any]]],
    unlearned: Sequence[Mapping[str, Any]],
    members: Mapping[tuple[str, str, int], Mapping[str, Any]],
) -> Score:
    values = {
        role: [_knowledge(name, record["conditions"][PLAIN]) for record in records] for role, records in pools.items()
    }
    parts: dict[str, list[float]] = {key: [] for key in ("R", "Q", "relearned", "quantized")}
    for record in unlearned:
        before, relearned, quantized = (
            _knowledge(name, record["conditions"][condition]) for condition in (PLAIN, RELEARNED, QUANTIZED)
        )
        alone = members["ignorant", RETAIN, record["seed"]]
        gained = _knowledge(name, alone[RELEARNED]) - _knowledge(name, alone[PLAIN])
        start = _knowledge(name, members["knowing", FACTS, record["seed"]][PLAIN])
        parts["R"].append(relearning_robustness(relearned - before, gained))
        parts["Q"].append(quantization_robustness(before, quantized))
        parts["relearned"].append(recovery(before, relearned, start))
        parts["quantized"].append(recovery(before, quantized, start))
    numbers = {key: summary([value for value in found if not math.isnan(value)]) for key, found in parts.items()}
    return Score(
        name,
        faithfulness(values["knowing"], values["ignorant"]),
        relearning=numbers["R"],
        quantization=numbers["Q"],
        back_relearned=numbers["relearned"],
        back_quantized=numbers["quantized"],
    )


def _knowledge(name: str, numbers: Mapping[str, float | None]) -> float:
    return knowledge(name, number(numbers[name]))


def _cell(pair: Number) -> str:
    mean, deviation = pair
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} +- {deviation:.2f}"
