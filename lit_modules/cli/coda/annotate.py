"""``lit-modules coda annotate {export,score}``: have people check whether features belong to images."""

import math
from dataclasses import dataclass
from pathlib import Path

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.options import KindOptions
from lit_modules.cli.options import read_options
from lit_modules.coda.augmentation.annotation import export_annotation, score_annotation
from lit_modules.coda.core.store import Store
from lit_modules.utils.errors import UsageError


@dataclass(kw_only=True)
class AnnotateOptions(KindOptions):
    """Options of a sample for annotators.

    Args:
        output: folder to write; it is made
        num_items: most items of each group
        annotators: number of annotators
        sample_seed: seed of the sample
    """

    output: str
    num_items: int = 50
    annotators: int = 3
    sample_seed: int = 0


def export(options: AnnotateOptions) -> int:
    """Write a sample for annotators."""
    kind = options.chosen_kind()
    store = Store(options.store, writable=False)
    tasks = pair_tasks(options.prepare_data(), Path(options.store) / "support")
    items = export_annotation(
        store,
        options.output,
        tasks,
        kind=kind,
        num_items=options.num_items,
        annotators=options.annotators,
        seed=options.sample_seed,
    )
    print(f"{items} items are in {options.output}; give each annotator sheet.html, images and a file of their own, and")
    print(f"keep key.csv. Then: lit-modules coda annotate score {options.output}")
    return 0


@dataclass
class ScoreOptions:
    """Options of the scores.

    Args:
        files: answers of each annotator, or the folder of all
        key: key of the sample (default: key.csv beside the first)
    """

    files: list[str]
    key: str | None = None


def score(args: list[str], description: str) -> int:
    """Score the annotators' answers, whose files and options are the arguments."""
    options, _ = read_options(ScoreOptions, args, command="coda annotate score", description=description)
    files = [Path(name) for name in options.files]
    if len(files) == 1 and files[0].is_dir():
        files = sorted(files[0].glob("annotator-*.csv"))
        if not files:
            raise UsageError(f"{options.files[0]} holds no annotator-*.csv; name the files.")
    scores = score_annotation(files, options.key or files[0].with_name("key.csv"))
    print(f"{'pictures':<20}{'items':>7}{'yes':>9}{'kappa':>8}")
    for group, row in scores.items():
        kappa = "-" if math.isnan(row.kappa) else f"{row.kappa:.2f}"
        print(f"{group:<20}{row.items:>7}{row.percent:>7.2f} %{kappa:>8}")
    return 0
