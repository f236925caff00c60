"""Commands beside fit, validate, test and predict, each imported when it is called."""

COMMANDS = {
    "demo": "Run a method offline, from nothing to a report.",
    "sweep": "Run fit and test over values of any argument.",
    "sequence": "Scalability and sustainability of unlearning, as in MUSE.",
    "compare": "Compare methods of unlearning from one start, with equal steps.",
    "metrics": "Test the metrics of unlearning: who knows, and what attacks bring back.",
    "stress": "Relearning attack and quantization of an unlearned model.",
    "ontology": "Look at an ontology and the distances of its affordances.",
    "pairs": "Make pairs of affordances with captions and images.",
    "coda": "Find confused pairs and make contrastive synthetic images of them.",
    "memory": "Count the memory that unlearning a model needs of each GPU.",
    "recipes": "List the shipped recipes, for -c.",
}
"""Help line of each command."""


def run_command(name: str, args: list[str]) -> int:
    """Run a command of :data:`COMMANDS` and return its exit code."""
    if name == "demo":
        from lit_modules.demos.command import main
    elif name == "sweep":
        from lit_modules.studies.sweep.command import main
    elif name == "sequence":
        from lit_modules.studies.sequence import main
    elif name == "compare":
        from lit_modules.studies.compare.command import main
    elif name == "metrics":
        from lit_modules.studies.metrics.command import main
    elif name == "stress":
        from lit_modules.studies.stress.command import main
    elif name == "ontology":
        from lit_modules.cli.ontology import main
    elif name == "pairs":
        from lit_modules.cli.pairs import main
    elif name == "coda":
        from lit_modules.cli.coda.command import main
    elif name == "memory":
        from lit_modules.cli.memory import main
    else:
        from lit_modules.cli.recipes import main
    return main(args)
