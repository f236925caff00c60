"""``lit-modules sweep``: train and test at every point of a grid of arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_modules.cli.options import read_options
from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.arguments import SEED, ArgumentReader
from lit_modules.studies.launchers import LOG, RESULTS, Launcher, LauncherOptions, launch
from lit_modules.studies.runs import RUN
from lit_modules.studies.sweep.grid import Axis, Point, check_axes, grid, read_axis
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import hash_file, stable_hash
from lit_modules.utils.interrupts import stoppable
from lit_modules.utils.run_directory import RunDirectory

PROGRAM = ("-m", "lit_modules.studies.runs")
DESCRIPTION = """\
Run fit, and test on the checkpoint that it chose, at every point of a grid. Each point has a folder of its own and is a
fresh process, whose start takes seconds; short points can share one (--points_per_process). The same line, given again,
runs what is missing; more values or seeds may be added. Every other argument is passed on to fit and test: -c with a
recipe, --trainer.max_epochs 5, and so on; {folder} in one becomes the folder of the point. The checkpoint tested is the
best one of the first ModelCheckpoint with a monitor, else the last one. Numbers of the validation are those of that
checkpoint.
"""
EXAMPLE = """\
example:
  lit-modules sweep -c pgd/mnist.yaml --over data.variant.kernel_size=1,2,3,4,5 --seeds 3
"""


@dataclass
class SweepOptions(LauncherOptions):
    """Grid and folder of the sweep.

    Args:
        over: NAME=VALUE,VALUE,... - an argument and its values, as YAML; given several times, every combination is run.
        seeds: Repeat each point with seed_everything 0 to N-1.
        no_test: Train only.
        metrics: Numbers that are printed and drawn, with * and commas; by default test/*, or val/*.
        folder: Folder of the sweep; by default one in runs/ that belongs to this line.
        points_per_process: Points that share a process, one after another; 1 for points of several devices.
    """

    over: list[str] = field(default_factory=list)
    seeds: int | None = None
    no_test: bool = False
    metrics: str | None = None
    folder: str | None = None
    points_per_process: int = 1

    def axes(self) -> list[Axis]:
        """Return the axes, the seed last."""
        axes = [read_axis(text) for text in self.over]
        if self.seeds is not None:
            if self.seeds < 1:
                raise UsageError(f"--seeds must be at least 1, got {self.seeds}.")
            axes.append(Axis(SEED, tuple(range(self.seeds))))
        if not axes:
            raise UsageError("A sweep needs what to sweep: add --over NAME=VALUE,VALUE,... or --seeds N.")
        return axes


def main(args: list[str], launcher: Launcher | None = None) -> int:
    """Run a sweep, or what is missing of it; return 0, 1 if a point failed, 130 if it was interrupted."""
    options, passed = read_options(
        SweepOptions, args, command="sweep", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    axes = options.axes()
    check_axes(axes, passed)
    if options.points_per_process < 1:
        raise UsageError(f"--points_per_process must be at least 1, got {options.points_per_process}.")
    launcher = launcher or options.make_launcher()
    settings = {"arguments": passed, "files": _file_hashes(passed), "no_test": options.no_test}
    settings |= {"axes": [axis.key for axis in axes]}
    folder = Path(options.folder or _default_folder(settings))
    points = grid(axes)
    left = [point for point in points if not (folder / point.name / RESULTS).is_file()]
    runs = _runs(folder, axes, left, passed=passed, test=not options.no_test)
    values = {axis.key: axis.texts for axis in axes}
    with RunDirectory(folder, noun="sweep") as directory:
        directory.claim({**settings, **values}, growing=list(values), beside=())
        missing = directory.missing(runs, RESULTS)
        for name in missing:
            directory.write_json([name, RUN], runs[name], allow_nan=True)
        try:
            with stoppable():
                runs_left = [folder / name for name in missing]
                failures = launch(launcher, PROGRAM, runs_left, total=len(points), together=options.points_per_process)
        except KeyboardInterrupt:
            print(f"Interrupted; the same command with --folder {folder} resumes.")
            print(folder)
            return 130
        try:
            patterns = options.metrics.split(",") if options.metrics else []
            _report(directory, axes, points, patterns=patterns)
        finally:
            for name, reason in failures.items():
                print(f"failed: {name}: {reason} (log: {folder / name / LOG})")
    print(folder)
    return 1 if failures else 0


def _file_hashes(arguments: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the configuration files in the arguments."""
    hashes = {}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            config = value if equals else following
            if any(mark in config for mark in ("{", ": ", "\n")):
                continue  # the text of a configuration
            try:
                hashes[config] = hash_file(find_recipe(config))
            except FileNotFoundError as error:
                raise UsageError(str(error)) from None
    return hashes


def _default_folder(settings: Mapping[str, Any]) -> str:
    """Return a folder that belongs to the settings, whatever the values, as values may be added later."""
    names = [Path(name).with_suffix("").as_posix().split("/")[-2:] for name in settings["files"]]
    recipe = "-".join(names[0]) if names else "points"
    return f"runs/sweep-{recipe}-{stable_hash(settings)[:8]}"


def _runs(
    folder: Path, axes: Sequence[Axis], points: Sequence[Point], passed: list[str], test: bool
) -> dict[str, dict[str, Any]]:
    """Return the record of each point's run, with every argument checked."""
    if not points:
        return {}
    reader = ArgumentReader(passed)
    records: dict[str, dict[str, Any]] = {}
    for point in points:
        values = {axis.key: value for axis, value in zip(axes, point.values, strict=True)}
        arguments = reader.run(values, folder / point.name)
        if test and not records:
            reader.read(arguments, "test")
        records[point.name] = {"values": values, "arguments": arguments, "test": test}
    return records


def _report(directory: RunDirectory, axes: Sequence[Axis], points: Sequence[Point], patterns: Sequence[str]) -> None:
    """Write table and figure of the finished points, and print the table."""
    from lit_modules.studies.sweep import report

    records = {point.name: directory.read_json([point.name, RESULTS]) for point in points}
    results = {name: record["metrics"] for name, record in records.items() if record is not None}
    if not results:
        print("No point has finished: there is no table.")
        return
    folder = directory.folder
    rows = report.summarise(axes, results, points)
    every = report.choose(rows, report.REPORTED)
    write_whole(folder / "table.md", report.markdown(axes, rows, every))
    write_whole(folder / "table.csv", report.comma_separated(axes, rows, every))
    chosen = report.choose(rows, patterns) or [name for name in every if name.startswith("test/")] or every
    if not chosen:
        print("The points logged no number whose name begins with test/ or val/; --metrics chooses others.")
        return
    report.print_turned(axes, rows, chosen)
    report.draw(axes, points, results, metrics=chosen, path=folder / "figure.png")
    print(f"Table: {folder / 'table.md'} and table.csv; figure: {folder / 'figure.png'}")
