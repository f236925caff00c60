"""``lit-modules coda``: from confused pairs to verified synthetic images, and what annotators say."""

from importlib import import_module

from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

ACTIONS: dict[str, tuple[str, str]] = {
    "pairs": ("coda_pairs", "Ask a model many-way questions and write the pairs that it confuses."),
    "features": ("coda_run", "Extract the features that tell the concepts of each pair apart."),
    "score": ("coda_run", "... and score them by discriminability and generability."),
    "generate": ("coda_run", "... and make the first images of each concept."),
    "verify": ("coda_run", "... and verify them, with more images where too few pass."),
    "augment": ("coda_run", "Run all of these stages, or what is missing of them."),
    "export": ("coda_export", "Write the accepted images as training data."),
    "armada-lite": ("coda_armada_lite", "Edit the support images by instructions, as a baseline."),
    "report": ("coda_report", "Write a page with features, scores, pictures, cost and accuracies."),
    "annotate": ("coda_annotate", "Have people check features: export a sample, or score their answers."),
}
"""Module and help line of each action."""


def main(args: list[str]) -> int:
    """Run an action.

    Args:
        args: Name of the action, and its options.

    Returns:
        Its exit code: 0, 1 if something failed, 130 if it was interrupted.

    Raises:
        SystemExit: After the help.
        UsageError: If there is no such action.
    """
    first = args[0] if args else "--help"
    if first in ("-h", "--help", "help"):
        print(help_text())
        raise SystemExit(0)  # as parsers do
    if first not in ACTIONS:
        raise UsageError(f"There is no action {first!r}{did_you_mean(first, ACTIONS)}")
    return int(import_module(f"lit_modules.cli.commands.{ACTIONS[first][0]}").main(first, args[1:]))


def help_text() -> str:
    """Return the text of ``lit-modules coda --help``."""
    lines = [
        "usage: lit-modules coda ACTION -c FILE [options]",
        "",
        "CoDA: contrastive synthetic images of new concepts.",
    ]
    lines += ["", "actions:", *(f"  {name:<12}{line}" for name, (_, line) in ACTIONS.items())]
    lines += [
        "",
        "Each action goes on where an earlier run on the same store was. `lit-modules coda augment --help` shows the",
        "options of an action; every value of the file can be given on the command line.",
        "",
        "examples:",
        "  lit-modules coda augment -c coda_augmentation/local.yaml --data.root data/novel_species --dry-run",
        "  lit-modules coda augment -c coda_augmentation/local.yaml --data.root data/novel_species --shard 1/4",
        "  lit-modules coda export -c coda_augmentation/local.yaml --output data/novel_species_coda",
        "  lit-modules coda report -c coda_augmentation/local.yaml",
    ]
    return "\n".join(lines)
