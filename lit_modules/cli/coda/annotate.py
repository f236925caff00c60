"""``lit-modules coda annotate {export,score}``: have people check whether features belong to pictures."""

import argparse
import math
from pathlib import Path

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.export import chosen_kind
from lit_modules.cli.coda.options import coda_parser, read_plan
from lit_modules.coda.augmentation.annotation import export_annotation, score_annotation
from lit_modules.coda.core.store import Store
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

_PARTS = {
    "export": "Write pictures with features, and files for the annotators' answers.",
    "score": "Print the share of yes and the agreement for each group of pictures.",
}


def main(action: str, args: list[str]) -> int:
    """Write a sample for annotators, or score their answers.

    Args:
        action: ``annotate``.
        args: ``export`` or ``score``, and options.

    Returns:
        0.

    Raises:
        UsageError: If an option is wrong.
        ValueError: If there are no images, or an answer is missing.
    """
    first = args[0] if args else "--help"
    if first in ("-h", "--help", "help"):
        print(f"usage: lit-modules coda {action} {{export,score}} [options]\n")
        print("\n".join(f"  {name:<8}{text}" for name, text in _PARTS.items()))
        return 0
    if first not in _PARTS:
        raise UsageError(f"There is no action {first!r}{did_you_mean(first, _PARTS)}")
    return _export(action, args[1:]) if first == "export" else _score(action, args[1:])


def _export(action: str, args: list[str]) -> int:
    parser = coda_parser(action)
    parser.add_argument("--output", type=str, required=True, help="folder to write; it is made")
    parser.add_argument("--kind", type=str | None, help="kind of features to ask about")
    parser.add_argument("--num-items", type=int, default=50, help="most items of each group")
    parser.add_argument("--annotators", type=int, default=3, help="number of annotators")
    parser.add_argument("--sample-seed", type=int, default=0, help="seed of the sample")
    plan = read_plan(parser, action, args)
    kind, given = chosen_kind(plan), plan.config
    store = Store(plan.store, writable=False)
    tasks = pair_tasks(plan.data(), Path(plan.store) / "support")
    numbers = (given["num_items"], given["annotators"], given["sample_seed"])
    items = export_annotation(store, given["output"], tasks, kind, *numbers)
    print(
        f"{items} items are in {given['output']}; give each annotator sheet.html, images and a file of their own, and"
    )
    print(f"keep key.csv. Then: lit-modules coda annotate score {given['output']}")
    return 0


def _score(action: str, args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"lit-modules coda {action} score", description=_PARTS["score"])
    parser.add_argument("files", nargs="+", metavar="FILE", help="answers of each annotator, or the folder of all")
    parser.add_argument("--key", metavar="FILE", help="key of the sample (default: key.csv beside the first)")
    options = parser.parse_args(args)
    files = [Path(name) for name in options.files]
    if len(files) == 1 and files[0].is_dir():
        files = sorted(files[0].glob("annotator-*.csv"))
        if not files:
            raise UsageError(f"{options.files[0]} holds no annotator-*.csv; name the files.")
    scores = score_annotation(files, options.key or files[0].with_name("key.csv"))
    print(f"{'pictures':<20}{'items':>7}{'yes':>9}{'kappa':>8}")
    for group, one in scores.items():
        kappa = "-" if math.isnan(one.kappa) else f"{one.kappa:.2f}"
        print(f"{group:<20}{one.items:>7}{one.percent:>7.2f} %{kappa:>8}")
    return 0
