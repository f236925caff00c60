"""``lit-modules aftercare``: what an unlearned model still knows once it is fine-tuned again, or has fewer bits."""

import argparse
import inspect
import json
import math
from pathlib import Path
from typing import Any

from lit_modules.utils.errors import UsageError

DESCRIPTION = """\
Test an unlearned model as it is, after some steps of fine-tuning on its forget set, and with its weights rounded to
fewer bits; write results.json and print a table. What is finished is kept: the same line, given again, goes on.
Everything behind the known options goes to `test`, and must name the model's folder.

examples:
  lit-modules aftercare --folder runs/after -c ngdiff/lume.yaml --model.model runs/unlearned --data.root data/lume
  lit-modules aftercare --folder runs/after --tasks mmlu hellaswag -c ngdiff/lume.yaml --model.model runs/unlearned
"""


def main(args: list[str]) -> int:
    """Run the probes.

    Args:
        args: Options, and arguments of ``test``; see ``lit-modules aftercare --help``.

    Returns:
        0.

    Raises:
        UsageError: If options are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lit-modules aftercare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", required=True, help="folder of the probes")
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 5, 20], help="steps of tuning (default: 1 5 20)")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="its learning rate (default: 1e-5)")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4], help="bits of a weight, 8 or 4 (default: both)")
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks of lm-eval for the model as it is, such as mmlu")
    parser.add_argument("--limit", type=int, help="questions of each task (default: all)")
    options, rest = parser.parse_known_args(args)
    if not rest:
        raise UsageError("The probes need the arguments of test, such as `-c ngdiff/lume.yaml --model.model FOLDER`.")
    records = run_probes(options.folder, rest, options.steps, options.learning_rate, options.bits)
    _print(records)
    if options.tasks:
        from lit_modules.studies.stress.attacks import run_lm_eval

        model = json.loads((Path(options.folder) / "model.json").read_text(encoding="utf-8"))
        print(run_lm_eval(model, options.tasks, str(Path(options.folder) / "harness"), limit=options.limit))
    return 0


def run_probes(
    folder: str, arguments: list[str], steps: list[int], learning_rate: float, bits: list[int]
) -> dict[str, dict[str, Any]]:
    """Test a model as it is and after each probe.

    Args:
        folder: Folder of the probes; each has a folder there.
        arguments: Arguments of ``test``.
        steps: Numbers of steps of fine-tuning on the forget set.
        learning_rate: Learning rate of these.
        bits: Bits of a weight, 8 or 4.

    Returns:
        Results by probe: ``as it is``, ``8 bits``, ``relearned 5`` and so on.

    Raises:
        ValueError: If a number is out of its range, or the folder holds the probes of other arguments.
    """
    from lit_modules.cli import main as run
    from lit_modules.cli.lightning_cli import ProjectCLI
    from lit_modules.studies.stress.attacks import relearn, write_quantised
    from lit_modules.utils.files import write_whole

    if any(step < 1 for step in steps) or any(bit not in (4, 8) for bit in bits):
        raise ValueError(f"Steps must be at least 1 and bits 4 or 8, got {steps} and {bits}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"The learning rate must be positive and finite, got {learning_rate}.")
    place = Path(folder)
    asked = {"arguments": arguments, "learning_rate": learning_rate}
    if (place / "probes.json").is_file():
        before = json.loads((place / "probes.json").read_text(encoding="utf-8"))
        if before != asked:
            raise ValueError(f"{folder} holds the probes of {before}, not of {asked}; give another folder.")
    records: dict[str, dict[str, Any]] = {}

    def test(name: str, *more: str) -> None:
        path = place / name.replace(" ", "_") / "results.json"
        if not path.is_file():
            given = [*arguments, f"--trainer.default_root_dir={path.parent}", *more]
            found = run(["test", *given])
            assert isinstance(found, ProjectCLI)
            write_whole(path, json.dumps(found.model.results(), indent=2))
            if not more:
                write_whole(place / "model.json", json.dumps(str(found.model.hparams["model"])))
        records[name] = json.loads(path.read_text(encoding="utf-8"))

    test("as it is")
    write_whole(place / "probes.json", json.dumps(asked))  # now that the arguments are known to be right
    model = json.loads((place / "model.json").read_text(encoding="utf-8"))
    for bit in bits:
        target = place / f"{bit}_bits" / "model"
        if not (place / f"{bit}_bits" / "results.json").is_file():
            write_quantised(model, str(target), 8 if bit == 8 else 4)
        test(f"{bit} bits", f"--model.model={target}")
    missing = sorted({step for step in steps if not (place / f"relearned_{step}" / "results.json").is_file()})
    if missing:
        data = _forget_set(arguments, place)
        left = iter(missing)

        def evaluate(network: Any) -> dict[str, float]:
            step = next(left)
            target = place / f"relearned_{step}" / "model"
            network.save_pretrained(target)
            data.tokenizer.save_pretrained(target)
            return {}

        relearn(model, data.train_dataloader(), evaluate, missing, learning_rate)
    for step in sorted(set(steps)):
        test(f"relearned {step}", f"--model.model={place / f'relearned_{step}' / 'model'}")
    write_whole(place / "results.json", json.dumps(records, indent=2))
    return records


def _forget_set(arguments: list[str], place: Path) -> Any:
    """Return the datamodule of the arguments with the forget set alone, ready to train on; nothing is tested."""
    from lit_modules.cli import main as run

    cli: Any = run(["test", *arguments, f"--trainer.default_root_dir={place}", "--trainer.limit_test_batches=0"])
    given = {"tokenizer": cli.datamodule.tokenizer, **cli.datamodule.hparams, "subset": "forget"}
    known = inspect.signature(type(cli.datamodule)).parameters  # the command line adds hyperparameters of its own
    data = type(cli.datamodule)(**{name: value for name, value in given.items() if name in known})
    data.setup("fit")
    return data


def _print(records: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = [name for name, value in records["as it is"].items() if isinstance(value, (int, float))]
    table = Table(title="what is left after", title_justify="left")
    for name in ("", *records):
        table.add_column(name, justify="left" if not name else "right")
    for name in names:
        values = [record.get(name) for record in records.values()]
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    Console().print(table, markup=False)
