"""``lit-modules sequence``: unlearn forget sets of growing size, or requests that come one after the other."""

import argparse
import json
from pathlib import Path
from typing import Any, Literal

from lit_modules.utils.errors import UsageError

DESCRIPTION = """\
Run fit and test once for each number of a datamodule's argument. `request` (sustainability) starts each run from the
model that the run before left; `fold` (scalability) starts all from the recipe's model. What is finished is kept: the
same line, given again, goes on. Everything behind the known options goes to fit and test.

example:
  lit-modules sequence request --folder runs/sust -c ngdiff/muse.yaml --data.root data/muse/news
"""


def main(args: list[str]) -> int:
    """Run a sequence.

    Args:
        args: ``fold`` or ``request``, options, and arguments of fit; see ``lit-modules sequence --help``.

    Returns:
        0.

    Raises:
        UsageError: If options are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lit-modules sequence",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=("fold", "request"), help="argument of the datamodule to count through")
    parser.add_argument("--folder", required=True, help="folder of the runs, one in it for each number")
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2, 3, 4], help="numbers, in their order")
    options, rest = parser.parse_known_args(args)
    if not rest:
        raise UsageError("A sequence needs the arguments of fit, such as `-c ngdiff/muse.yaml`.")
    records = run_sequence(options.kind, rest, options.folder, options.numbers)
    for number, record in records.items():
        print(f"{options.kind} {number}: {json.dumps(record)}")
    return 0


def run_sequence(
    kind: Literal["fold", "request"], arguments: list[str], folder: str, numbers: list[int]
) -> dict[int, dict[str, Any]]:
    """Run fit and test for each number.

    Args:
        kind: Argument of the datamodule; with ``"request"`` each run starts from the model of the run before.
        arguments: Arguments of fit and test.
        folder: Folder of the runs: ``<number>/pretrained`` holds the model, ``<number>/results.json`` the results.
        numbers: Values of the argument, in their order.

    Returns:
        The results of each number.
    """
    from lit_modules.cli import main as run
    from lit_modules.cli.lightning_cli import ProjectCLI
    from lit_modules.utils.files import write_whole

    records: dict[int, dict[str, Any]] = {}
    start: list[str] = []
    for number in numbers:
        place = Path(folder) / str(number)
        model, results = place / "pretrained", place / "results.json"
        given = [*arguments, f"--data.{kind}={number}", f"--trainer.default_root_dir={place}"]
        if not (model / "complete").is_file():
            cli = run(["fit", *given, *start])
            assert isinstance(cli, ProjectCLI)
            cli.model.save_pretrained(str(model), merge=True)
            cli.datamodule.tokenizer.save_pretrained(str(model))
            write_whole(model / "complete", "")
        if not results.is_file():
            cli = run(["test", *given, f"--model.model={model}"])
            assert isinstance(cli, ProjectCLI)
            write_whole(results, json.dumps(cli.model.results(), indent=2))
        records[number] = json.loads(results.read_text(encoding="utf-8"))
        if kind == "request":
            start = [f"--model.model={model}"]
    return records
