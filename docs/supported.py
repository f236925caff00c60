"""Write the page of supported models from the results of the tests that try them.

Two commands, in the folder of the repository::

    pytest -m slow tests/unlearning/test_architectures.py tests/coda/test_families.py --junitxml=supported.xml
    python docs/supported.py supported.xml > docs/supported.md
"""

import argparse
import platform
from datetime import date
from importlib.metadata import version
from xml.etree import ElementTree

TABLES = {
    "test_architecture": (
        "Language models",
        "Each is built from its configuration with two layers, and takes two steps of `NGDiff`. *generate*: rows of "
        "unequal length, answered together as each alone; *save and reload*: by `AutoModelForCausalLM`, equal to the "
        "last bit; *LoRA and checkpointing*: an adapter trained under gradient checkpointing and loaded by peft.",
    ),
    "test_family": (
        "Image-text models",
        "Each is built from its configuration with its own processor and a chat template, and takes two steps of "
        "`CoDA`. *save and reload*: adapters, and the merged model.",
    ),
}
"""By test: heading of its table and what its columns mean."""


def read(path: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return the outcome of each test, by its name, the model and what was tried."""
    outcomes: dict[str, dict[str, dict[str, str]]] = {name: {} for name in TABLES}
    for case in ElementTree.parse(path).iter("testcase"):
        name, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        if name in outcomes:
            model, _, role = parameters.rpartition("-")
            kinds = [child.tag for child in case]
            outcome = "failed" if {"failure", "error"} & {*kinds} else "not tried" if "skipped" in kinds else "yes"
            outcomes[name].setdefault(model, {})[role] = outcome
    return outcomes


def table(outcomes: dict[str, dict[str, str]]) -> list[str]:
    """Return the rows of a Markdown table."""
    roles = list(dict.fromkeys(role for tried in outcomes.values() for role in tried))
    rows = [[f"`{model}`", *(tried.get(role, "not tried") for role in roles)] for model, tried in outcomes.items()]
    return ["| " + " | ".join(row) + " |" for row in (["model", *roles], ["---"] * (len(roles) + 1), *rows)]


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="file that pytest --junitxml wrote")
    outcomes = read(parser.parse_args().results)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    print("# Supported models\n")
    print(f"Made by `docs/supported.py` from test results, {date.today()}, {libraries}, {platform.machine()}, CPU.")
    for name, (heading, meaning) in TABLES.items():
        if outcomes[name]:
            print(f"\n## {heading}\n\n{meaning}\n")
            print("\n".join(table(outcomes[name])))


if __name__ == "__main__":
    main()
