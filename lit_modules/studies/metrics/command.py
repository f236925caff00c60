"""``lit-modules metrics``: put the metrics of unlearning themselves to the test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_modules.cli.options import read_options
from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.compare.records import digest, file_hashes, train_tokenizer
from lit_modules.studies.compare.settings import data_folder, filled, read_settings
from lit_modules.studies.launchers import LOG, RESULTS, Launcher, LauncherOptions, launch
from lit_modules.studies.metrics.run import LOG_FILE, MODEL
from lit_modules.studies.metrics.settings import FACTS, KEYS, REFERENCE, START, Run, check_settings, waves
from lit_modules.studies.runs import RUN, read_json, write_json
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable
from lit_modules.utils.run_directory import RunDirectory

PROGRAM = ("-m", "lit_modules.studies.metrics.run")
GROWING = ("seeds",)
DESCRIPTION = """\
Train, from one small start, models with and without the knowledge of the forget set, and say of each metric how well it
tells them apart; unlearn, attack by relearning and quantization, and say how much each metric had missed. The same
line, given again, runs what is missing; seeds may be added. Any value of the configuration can be given, as
--pools.steps 200.
"""
EXAMPLE = f"""\
Keys of the configuration: {", ".join(KEYS)}.
On the CPU --workers is the number of cores by default.

example:
  lit-modules metrics -c metrics/tofu_tiny.yaml --seeds '[0, 1, 2]'
"""


@dataclass
class MetricsOptions(LauncherOptions):
    """Configuration and folder of the test.

    Args:
        config: Configuration, or -c; a later one wins.
        folder: Folder of the test; by default one in runs/ that belongs to this line.
        points_per_process: Runs that share a process, one after another.
    """

    config: list[str] = field(default_factory=list)
    folder: str | None = None
    points_per_process: int = 4


def main(args: list[str], launcher: Launcher | None = None) -> int:
    """Run a test of metrics, or what is missing of it; return 0, 1 if a run failed, 130 if it was interrupted."""
    options, overrides = read_options(
        MetricsOptions, args, command="metrics", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not options.config:
        raise UsageError("A test of metrics needs its configuration: -c metrics/tofu_tiny.yaml.")
    settings = read_settings(options.config, overrides, keys=KEYS)
    check_settings(settings)
    if options.points_per_process < 1:
        raise UsageError(f"--points_per_process must be at least 1, got {options.points_per_process}.")
    options.use_all_cores(settings.get("trainer"))
    launcher = launcher or options.make_launcher()
    root = Path(filled((settings["data"].get("init_args") or {}).get("root", ""), {"data": data_folder()}))
    files = file_hashes(root)
    fixed = {key: value for key, value in settings.items() if key not in GROWING}
    name = Path(find_recipe(options.config[0])).stem
    folder = Path(options.folder or f"runs/metrics-{name}-{digest([fixed, files])[:8]}")
    manifest = {**settings, "files": files}
    with RunDirectory(folder, noun="test of metrics") as directory:
        directory.claim(manifest, growing=GROWING, beside=())
        records = _records(settings, root, files=files, folder=folder)
        runs = [run for wave in waves(settings) for run in wave]
        failures: dict[str, str] = {}
        try:
            with stoppable():
                for wave in waves(settings):
                    names = [run.folder for run in wave]
                    together = options.points_per_process if len(names) > 1 else 1
                    failures |= _launch(launcher, folder, {name: records[name] for name in names}, together)
                    if failures and len(names) == 1:
                        break  # what all others need
        except KeyboardInterrupt:
            print(f"Interrupted; the same line with --folder {folder} goes on.")
            print(folder)
            return 130
        try:
            if len(failures) < len(runs):
                _report(folder, settings, runs)
        finally:
            for name, reason in failures.items():
                print(f"failed: {name}: {reason} (log: {folder / name / LOG})")
    print(folder)
    return 1 if failures else 0


def _records(settings: dict[str, Any], root: Path, files: Mapping[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return the record of each run, by the name of its folder; train the tokenizer unless it exists."""
    start = settings["start"]
    if "tokenizer" in settings:
        tokenizer, vocab_size = train_tokenizer(settings["tokenizer"], root, hashes=files, folder=folder)
        if isinstance(start["model"], dict):
            arguments = {"vocab_size": vocab_size, **(start["model"].get("init_args") or {})}
            start = {**start, "model": {**start["model"], "init_args": arguments}}
    elif isinstance(start["model"], str):
        tokenizer = start["model"]
    else:
        raise UsageError("A start that is built from a class needs a tokenizer: vocab_size, files and fields.")
    paths = {
        "tokenizer": tokenizer,
        START: str(folder / START / MODEL),
        REFERENCE: str(folder / REFERENCE / MODEL),
        "retain_log": str(folder / REFERENCE / LOG_FILE),
    }
    whole = filled({**settings, "start": start}, {"data": data_folder()})
    return {
        run.folder: {
            "role": run.role,
            "name": run.name,
            "seed": run.seed,
            "settings": {key: value for key, value in whole.items() if key not in GROWING},
            "paths": {**paths, "facts": str(folder / Run("knowing", FACTS, run.seed).folder / MODEL)},
        }
        for wave in waves(settings)
        for run in wave
    }


def _launch(
    launcher: Launcher, folder: Path, records: Mapping[str, Mapping[str, Any]], together: int
) -> dict[str, str]:
    """Run what is missing of the records, ``together`` in a process; return the reason of each failure."""
    missing = [name for name in records if not (folder / name / RESULTS).exists()]
    for name in missing:
        write_json(folder / name / RUN, records[name])
    runs = [folder / name for name in missing]
    return launch(launcher, PROGRAM, runs, total=len(records), together=together)


def _report(folder: Path, settings: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write table and figure of the finished runs."""
    from lit_modules.studies.metrics import report

    paths = [folder / run.folder / RESULTS for run in runs]
    results = [read_json(path) for path in paths if path.exists()]
    needed = {("knowing", FACTS), ("ignorant", "retain")}
    seeds = {
        record["seed"]
        for record in results
        if all((folder / Run(role, kind, record["seed"]).folder / RESULTS).exists() for role, kind in needed)
    }
    # an unlearned model is measured against the two of its seed
    results = [record for record in results if record["role"] != "unlearned" or record["seed"] in seeds]
    finished = [sum(record["role"] == role for record in results) for role in ("knowing", "ignorant")]
    if min(finished) < 2:
        print("Fewer than two models of a pool have finished: there is no table.")
        return
    found = report.score(settings, results)
    for path in [*report.write(folder, found), *report.draw(folder, found)]:
        print(f"Wrote {path}")
    report.show(found)
