"""``lit-modules compare``: methods, learning rates and seeds from one start, with equal steps and equal data."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.compare.grid import (
    Run,
    check_settings,
    chosen_methods,
    data_folder,
    filled,
    first_difference,
    read_settings,
    runs_of,
)
from lit_modules.studies.compare.point import RECORD
from lit_modules.studies.compare.runs import (
    REFERENCES,
    RETAIN_LOG,
    Models,
    Record,
    check_classes,
    check_records,
    digest,
    file_digests,
    make_tokenizer,
    method_record,
    reference_record,
    training_record,
    with_group,
)
from lit_modules.studies.launchers import Launcher, Task
from lit_modules.studies.points import LOG, RESULTS, add_launcher_options, make_launcher, run_points, stoppable
from lit_modules.studies.sweep.grid import write_json
from lit_modules.utils.errors import UsageError

MODULE = "lit_modules.studies.compare.point"
SETTINGS = "compare.json"
FAILED = "failed.json"
GROWING = ("methods", "seeds", "learning_rates", "report")
"""Keys of a configuration that may change while the folder stays: runs are added, and reported anew."""
DESCRIPTION = """\
Unlearn the same memorised model with each method, learning rate and seed. The start and a model of the retain set
alone are trained once; every run takes the same number of optimizer steps on the same forget rows, which is checked.
The same line, given again, runs what is missing; methods, rates and seeds may be added. Any value of the configuration
can be given, as --max_steps 20 or --start.model.hidden_size 256; a method is named by its name, as
--methods.NGDiff.learning_rates '[1e-4]'.
"""
EXAMPLE = """\
example:
  lit-modules compare -c compare/tofu_tiny.yaml --only NGDiff,GradientDifference --seeds '[0, 1, 2]'
"""


def main(args: list[str], launcher: Launcher | None = None) -> int:
    """Run a comparison, or what is missing of it.

    Args:
        args: Options and values of the configuration; see ``lit-modules compare --help``.
        launcher: What runs the runs; ``None`` takes what the options say.

    Returns:
        0, or 1 if a run failed, or 130 if the comparison was interrupted.

    Raises:
        UsageError: If an option or the configuration is wrong; nothing has run then.
        FileNotFoundError: If there are no texts.
        ValueError: If two runs did not spend the same.
    """
    options, rest = _read_options(args)
    if not options.config:
        raise UsageError("A comparison needs its configuration: -c compare/tofu_tiny.yaml.")
    settings = read_settings(options.config, _overrides(rest))
    methods = chosen_methods(check_settings(settings), options.only)
    check_classes(settings, methods)
    if options.points_per_process < 1:
        raise UsageError(f"--points-per-process must be at least 1, got {options.points_per_process}.")
    if options.launcher == "process" and options.workers is None:
        on_cpu = (settings.get("trainer") or {}).get("accelerator") == "cpu"
        options.workers = (os.cpu_count() or 1) if on_cpu else 1
    launcher = launcher or make_launcher(options)
    root = Path(filled((settings["data"].get("init_args") or {}).get("root", ""), {"data": data_folder()}))
    fixed = {key: value for key, value in settings.items() if key not in GROWING}
    files = file_digests(root)
    folder = Path(options.folder or _default_folder(options.config, [fixed, files]))
    _check_folder(folder, fixed, files)
    models, trainings = _models(settings, root, files, Path(options.models or folder / "models"))
    runs = {run.name: run for run in runs_of(methods)}
    records = _records(settings, runs, folder)
    places = {"data": data_folder(), **models.places()}
    _check_runs(folder, records)
    firsts = {records[run.name]["values"]["method"]: records[run.name] for run in reversed(list(runs.values()))}
    check_records(firsts, places)
    write_json(folder / SETTINGS, {"settings": fixed, "files": files})
    try:
        with stoppable():
            failed = _train(launcher, models.folder, trainings, places)
            if not failed and RETAIN_LOG not in json.dumps(settings["evaluation"]):
                failed = _run(launcher, folder, {"start": records["start"]}, places, 1)
            if not failed:
                failed = _run(launcher, folder, records, places, options.points_per_process)
    except KeyboardInterrupt:
        print(f"Interrupted; the same line with --folder {folder} goes on.")
        print(folder)
        return 130
    write_json(folder / FAILED, failed)
    try:
        if set(failed) <= set(records):
            _report(folder, settings, runs)
    finally:
        for name, found in failed.items():
            print(f"failed: {name}: {found['reason']} (log: {found['log']})")
    print(folder)
    return 1 if failed else 0


def _read_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="lit-modules compare",
        usage="lit-modules compare -c FILE [options] [values of the configuration]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="configuration; a later one wins"
    )
    parser.add_argument("--only", metavar="NAME,...", help="methods to run (default: all of the configuration)")
    parser.add_argument("--folder", help="folder of the comparison (default: one in runs/ that belongs to this line)")
    parser.add_argument("--models", help="folder of the start and its like, found by their hash (default: in --folder)")
    parser.add_argument(
        "--points-per-process",
        type=int,
        default=6,
        metavar="N",
        help="runs that share a process, one after another (default: %(default)s)",
    )
    add_launcher_options(parser)
    parser.epilog = f"On the CPU --workers is the number of cores by default.\n\n{EXAMPLE}"
    return parser.parse_known_args(args)


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return names and values of ``--name=value`` and ``--name value``."""
    found: list[tuple[str, str]] = []
    waiting: str | None = None
    for word in words:
        if waiting is not None:
            found.append((waiting, word))
            waiting = None
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if equals:
                found.append((name, value))
            else:
                waiting = name
        else:
            raise UsageError(f"There is no place for the argument {word!r}; values are given as --max_steps=20.")
    if waiting is not None:
        raise UsageError(f"--{waiting} needs a value.")
    return found


def _default_folder(configs: Sequence[str], fixed: Any) -> str:
    name = Path(find_recipe(configs[0])).stem
    return f"runs/compare-{name}-{digest(fixed)[:8]}"


def _check_folder(folder: Path, fixed: dict[str, Any], files: dict[str, str]) -> None:
    """Check that the folder is new, or holds this comparison.

    Raises:
        UsageError: If it holds something else; says what.
    """
    path = folder / SETTINGS
    if not path.exists():
        others = [entry for entry in folder.iterdir() if entry.name != "models"] if folder.is_dir() else []
        if others or folder.is_file():
            raise UsageError(f"{folder} holds something that is no comparison; give another --folder.")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    found = first_difference(there["settings"], fixed)
    if found is not None:
        raise UsageError(f"{folder} holds a comparison with {found}; give another --folder.")
    changed = [name for name in {**there["files"], **files} if there["files"].get(name) != files.get(name)]
    if changed:
        raise UsageError(
            f"{folder} holds a comparison on another content of {', '.join(changed)}; give another --folder."
        )


def _models(
    settings: Mapping[str, Any], root: Path, files: Mapping[str, str], folder: Path
) -> tuple[Models, dict[str, Record]]:
    """Return the models to begin with, and the records of their trainings by the name of their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = None
    if "tokenizer" in settings:
        tokenizer, vocab_size = make_tokenizer(settings, root, files, folder)
    elif isinstance(settings["start"]["model"], str):
        tokenizer = settings["start"]["model"]
    else:
        raise UsageError("A start that is built from a class needs a tokenizer: vocab_size, files and fields.")
    named = {
        key: training_record(settings, subset, vocab_size) for key, subset in (("start", "all"), ("retain", "retain"))
    }
    made_by = [dict(files), Path(tokenizer).name]
    names = {key: f"{key}-{digest([record, made_by])}" for key, record in named.items()}
    return Models(folder, tokenizer, names), {names[key]: record for key, record in named.items()}


def _records(settings: Mapping[str, Any], runs: Mapping[str, Run], folder: Path) -> dict[str, Record]:
    """Return the record of each run, the two references first."""
    found = {name: reference_record(settings, model) for name, model in REFERENCES.items()}
    found |= {name: method_record(settings, run) for name, run in runs.items()}
    return {name: with_group(record, folder.name, name) for name, record in found.items()}


def _check_runs(folder: Path, records: Mapping[str, Record]) -> None:
    """Check that the runs in the folder, finished or not, are those asked for.

    Raises:
        UsageError: If one was told something else.
    """
    for name, record in records.items():
        path = folder / "runs" / name / "record.json"
        if not path.exists() or not (path.parent / RESULTS).exists():
            continue
        found = first_difference(json.loads(path.read_text(encoding="utf-8"))["config"], record["config"])
        if found is not None:
            raise UsageError(f"{folder} holds the run {name} with {found}; give another --folder.")


def _train(
    launcher: Launcher, folder: Path, trainings: Mapping[str, Record], places: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Train the models that are not there, a process each; return why each that failed did."""
    missing = {name: record for name, record in trainings.items() if not (folder / name / RESULTS).exists()}
    if not missing:
        return {}
    print("Train the start and the model of the retain set alone ...", flush=True)
    return _launch(launcher, folder, missing, places, 1, len(trainings))


def _run(
    launcher: Launcher, folder: Path, records: Mapping[str, Record], places: Mapping[str, str], together: int
) -> dict[str, dict[str, str]]:
    """Run what is missing; return why each that failed did."""
    place = folder / "runs"
    missing = {name: record for name, record in records.items() if not (place / name / RESULTS).exists()}
    return _launch(launcher, place, missing, places, together, len(records))


def _launch(
    launcher: Launcher,
    folder: Path,
    records: Mapping[str, Record],
    places: Mapping[str, str],
    together: int,
    total: int,
) -> dict[str, dict[str, str]]:
    for name, record in records.items():
        where = folder / name
        write_json(where / "record.json", record)
        write_json(where / RECORD, {**record, "config": filled(record["config"], {**places, "folder": str(where)})})
    names = list(records)
    groups = [names[start : start + together] for start in range(0, len(names), together)]
    tasks, folders = [], {}
    for group in groups:
        task = Task(
            group[0], ("-m", MODULE, *(str(folder / name) for name in group)), folder / group[0] / "process.txt"
        )
        tasks.append(task)
        folders[task.name] = [folder / name for name in group]
    failed = run_points(launcher, tasks, folders, total)
    return {name: {"reason": reason, "log": str(folder / name / LOG)} for name, reason in failed.items()}


def _report(folder: Path, settings: Mapping[str, Any], runs: Mapping[str, Run]) -> None:
    """Check that the finished runs spent the same, and write results, table and figures; the others have failed."""
    from lit_modules.studies.compare import figures, report

    found = {}
    for name in [*REFERENCES, *runs]:
        path = folder / "runs" / name / RESULTS
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    if not any(name in found for name in runs) or any(name not in found for name in REFERENCES):
        print("No run has finished: there is no table.")
        return
    comparison = report.compare(settings, list(runs.values()), found)
    for path in report.write(folder, comparison):
        print(f"Wrote {path}")
    for path in figures.draw(folder, comparison):
        print(f"Wrote {path}")
    report.print_table(comparison)
