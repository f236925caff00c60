"""The commands beside fit, validate, test and predict: a module each, with ``main(args: list[str]) -> int``."""

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("lit_modules.commands.demo", "Run a method offline, from nothing to a report."),
    "study": ("lit_modules.commands.study", "Reproduce a recorded comparison of methods."),
    "sweep": ("lit_modules.commands.sweep", "Run fit and test over values of any argument."),
    "sequence": ("lit_modules.commands.sequence", "Unlearn growing or successive forget sets of MUSE."),
    "compare": ("lit_modules.commands.compare", "Compare methods of unlearning from one start, with equal steps."),
    "aftercare": ("lit_modules.commands.aftercare", "Relearn and round an unlearned model: what does it still know?"),
    "ontology": ("lit_modules.commands.ontology", "Look at an ontology and the distances of its affordances."),
    "pairs": ("lit_modules.commands.pairs", "Make pairs of affordances with captions and images."),
    "coda": ("lit_modules.commands.coda", "Find confused pairs and make contrastive synthetic images of them."),
    "memory": ("lit_modules.commands.memory", "Count the memory that unlearning a model needs of each GPU."),
    "recipes": ("lit_modules.commands.recipes", "List the shipped recipes, for -c."),
}
"""Module and help line of each command."""
