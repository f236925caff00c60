"""``lit-modules sequence``: unlearn forget sets of growing size, or requests one after the other."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.options import read_options
from lit_modules.cli.public import know_public
from lit_modules.studies.runs import read_json, write_json
from lit_modules.studies.tables import markdown_table
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole
from lit_modules.utils.run_directory import RunDirectory

DESCRIPTION = """\
Run fit and test once for each number of a datamodule's argument. `sustainability` unlearns one request after the
other: each run starts from the model of the run before, on --data.request. With TOFU and LUME, whose forget set
--data.requests cuts into parts, the model is tested after each run on every request so far, and a table and a figure
tell what became of them and of the retain set. `scalability` unlearns forget sets of growing size, each from the
recipe's model, on --data.fold, which MUSE has. The same line, given again, runs what is missing. Every other argument
is passed on to fit and test.
"""
EXAMPLE = """\
examples:
  lit-modules sequence sustainability --folder runs/sust -c ngdiff/muse.yaml --data.root data/muse/news
  lit-modules sequence sustainability --folder runs/sust -c ngdiff/tofu.yaml --data.requests 4 --model.metric.part true
"""
ARGUMENTS = {"scalability": "fold", "sustainability": "request"}
"""Argument of the datamodule that each study counts through."""
SHOWN = (
    "forget/probability",
    "forget/rouge",
    "forget_quality",
    "retain/probability",
    "forget-set/overall-regurgitation-score",
    "forget-set/overall-knowledge-score",
    "retain-set/overall-regurgitation-score",
    "retain-set/overall-knowledge-score",
)
"""Numbers of TOFU and of LUME that table and figure show by default."""
Records = dict[int, dict[str, Any]]


@dataclass
class SequenceOptions:
    """Study and folder.

    Args:
        study: Requests one after the other, or forget sets of growing size.
        folder: Folder of the runs: NUMBER/pretrained holds the model, NUMBER/results.json the results.
        numbers: Numbers, in their order.
        show: Numbers of the table and the figure, as the results name them; by default those of the benchmark.
    """

    study: Literal["scalability", "sustainability"]
    folder: str = field(kw_only=True)
    numbers: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    show: list[str] = field(default_factory=list)


def main(args: list[str]) -> int:
    """Run a sequence."""
    options, passed = read_options(
        SequenceOptions, args, command="sequence", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not passed:
        raise UsageError("A sequence needs the arguments of fit, such as `-c ngdiff/muse.yaml`.")
    records = run_sequence(options, passed)
    for number, results in records.items():
        print(f"{options.study} {number}: {json.dumps(results)}")
    if all(is_of_requests(record) for record in records.values()):
        for path in report(Path(options.folder), records, options.show):
            print(f"Wrote {path}")
    return 0


def run_sequence(options: SequenceOptions, arguments: list[str]) -> Records:
    """Run fit and test for each number.

    Returns:
        Results after each run; where the forget set is cut into requests, those of each request so far by its number,
        as a text.
    """
    know_public()
    settings = {"study": options.study, "arguments": arguments}
    records: Records = {}
    start: list[str] = []
    with RunDirectory(options.folder, noun="sequence") as directory:
        directory.check(settings)
        for place, number in enumerate(options.numbers):
            folder = Path(options.folder, str(number))
            model, fitted, results = folder / "pretrained", folder / "fit.json", folder / "results.json"
            line = [*arguments, f"--trainer.default_root_dir={folder}"]
            counted = f"--data.{ARGUMENTS[options.study]}="
            if not fitted.is_file():
                cli = ProjectCLI.start(["fit", *line, f"{counted}{number}", *start])
                cli.model.save_pretrained(str(model), merge=True)
                cli.datamodule.tokenizer.save_pretrained(str(model))
                cut = "requests" in argument_names(type(cli.datamodule))
                write_json(fitted, {"arguments": [*line, f"{counted}{number}", *start], "cut": cut})
                directory.claim(settings)  # now that the arguments are known to be right
            if not results.is_file():
                earlier = options.numbers[: place + 1] if read_json(fitted).get("cut") else []
                tested = {}
                for each in earlier or [number]:
                    cli = ProjectCLI.start(["test", *line, f"{counted}{each}", f"--model.model={model}"])
                    tested[each] = cli.model.results()
                write_json(results, {str(each): tested[each] for each in earlier} if earlier else tested[number])
            records[number] = read_json(results)
            if options.study == "sustainability":
                start = [f"--model.model={model}"]
    return records


def is_of_requests(record: Mapping[str, Any]) -> bool:
    """Return whether results are those of several requests, by their numbers."""
    return all(key.isdigit() for key in record)


def report(folder: Path, records: Records, show: Sequence[str] = ()) -> list[Path]:
    """Write ``table.md`` and ``requests.png``: numbers of each request so far, after each run.

    Args:
        folder: Folder of the sequence.
        records: Results after each run, of each request so far.
        show: Numbers to show; none takes those of the benchmark.

    Raises:
        UsageError: If the results have no such number.
    """
    flat = {n: {int(request): dict(_flat(r)) for request, r in record.items()} for n, record in records.items()}
    known = next(iter(next(iter(flat.values())).values()))
    for name in show:
        if name not in known:
            raise UsageError(f"There is no number {name!r} for --show; there are {', '.join(known)}.")
    names = list(show) or [name for name in SHOWN if name in known]
    rows = [["after request", "request", *names]]
    for number, of_requests in flat.items():
        for request, values in of_requests.items():
            rows.append([str(number), str(request), *(_cell(values[name]) for name in names)])
    return [write_whole(folder / "table.md", markdown_table(rows)), *_draw(folder, flat, names)]


@figure_style()
def _draw(
    folder: Path, flat: Mapping[int, Mapping[int, Mapping[str, float | None]]], names: Sequence[str]
) -> list[Path]:
    """Draw each number of each request over the requests that came after it."""
    figure = new_figure(3.6 * len(names), 3.4)
    axes = figure.subplots(1, len(names), squeeze=False)
    for name, axis in zip(names, axes.flat, strict=True):
        for request in sorted({request for of_requests in flat.values() for request in of_requests}):
            after = [number for number, of_requests in flat.items() if request in of_requests]
            values = [flat[number][request][name] for number in after]
            axis.plot(
                range(len(flat) - len(after) + 1, len(flat) + 1),
                [math.nan if value is None else value for value in values],
                marker="o",
                label=f"request {request}",
            )
        axis.set(xlabel="requests unlearned", title=name)
        low, high = axis.dataLim.intervaly
        if low >= 0 and high <= 1:  # a share
            axis.set_ylim(-0.02, 1.02)
        axis.set_xticks(range(1, len(flat) + 1))
    axes.flat[0].legend(fontsize="small")
    return save_figure(figure, folder / "requests.png")


def _flat(record: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the numbers of a record, those within it by ``outer/inner``."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{name}/")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{start}{name}", value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
