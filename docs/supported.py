"""Print the page of supported models, docs/supported.md, from tests that build a tiny one of each family and try it.

One command, in the folder of the repository; it runs the tests, which takes some 15 minutes on two cores::

    python docs/supported.py > supported.new && mv supported.new docs/supported.md

With ``--only HEADING`` the tests of that table alone are run, and the others stay as they are on the page; each table
bears the date and the versions of its own run. A file that ``pytest --junitxml=FILE`` has written before may be given,
``python docs/supported.py FILE``; then nothing is run. A test gives a cell: the row is the family, and the column what
was tried. A test of a family that is refused records the sentence by ``record_property("refused", sentence)``. Failed
tests have their cells, and the exit status is that of pytest.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "lightning", "transformers", "diffusers", "peft")


@dataclass(frozen=True)
class Table:
    """Table of one kind of models.

    Args:
        heading: Heading.
        meaning: Sentences on the rows and columns.
        files: Test files.
        by_role: Tests with the parameters ``FAMILY-ROLE``, whose columns are the roles, and such with ``FAMILY`` alone,
            which give the whole row.
        by_test: Column of each test with the parameter ``FAMILY``.
    """

    heading: str
    meaning: str
    files: tuple[str, ...]
    by_role: tuple[str, ...] = ()
    by_test: dict[str, str] = field(default_factory=dict)


TABLES = (
    Table(
        "Language models",
        "Each is built from its configuration with two layers, and takes two steps of `NGDiff`; of image-text models, "
        "the last rows, the language model trains. *generate*: rows of unequal length, answered together as each "
        "alone; *save and reload*: by transformers, as the class that it was, equal to the last bit; *LoRA and "
        "checkpointing*: an adapter trained under gradient checkpointing and loaded by peft; *eager and sdpa*: equal "
        "losses, chosen by `model_kwargs`; *int8 base*: an adapter on weights that torchao has quantised.",
        ("tests/unlearning/test_architectures.py",),
        by_role=("test_architecture",),
    ),
    Table(
        "Chat templates",
        "The published templates, by `TOFU(template='chat')`. *training*: the exact text of each row, and labels on "
        "the answer and its end alone; *test*: the same prompts; *generate*: the same tokens from the prompt's text.",
        ("tests/unlearning/test_chat_templates.py",),
        by_role=("test_chat_template",),
    ),
    Table(
        "Image-text models",
        "Each is built from its configuration with its own processor, and a chat template or the plain prompt of its "
        "card, and takes two steps of `CoDA`. *generate* and *likelihood*: pictures of several sizes and questions of "
        "several lengths, answered and scored together as each alone; *save and reload*: adapters, and the merged "
        "model; *gradient checkpointing*: adapters, equal to training without; *projector*: trained beside adapters; "
        "*8 bits*: adapters on a quantised base, saved, loaded and resumed.",
        ("tests/coda/test_families.py",),
        by_role=("test_family", "test_quantised_family", "test_refused_family"),
    ),
    Table(
        "Text-to-image models",
        "Each is built from its configuration as a pipeline of diffusers of the name. *pictures*: those of the "
        "pipeline itself; *steps*: our predictions lead where the pipeline's do; *LoRA*: trains alone; *LoRA in "
        "diffusers* and *network in diffusers*: the pipeline draws the same with what was saved; *fit*: steps of "
        "`Synthia`, saved, loaded, and drawn; *text LoRA*: adapters of the CLIP encoders beside it, drawn with by the "
        "pipeline, and loaded by peft where transformers ask for a later one (5.24 with peft 0.21); *int8 "
        "base*: an adapter on a network that diffusers and torchao have quantised, saved, loaded, and drawn with on "
        "it; *buckets*: steps on pictures of several aspect ratios.",
        (
            "tests/synthia/backbones/test_pipeline.py",
            "tests/synthia/backbones/test_training.py",
            "tests/synthia/backbones/test_text_adapters.py",
            "tests/synthia/backbones/test_quantised.py",
            "tests/synthia/test_buckets.py",
        ),
        by_test={
            "test_parts_are_loaded_one_by_one_and_images_are_those_of_the_pipeline": "pictures",
            "test_steps_by_our_predictions_are_those_of_the_pipeline": "steps",
            "test_an_adapter_trains_alone_and_can_be_switched_off": "LoRA",
            "test_the_pipeline_draws_the_same_with_a_saved_adapter": "LoRA in diffusers",
            "test_the_pipeline_draws_the_same_with_a_saved_network": "network in diffusers",
            "test_fit_save_reload_generate": "fit",
            "test_half_precision_works_and_answers_in_full": "bfloat16",
            "test_text_adapters_in_diffusers": "text LoRA",
            "test_quantised_base": "int8 base",
            "test_every_network_takes_every_bucket": "buckets",
        },
    ),
)


@dataclass
class Outcomes:
    """Outcomes of one table.

    Args:
        cells: Outcome by family and column.
        whole: Outcome of families that were not tried column by column.
        reasons: Reasons of refused and skipped cells, each once.
    """

    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add(self, table: Table, case: ElementTree.Element) -> None:
        """Take in a test case."""
        name, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        file = case.attrib["classname"].replace(".", "/") + ".py"
        if file not in table.files or not parameters:
            return
        family, _, role = parameters.rpartition("-")
        if name in table.by_test:
            self.cells.setdefault(parameters, {})[table.by_test[name]] = self.outcome(case)
        elif name in table.by_role and name.startswith("test_refused"):
            self.whole[parameters] = self.outcome(case)
        elif name in table.by_role:
            self.cells.setdefault(family, {})[role] = self.outcome(case)

    def outcome(self, case: ElementTree.Element) -> str:
        """Return ``yes``, ``**failed**``, or ``refused`` or ``skipped`` with the number of the reason."""
        if case.find("failure") is not None or case.find("error") is not None:
            return "**failed**"
        refused = case.find("properties/property[@name='refused']")
        skipped = case.find("skipped")
        if refused is not None:
            return f"refused {self.note(refused.attrib['value'])}"
        return "yes" if skipped is None else f"skipped {self.note(skipped.attrib['message'])}"

    def note(self, reason: str) -> str:
        """Return the number of a reason."""
        plain = " ".join(reason.split())
        if plain not in self.reasons:
            self.reasons.append(plain)
        return f"[{self.reasons.index(plain) + 1}]"

    def lines(self) -> list[str]:
        """Return the rows of a Markdown table, and the reasons."""
        columns = list(dict.fromkeys(column for tried in self.cells.values() for column in tried))
        rows = [["family", *columns], ["---"] * (len(columns) + 1)]
        rows += [[family, *(tried.get(column, "") for column in columns)] for family, tried in self.cells.items()]
        rows += [[family, *[outcome] * len(columns)] for family, outcome in self.whole.items()]
        table = [f"| {' | '.join(row)} |" for row in rows]
        return [*table, *("" for _ in self.reasons[:1]), *(f"[{n}] {text}  " for n, text in enumerate(self.reasons, 1))]


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines of each table on a page, from its heading on, by the heading."""
    found: dict[str, list[str]] = {}
    for part in text.split("\n## ")[1:]:
        found[part.partition("\n")[0]] = f"## {part}".rstrip("\n").split("\n")
    return found


def page(cases: Iterable[ElementTree.Element], today: date, kept: Mapping[str, list[str]] | None = None) -> list[str]:
    """Return the lines of the page; a table without cases is that of ``kept``."""
    outcomes = [Outcomes() for _ in TABLES]
    for case in cases:
        for table, own in zip(TABLES, outcomes, strict=True):
            own.add(table, case)
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    stamp = f"Made on {today}: {libraries}, Python {platform.python_version()}, {platform.machine()}, CPU."
    lines = [
        "# Supported models",
        "",
        "Made by `python docs/supported.py` from test results. The models are tiny ones of the real classes; no "
        "pretrained weights were loaded. An empty cell was not tried.",
    ]
    for table, own in zip(TABLES, outcomes, strict=True):
        if own.cells:
            lines += ["", f"## {table.heading}", "", table.meaning, "", stamp, "", *own.lines()]
        elif kept is not None and table.heading in kept:
            lines += ["", *kept[table.heading]]
    return lines


def main() -> int:
    """Print the page, and return the exit status of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", help="file that pytest --junitxml has written; without it the tests run")
    headings = [table.heading for table in TABLES]
    parser.add_argument("--only", action="append", choices=headings, help="table to make; the others stay")
    arguments = parser.parse_args()
    given, only = arguments.results, arguments.only or headings
    kept = sections((ROOT / "docs" / "supported.md").read_text(encoding="utf-8")) if arguments.only else None
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        results = given or f"{folder}/results.xml"
        if given is None:
            files = [file for table in TABLES if table.heading in only for file in table.files]
            # tests of the text-to-image models are not slow
            command = [sys.executable, "-m", "pytest", "-m", "not gpu and not network", f"--junitxml={results}", *files]
            status = subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr).returncode
        cases = list(ElementTree.parse(results).iter("testcase"))
    print("\n".join(page(cases, date.today(), kept)))
    return status


if __name__ == "__main__":
    sys.exit(main())
