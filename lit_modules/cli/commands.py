"""The commands beside fit, validate, test and predict: a module each, with ``main(args: list[str]) -> int``."""

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("lit_modules.demos.command", "Run a method offline, from nothing to a report."),
    "sweep": ("lit_modules.studies.sweep.command", "Run fit and test over values of any argument."),
    "sequence": ("lit_modules.studies.sequence", "Scalability and sustainability of unlearning, as in MUSE."),
    "compare": (
        "lit_modules.studies.compare.command",
        "Compare methods of unlearning from one start, with equal steps.",
    ),
    "stress": ("lit_modules.studies.stress.command", "Relearning attack and quantization of an unlearned model."),
    "ontology": ("lit_modules.cli.ontology", "Look at an ontology and the distances of its affordances."),
    "pairs": ("lit_modules.cli.pairs", "Make pairs of affordances with captions and images."),
    "coda": ("lit_modules.cli.coda.command", "Find confused pairs and make contrastive synthetic images of them."),
    "memory": ("lit_modules.cli.memory", "Count the memory that unlearning a model needs of each GPU."),
    "recipes": ("lit_modules.cli.recipes", "List the shipped recipes, for -c."),
}
"""Module and help line of each command."""
