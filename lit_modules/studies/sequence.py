"""``lit-modules sequence``: unlearn forget sets of growing size, or requests one after the other, as MUSE does."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.options import read_options
from lit_modules.cli.public import load_public
from lit_modules.studies.runs import read_json, write_json
from lit_modules.utils.errors import UsageError
from lit_modules.utils.run_directory import RunDirectory

DESCRIPTION = """\
Run fit and test once for each number of a datamodule's argument. `sustainability` unlearns one request after the other:
each run starts from the model of the run before, on --data.request. `scalability` unlearns forget sets of growing size,
each from the recipe's model, on --data.fold. The same line, given again, runs what is missing. Every other argument is
passed on to fit and test.
"""
EXAMPLE = """\
example:
  lit-modules sequence sustainability --folder runs/sust -c ngdiff/muse.yaml --data.root data/muse/news
"""
ARGUMENTS = {"scalability": "fold", "sustainability": "request"}
"""Argument of the datamodule that each study counts through."""


@dataclass
class SequenceOptions:
    """Study and folder.

    Args:
        study: Study of MUSE.
        folder: Folder of the runs: NUMBER/pretrained holds the model, NUMBER/results.json the results.
        numbers: Numbers, in their order.
    """

    study: Literal["scalability", "sustainability"]
    folder: str = field(kw_only=True)
    numbers: list[int] = field(default_factory=lambda: [1, 2, 3, 4])


def main(args: list[str]) -> int:
    """Run a sequence."""
    options, passed = read_options(
        SequenceOptions, args, command="sequence", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not passed:
        raise UsageError("A sequence needs the arguments of fit, such as `-c ngdiff/muse.yaml`.")
    for number, results in run_sequence(options, passed).items():
        print(f"{options.study} {number}: {json.dumps(results)}")
    return 0


def run_sequence(options: SequenceOptions, arguments: list[str]) -> dict[int, dict[str, Any]]:
    """Run fit and test for each number."""
    load_public()
    settings = {"study": options.study, "arguments": arguments}
    records: dict[int, dict[str, Any]] = {}
    start: list[str] = []
    with RunDirectory(options.folder, noun="sequence") as directory:
        directory.check(settings)
        for number in options.numbers:
            folder = Path(options.folder, str(number))
            model, fitted, results = folder / "pretrained", folder / "fit.json", folder / "results.json"
            line = [*arguments, f"--data.{ARGUMENTS[options.study]}={number}", f"--trainer.default_root_dir={folder}"]
            if not fitted.is_file():
                cli = ProjectCLI.start(["fit", *line, *start])
                cli.model.save_pretrained(str(model), merge=True)
                cli.datamodule.tokenizer.save_pretrained(str(model))
                write_json(fitted, {"arguments": [*line, *start]})
                directory.claim(settings)  # now that the arguments are known to be right
            if not results.is_file():
                cli = ProjectCLI.start(["test", *line, f"--model.model={model}"])
                write_json(results, cli.model.results())
            records[number] = read_json(results)
            if options.study == "sustainability":
                start = [f"--model.model={model}"]
    return records
