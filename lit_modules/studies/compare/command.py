"""``lit-modules compare``: methods, learning rates and seeds from one start, with equal steps and equal data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_modules.cli.options import read_options
from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.compare.records import (
    REFERENCES,
    RETAIN_LOG,
    Record,
    check_classes,
    check_records,
    digest,
    file_hashes,
    prepare_models,
    run_records,
)
from lit_modules.studies.compare.settings import (
    KEYS,
    Run,
    check_settings,
    chosen_methods,
    data_folder,
    filled,
    read_settings,
    runs_of,
)
from lit_modules.studies.launchers import LOG, RESULTS, Launcher, LauncherOptions, launch
from lit_modules.studies.runs import RUN, read_json, write_json
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable
from lit_modules.utils.run_directory import RunDirectory, first_difference

PROGRAM = ("-m", "lit_modules.studies.compare.run")
GROWING = ("methods", "seeds", "learning_rates", "report")
"""Keys of a configuration that may change while the folder stays: runs are added, and reported again."""
DESCRIPTION = """\
Unlearn the same memorised model with each method, learning rate and seed. The start and a model of the retain set
alone are trained once; every run takes the same number of optimizer steps on the same forget rows, which is checked.
The same line, given again, runs what is missing; methods, rates and seeds may be added. Any value of the configuration
can be given, as --max_steps 20 or --start.model.hidden_size 256; a method is named by its name, as
--methods.NGDiff.learning_rates '[1e-4]'.
"""
EXAMPLE = f"""\
Keys of the configuration: {", ".join(KEYS)}.
On the CPU --workers is the number of cores by default.

example:
  lit-modules compare -c compare/tofu_tiny.yaml --only NGDiff,GradientDifference --seeds '[0, 1, 2]'
"""


@dataclass
class CompareOptions(LauncherOptions):
    """Configuration and folder of the comparison.

    Args:
        config: Configuration, or -c; a later one wins.
        only: Methods to run, as NAME,NAME; by default all of the configuration.
        folder: Folder of the comparison; by default one in runs/ that belongs to this line.
        models: Folder of the start and its like, found by their hash; by default in --folder.
        points_per_process: Runs that share a process, one after another.
    """

    config: list[str] = field(default_factory=list)
    only: str | None = None
    folder: str | None = None
    models: str | None = None
    points_per_process: int = 6


def main(args: list[str], launcher: Launcher | None = None) -> int:
    """Run a comparison, or what is missing of it; return 0, 1 if a run failed, 130 if it was interrupted."""
    options, overrides = read_options(
        CompareOptions, args, command="compare", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not options.config:
        raise UsageError("A comparison needs its configuration: -c compare/tofu_tiny.yaml.")
    settings = read_settings(options.config, overrides)
    methods = chosen_methods(check_settings(settings), options.only)
    check_classes(settings, methods)
    if options.points_per_process < 1:
        raise UsageError(f"--points_per_process must be at least 1, got {options.points_per_process}.")
    options.use_all_cores(settings.get("trainer"))
    launcher = launcher or options.make_launcher()
    root = Path(filled((settings["data"].get("init_args") or {}).get("root", ""), {"data": data_folder()}))
    fixed = {key: value for key, value in settings.items() if key not in GROWING}
    files = file_hashes(root)
    name = Path(find_recipe(options.config[0])).stem
    folder = Path(options.folder or f"runs/compare-{name}-{digest([fixed, files])[:8]}")
    manifest = {**fixed, "files": files}
    with RunDirectory(folder, noun="comparison") as directory:
        directory.check(manifest, beside=["models"])
        models = prepare_models(settings, root, hashes=files, folder=Path(options.models or folder / "models"))
        runs = runs_of(methods)
        records = run_records(settings, runs, folder.name)
        _check_finished(folder, records)
        first = {records[name]["values"]["method"]: records[name] for name in reversed(runs)}
        study = _Study(launcher, {"data": data_folder(), **models.placeholders()}, options.points_per_process)
        check_records(first, study.placeholders)
        directory.claim(manifest)
        try:
            with stoppable():
                trainings = {models.names[key]: record for key, record in models.trainings.items()}
                print("Train the start and the model of the retain set alone, unless they exist ...", flush=True)
                failures = study.launch(models.folder, trainings, together=1)
                if not failures and RETAIN_LOG not in json.dumps(settings["evaluation"]):
                    failures = study.launch(folder / "runs", {"start": records["start"]}, together=1)
                if not failures:
                    failures = study.launch(folder / "runs", records)
        except KeyboardInterrupt:
            print(f"Interrupted; the same command with --folder {folder} resumes.")
            print(folder)
            return 130
        write_json(folder / "failed.json", failures)
        try:
            if set(failures) <= set(records):
                _report(folder, settings, runs)
        finally:
            for name, failure in failures.items():
                print(f"failed: {name}: {failure['reason']} (log: {failure['log']})")
    print(folder)
    return 1 if failures else 0


@dataclass(frozen=True)
class _Study:
    launcher: Launcher
    placeholders: Mapping[str, str]
    together: int

    def launch(self, folder: Path, records: Mapping[str, Record], together: int | None = None) -> dict[str, Any]:
        """Run what is missing of the records, ``together`` in a process; return why and where each failure was."""
        missing = [name for name in records if not (folder / name / RESULTS).exists()]
        for name in missing:
            config = filled(records[name]["config"], {**self.placeholders, "folder": str(folder / name)})
            write_json(folder / name / "record.json", records[name])
            write_json(folder / name / RUN, {**records[name], "config": config})
        runs = [folder / name for name in missing]
        failures = launch(self.launcher, PROGRAM, runs, total=len(records), together=together or self.together)
        return {name: {"reason": reason, "log": str(folder / name / LOG)} for name, reason in failures.items()}


def _check_finished(folder: Path, records: Mapping[str, Record]) -> None:
    """Check that the finished runs in the folder are those of the configuration."""
    for name, record in records.items():
        run = folder / "runs" / name
        if (run / RESULTS).exists():
            difference = first_difference(read_json(run / "record.json")["config"], record["config"])
            if difference is not None:
                raise UsageError(f"{folder} holds the run {name} with {difference}; take another folder.")


def _report(folder: Path, settings: Mapping[str, Any], runs: Mapping[str, Run]) -> None:
    """Check that the finished runs spent the same, and write results, table and figures; the others have failed."""
    from lit_modules.studies.compare import report

    paths = {name: folder / "runs" / name / RESULTS for name in [*REFERENCES, *runs]}
    results = {name: read_json(path) for name, path in paths.items() if path.exists()}
    if not any(name in results for name in runs) or any(name not in results for name in REFERENCES):
        print("No run has finished: there is no table.")
        return
    comparison = report.compare(settings, runs, results)
    for path in [*report.write(folder, comparison), *report.draw(folder, comparison)]:
        print(f"Wrote {path}")
    report.print_best(comparison)
