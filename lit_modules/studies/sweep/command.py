"""``lit-modules sweep``: train and test at every point of a grid of arguments."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.launchers import Launcher, Task
from lit_modules.studies.points import LOG, RESULTS, add_launcher_options, make_launcher, run_points, stoppable
from lit_modules.studies.sweep.grid import SEED, Axis, Point, check_axes, grid, read_axis, write_json
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import write_whole

DESCRIPTION = """\
Run fit, and test on the checkpoint that it chose, at every point of a grid. Each point is a fresh process with a folder
of its own. The same line, given again, runs what is missing; more values or seeds may be added. Every other argument is
passed on to fit and test: -c with a recipe, --trainer.max_epochs 5, and so on; {folder} in one becomes the folder of
the point. The checkpoint tested is the best one of the first ModelCheckpoint with a monitor, else the last one. Numbers
of the validation are those of that checkpoint.
"""
EXAMPLE = """\
example:
  lit-modules sweep -c pgd/mnist.yaml --over data.variant.kernel_size=1,2,3,4,5 --seeds 3
"""


def main(args: list[str], launcher: Launcher | None = None) -> int:
    """Run a sweep, or what is missing of it.

    Args:
        args: Options, and the arguments of every point; see ``lit-modules sweep --help``.
        launcher: What runs the points; ``None`` takes what the options say.

    Returns:
        0, or 1 if a point failed, or 130 if the sweep was interrupted.

    Raises:
        UsageError: If an option or an argument of a point is wrong; nothing has run then.
    """
    options, passed = _read_options(args)
    axes = [read_axis(text) for text in options.over]
    if options.seeds is not None:
        if options.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, got {options.seeds}.")
        axes.append(Axis(SEED, tuple(range(options.seeds))))
    if not axes:
        raise UsageError("A sweep needs what to sweep: add --over NAME=VALUE,VALUE,... or --seeds N.")
    check_axes(axes, passed)
    launcher = launcher or make_launcher(options)
    settings = _settings(passed, axes, not options.no_test)
    folder = Path(options.folder or _default_folder(settings))
    _check_folder(folder, settings)
    points = grid(axes)
    records = _point_records(folder, axes, points, passed, not options.no_test)
    write_json(folder / "sweep.json", settings)
    missing = [point for point in points if not (folder / point.name / RESULTS).exists()]
    for point in missing:
        write_json(folder / point.name / "point.json", records[point.name])
    try:
        with stoppable():
            failed = _run(launcher, folder, points, missing)
    except KeyboardInterrupt:
        print(f"Interrupted; the same line with --folder {folder} goes on.")
        print(folder)
        return 130
    try:
        _report(folder, axes, points, options.metrics.split(",") if options.metrics else [])
    finally:
        for name, reason in failed.items():
            print(f"failed: {name}: {reason} (log: {folder / name / LOG})")
    print(folder)
    return 1 if failed else 0


def _read_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="lit-modules sweep",
        usage="lit-modules sweep --over NAME=VALUE,VALUE,... [options] [arguments of fit and test]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="argument and its values, as YAML; given several times, every combination is run",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="repeat each point with seed_everything 0 to N-1")
    parser.add_argument("--no-test", action="store_true", help="train only")
    parser.add_argument(
        "--metrics", help="numbers that are printed and drawn, with * and commas (default: test/*, or val/*)"
    )
    parser.add_argument("--folder", help="folder of the sweep (default: one in runs/ that belongs to this line)")
    add_launcher_options(parser)
    return parser.parse_known_args(args)


def _settings(passed: list[str], axes: Sequence[Axis], test: bool) -> dict[str, Any]:
    """Return what makes a sweep this sweep: its arguments, the contents of its files, what is swept."""
    files = {}
    for word, following in zip(passed, [*passed[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            given = value if equals else following
            if any(mark in given for mark in ("{", ": ", "\n")):
                continue  # the text of a configuration
            try:
                files[given] = hashlib.sha256(find_recipe(given).read_bytes()).hexdigest()
            except FileNotFoundError as error:
                raise UsageError(str(error)) from None
    return {"arguments": passed, "files": files, "test": test, "over": {axis.key: axis.texts for axis in axes}}


def _default_folder(settings: dict[str, Any]) -> str:
    """Return a folder that belongs to the settings, whatever the values: values may be added later."""
    fixed = {**settings, "over": list(settings["over"])}
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
    names = [Path(name).with_suffix("").as_posix().split("/")[-2:] for name in settings["files"]]
    recipe = "-".join(names[0]) if names else "points"
    return f"runs/sweep-{recipe}-{digest}"


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Check that the folder is new, or holds this sweep with these values or fewer.

    Raises:
        UsageError: If it holds something else.
    """
    path = folder / "sweep.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} holds something that is no sweep; give another --folder.")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    words = {"arguments": " ".join(there["arguments"]), "axes": ", ".join(there["over"])}
    if there["arguments"] != settings["arguments"]:
        problem = f"with the arguments {words['arguments']!r}, got {' '.join(settings['arguments'])!r}"
    elif list(there["over"]) != list(settings["over"]):
        problem = f"over {words['axes']}, got {', '.join(settings['over'])}"
    elif there["test"] != settings["test"]:
        problem = "with --no-test, which was not given" if not there["test"] else "without --no-test, which was given"
    elif there["files"] != settings["files"]:
        changed = ", ".join(name for name, digest in there["files"].items() if settings["files"].get(name) != digest)
        problem = f"with another content of {changed}"
    else:
        for key, texts in there["over"].items():
            if not set(texts) <= set(settings["over"][key]):
                given = ",".join(settings["over"][key])
                raise UsageError(
                    f"{folder} holds a sweep with {key}={','.join(texts)}, got {given}: values may be added, "
                    "not left out; give another --folder."
                )
        return
    raise UsageError(f"{folder} holds a sweep {problem}; give another --folder.")


def _point_records(
    folder: Path, axes: Sequence[Axis], points: Sequence[Point], passed: list[str], test: bool
) -> dict[str, dict[str, Any]]:
    """Return what each point is told, with every argument checked."""
    from lit_modules.studies.sweep.check import ArgumentReader

    reader = ArgumentReader(passed)
    records: dict[str, dict[str, Any]] = {}
    for point in points:
        arguments = reader.point(axes, point.values, folder / point.name)
        if test and not records:
            reader.read(arguments, "test")
        values = {axis.key: value for axis, value in zip(axes, point.values, strict=True)}
        records[point.name] = {"values": values, "arguments": arguments, "test": test}
    return records


def _run(launcher: Launcher, folder: Path, points: Sequence[Point], missing: Sequence[Point]) -> dict[str, str]:
    """Run the missing points; return why each that failed did."""
    module = "lit_modules.studies.sweep.point"
    tasks = [Task(point.name, ("-m", module, str(folder / point.name)), folder / point.name / LOG) for point in missing]
    return run_points(launcher, tasks, {point.name: [folder / point.name] for point in missing}, len(points))


def _report(folder: Path, axes: Sequence[Axis], points: Sequence[Point], patterns: Sequence[str]) -> None:
    """Write table and figure of the finished points, and print the table."""
    from lit_modules.studies.sweep import report

    paths = {point.name: folder / point.name / RESULTS for point in points}
    results = {
        name: json.loads(path.read_text(encoding="utf-8"))["metrics"] for name, path in paths.items() if path.exists()
    }
    if not results:
        print("No point has finished: there is no table.")
        return
    rows = report.summarise(axes, results, points)
    every = report.choose(rows, report.REPORTED)
    for name, text in (
        ("table.md", report.markdown(axes, rows, every)),
        ("table.csv", report.comma_separated(axes, rows, every)),
    ):
        write_whole(folder / name, text)
    chosen = report.choose(rows, patterns) or [name for name in every if name.startswith("test/")] or every
    if not chosen:
        print("The points logged no number whose name begins with test/ or val/; --metrics chooses others.")
        return
    report.print_table(axes, rows, chosen)
    report.draw(axes, points, results, chosen, folder / "figure.png")
    print(f"Table: {folder / 'table.md'} and table.csv; figure: {folder / 'figure.png'}")
