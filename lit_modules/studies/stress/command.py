"""``lit-modules stress``: relearning attack and quantization of an unlearned model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.options import read_options
from lit_modules.cli.public import load_public
from lit_modules.studies.runs import read_json, write_json
from lit_modules.studies.stress.attacks import harness_accuracies, relearn, write_quantized
from lit_modules.studies.tables import print_table
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.run_directory import RunDirectory

DESCRIPTION = """\
Test an unlearned model as it is, after a relearning attack of some steps on its forget set, and after quantization to
fewer bits; write results.json and print a table. The same line, given again, runs what is missing. Every other argument
is passed on to test, and must name the model's folder.
"""
EXAMPLE = """\
examples:
  lit-modules stress --folder runs/stress -c ngdiff/lume.yaml --model.model runs/unlearned --data.root data/lume
  lit-modules stress --folder runs/stress --tasks mmlu hellaswag -c ngdiff/lume.yaml --model.model runs/unlearned
"""
UNLEARNED = "unlearned"


@dataclass
class StressOptions:
    """Stress tests.

    Args:
        folder: Folder of the tests.
        relearning_steps: Steps of the relearning attack after which to test.
        relearning_rate: Learning rate of the relearning attack.
        bits: Bits of a quantized weight, 8 or 4.
        tasks: Tasks of lm-eval for the model as it is, such as mmlu.
        limit: Questions of each task; by default all.
    """

    folder: str = field(kw_only=True)
    relearning_steps: list[int] = field(default_factory=lambda: [1, 5, 20])
    relearning_rate: float = 1e-5
    bits: list[Literal[4, 8]] = field(default_factory=lambda: [8, 4])
    tasks: list[str] = field(default_factory=list)
    limit: int | None = None


def main(args: list[str]) -> int:
    """Run the stress tests."""
    options, passed = read_options(
        StressOptions, args, command="stress", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not passed:
        raise UsageError("Stress tests need the arguments of test, such as `-c ngdiff/lume.yaml --model.model FOLDER`.")
    if any(step < 1 for step in options.relearning_steps):
        raise UsageError(f"--relearning_steps must be at least 1, got {options.relearning_steps}.")
    if not 0 < options.relearning_rate < math.inf:
        raise UsageError(f"--relearning_rate must be positive and finite, got {options.relearning_rate}.")
    _print(run_stress_tests(options, passed))
    return 0


def run_stress_tests(options: StressOptions, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Test a model as it is and after each attack."""
    load_public()
    folder = Path(options.folder)
    settings = {"arguments": arguments, "relearning_rate": options.relearning_rate}
    records: dict[str, dict[str, Any]] = {}

    def path(name: str) -> Path:
        return folder / name.replace(" ", "_")

    def test(name: str, *more: str) -> None:
        results = path(name) / "results.json"
        if not results.is_file():
            cli = ProjectCLI.start(["test", *arguments, f"--trainer.default_root_dir={results.parent}", *more])
            write_json(results, cli.model.results())
            if name == UNLEARNED:
                write_json(folder / "model.json", str(cli.model.hparams["model"]))
        records[name] = read_json(results)

    with RunDirectory(folder, noun="stress test") as directory:
        directory.check(settings)
        test(UNLEARNED)
        directory.claim(settings)  # now that the arguments are known to be right
        model = read_json(folder / "model.json")
        for bits in options.bits:
            name = f"{bits} bits"
            if not (path(name) / "results.json").is_file():
                write_quantized(model, str(path(name) / "model"), bits)
            test(name, f"--model.model={path(name) / 'model'}")
        relearned = {step: f"relearned {step} step{'s' * (step > 1)}" for step in sorted(set(options.relearning_steps))}
        missing = [step for step, name in relearned.items() if not (path(name) / "results.json").is_file()]
        if missing:
            folders = {step: path(relearned[step]) for step in missing}
            _relearn(model, arguments, folders, learning_rate=options.relearning_rate)
        for name in relearned.values():
            test(name, f"--model.model={path(name) / 'model'}")
        write_json(folder / "results.json", records)
        if options.tasks:
            records[UNLEARNED] |= harness_accuracies(model, options.tasks, folder / "harness", limit=options.limit)
            write_json(folder / "results.json", records)
    return records


def _relearn(model: str, arguments: list[str], folders: Mapping[int, Path], learning_rate: float) -> None:
    """Attack a model on the forget set of the arguments' datamodule, and save it after each number of steps."""
    some = next(iter(folders.values()))
    line = ["test", *arguments, f"--trainer.default_root_dir={some}", "--trainer.limit_test_batches=0"]
    data: Any = ProjectCLI.start(line).datamodule
    init_args = {"tokenizer": data.tokenizer, **data.hparams, "subset": "forget"}
    known = argument_names(type(data))  # the command line adds hyperparameters of its own
    forget = type(data)(**{name: value for name, value in init_args.items() if name in known})
    forget.setup("fit")
    targets = iter(folders.values())

    def save(network: Any) -> dict[str, float]:
        target = next(targets) / "model"
        network.save_pretrained(target)
        forget.tokenizer.save_pretrained(target)
        return {}

    relearn(model, forget.train_dataloader(), save, steps=list(folders), learning_rate=learning_rate)


def _print(records: Mapping[str, Mapping[str, Any]]) -> None:
    names = [name for name, value in records[UNLEARNED].items() if isinstance(value, (int, float))]
    rows = [["", *records]]
    for name in names:
        values = [record.get(name) for record in records.values()]
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in values)])
    print_table(rows, title="what is left")
