"""``lit-modules coda``: from confusable pairs to verified synthetic images, a report and human evaluation."""

from collections.abc import Callable
from typing import Any

from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

ACTIONS = {
    "pairs": "Ask a model many-way questions and write the pairs that it confuses.",
    "features": "Extract the features that tell the concepts of each pair apart.",
    "score": "... and score them by discriminability and generability.",
    "generate": "... and make the first images of each concept.",
    "verify": "... and verify them, with more images where too few pass.",
    "augment": "Run all of these stages, or what is missing of them.",
    "export": "Write the accepted images as training data.",
    "armada-lite": "Edit the support images by instructions, as a baseline.",
    "report": "Write a page with features, scores, pictures, cost and accuracies.",
    "annotate": "Have people check features: export a sample, or score their answers.",
}
"""Help line of each action."""
_HELP = ("-h", "--help", "help")
_EPILOG = """
Each action resumes an earlier run on the same store. `lit-modules coda augment --help` shows the
options of an action; every value of the file can be given on the command line.

examples:
  lit-modules coda augment -c coda_augmentation/local.yaml --data.root data/novel_species --dry-run
  lit-modules coda augment -c coda_augmentation/local.yaml --data.root data/novel_species --shard 1/4
  lit-modules coda export -c coda_augmentation/local.yaml --output data/novel_species_coda
  lit-modules coda report -c coda_augmentation/local.yaml"""


def main(args: list[str]) -> int:
    """Run an action; return 0, 1 if something failed, 130 if it was interrupted."""
    first, rest = (args[0], args[1:]) if args else ("--help", [])
    if first in _HELP:
        lines = [f"  {name:<12}{line}" for name, line in ACTIONS.items()]
        print("usage: lit-modules coda ACTION -c FILE [options]\n")
        print("CoDA: contrastive synthetic images of new concepts.\n\nactions:", *lines, _EPILOG, sep="\n")
        raise SystemExit(0)  # as parsers do
    if first not in ACTIONS:
        raise UsageError(f"There is no action {first!r}{did_you_mean(first, ACTIONS)}")
    if first == "annotate":
        return _annotate(rest)
    from lit_modules.cli.coda import export, pairs, run
    from lit_modules.cli.coda.options import read_action

    actions: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
        **dict.fromkeys(run.UNTIL, (run.RunOptions, run.run_stages)),
        "pairs": (pairs.PairsOptions, pairs.find_pairs),
        "export": (export.ExportOptions, export.export),
        "armada-lite": (export.ArmadaLiteOptions, export.edit_images),
        "report": (export.ReportOptions, export.report),
    }
    options, function = actions[first]
    return function(read_action(options, first, ACTIONS[first], args=rest))


def _annotate(args: list[str]) -> int:
    helps = {
        "export": "Write pictures with features, and files for the annotators' answers.",
        "score": "Print the share of yes and the agreement for each group of pictures.",
    }
    first, rest = (args[0], args[1:]) if args else ("--help", [])
    if first in _HELP:
        print("usage: lit-modules coda annotate {export,score} [options]\n")
        print(*(f"  {name:<8}{line}" for name, line in helps.items()), sep="\n")
        return 0
    if first not in helps:
        raise UsageError(f"There is no action {first!r}{did_you_mean(first, helps)}")
    from lit_modules.cli.coda import annotate
    from lit_modules.cli.coda.options import read_action

    if first == "score":
        return annotate.score(rest, helps[first])
    return annotate.export(read_action(annotate.AnnotateOptions, "annotate", helps[first], args=rest))
