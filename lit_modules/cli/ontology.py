"""``lit-modules ontology``: look at an ontology and at the distances of its affordances."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.utils.files import whole_file

if TYPE_CHECKING:
    from lit_modules.synthia.ontology.distance import AffordancePair, AffordanceTable
    from lit_modules.synthia.ontology.graph import Ontology

ACTIONS = {
    "stats": "count categories, concepts, parts and affordances",
    "validate": "say everything that is wrong with a file, and what deserves a look",
    "distances": "show the distances of affordances by bin, the closest pairs and the most distant ones",
    "plot": "draw the graph, and the histogram of distances with the bins",
}
EXAMPLE = """FILE is YAML or JSON, or `household` for the ontology that comes with the package.

examples:
  lit-modules ontology stats household
  lit-modules ontology distances household --csv distances.csv
  lit-modules ontology plot my_objects.yaml --folder pictures
"""


def main(args: list[str]) -> int:
    """Look at an ontology.

    Args:
        args: Action, file and options; see ``lit-modules ontology --help``.

    Returns:
        0, or 1 if ``validate`` found something wrong.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file breaks the schema, or an option is out of its range.
    """
    options = _read_options(args)
    if options.action == "validate":
        return validate(options.file)
    from lit_modules.synthia.ontology.graph import Ontology

    ontology = Ontology.from_file(options.file)
    if options.action == "stats":
        print_stats(ontology)
        return 0
    from lit_modules.synthia.ontology.distance import AffordanceDistance

    if options.action == "distances" and options.top < 0:
        raise ValueError(f"--top must not be negative, got {options.top}.")
    encoder = None if options.encoder == "none" else options.encoder
    distance = AffordanceDistance(
        options.weight, options.alpha, options.beta, options.semantic_term, encoder, options.compat
    )
    table = distance(ontology)
    if options.action == "distances":
        print_distances(ontology, table, options.top)
        if options.csv:
            _write_csv(Path(options.csv), table.pairs())
            print(f"All pairs: {options.csv}")
        return 0
    for path in draw(ontology, table, Path(options.folder)):
        print(path)
    return 0


def validate(file: str) -> int:
    """Print everything that is wrong with a file, or what the schema allows and a curriculum has no use for.

    Args:
        file: Path of the file, or the name of a bundled ontology.

    Returns:
        0 if the file is an ontology, else 1.
    """
    from lit_modules.synthia.ontology.files import load_mapping
    from lit_modules.synthia.ontology.graph import Ontology, find_problems

    data = load_mapping(file)
    problems = find_problems(data, file)
    for problem in problems:
        print(f"{file}: {problem}")
    if problems:
        print(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}.")
        return 1
    ontology = Ontology.from_dict(data, file)
    for remark in ontology.validate():
        print(f"remark: {remark}")
    print(f"{file} is an ontology of {len(ontology.concepts)} concepts.")
    return 0


def print_stats(ontology: "Ontology") -> None:
    """Print the counts, and those of each superordinate category."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    counts = Table(title=Text(ontology.name), title_justify="left")  # a text, as rich reads markup in a title
    counts.add_column("what")
    counts.add_column("number", justify="right")
    for what, number in ontology.stats().items():
        counts.add_row(what.replace("_", " "), str(number))
    console.print(counts, markup=False)
    console.print(_by_category(ontology), markup=False)


def print_distances(ontology: "Ontology", table: "AffordanceTable", top: int) -> None:
    """Print how many pairs each bin holds, the closest pairs and the most distant ones.

    Args:
        ontology: Where the affordances come from.
        table: Their distances.
        top: Pairs to show at each end.
    """
    from rich.console import Console
    from rich.table import Table

    from lit_modules.synthia.ontology.curriculum import EDGES, bin_of, transform, usable_pairs

    console = Console()
    pairs = table.pairs()
    usable = usable_pairs(pairs)
    print(
        f"{ontology.name}: {len(pairs)} pairs can be measured, {len(usable)} of them at a distance other than 0 and 1."
    )
    if not usable:
        return
    spread = transform([pair.distance for pair in usable])
    found = bin_of(spread)
    bins = Table(title="transformed distance t", title_justify="left")
    for name, side in (("bin", "left"), ("pairs", "right"), ("least distance", "right"), ("greatest", "right")):
        bins.add_column(name, justify=side)  # type: ignore[arg-type]
    for number in range(len(EDGES)):
        members = [pair.distance for pair, place in zip(usable, found, strict=True) if place == number]
        upper = EDGES[number + 1] if number + 1 < len(EDGES) else 1.0
        label = f"{'[' if number == 0 else '('}{EDGES[number]:g}, {upper:g}]"
        ends = [f"{min(members):.4f}", f"{max(members):.4f}"] if members else ["-", "-"]
        bins.add_row(label, str(len(members)), *ends)
    console.print(bins, markup=False)
    order = sorted(usable, key=lambda pair: pair.distance)
    if top:
        console.print(_listing("closest pairs", order[:top]), markup=False)
        console.print(_listing("most distant pairs", order[-top:][::-1]), markup=False)


def draw(ontology: "Ontology", table: "AffordanceTable", folder: Path) -> list[Path]:
    """Draw ``graph.png`` and ``distances.png``.

    Args:
        ontology: What to draw.
        table: The distances of its affordances.
        folder: Folder of the pictures; it is made.

    Returns:
        The files written.
    """
    from lit_modules.cli.ontology_pictures import draw_distances, draw_graph

    pictures = {"graph.png": draw_graph(ontology), "distances.png": draw_distances(ontology.name, table)}
    written = []
    for name, figure in pictures.items():
        with whole_file(folder / name) as part:
            figure.savefig(part, format="png", dpi=120)
        written.append(folder / name)
    return written


def _read_options(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lit-modules ontology",
        description="Look at an ontology: superordinate categories, concepts, parts and affordances.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, line in ACTIONS.items():
        action = actions.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.", allow_abbrev=False)
        action.add_argument("file", metavar="FILE", help="YAML or JSON file, or household")
        if name not in ("distances", "plot"):
            continue
        action.add_argument(
            "--weight", type=float, default=0.6, help="share of the whole against the parts (default: %(default)s)"
        )
        action.add_argument(
            "--encoder",
            default="none",
            metavar="MODEL",
            help="name or folder of a text model that compares the names of concepts (default: none)",
        )
        action.add_argument(
            "--alpha", type=float, default=0.7, help="with --encoder: share of the structure (default: %(default)s)"
        )
        action.add_argument(
            "--beta", type=float, default=0.3, help="with --encoder: share of the names (default: %(default)s)"
        )
        action.add_argument(
            "--semantic-term",
            choices=("distance", "similarity"),
            default="distance",
            help="with --encoder: add 1 - cosine, or the cosine as the authors' code does (default: %(default)s)",
        )
        action.add_argument("--compat", action="store_true", help="round to 4 digits as the authors' code does")
        if name == "distances":
            action.add_argument(
                "--top", type=int, default=5, metavar="N", help="pairs shown at each end (default: %(default)s)"
            )
            action.add_argument("--csv", metavar="FILE", help="write all pairs to this file")
        else:
            action.add_argument(
                "--folder", default="runs/ontology", help="folder of the pictures (default: %(default)s)"
            )
    return parser.parse_args(args)


def _by_category(ontology: "Ontology") -> Any:
    from rich.table import Table

    table = Table()
    for name, side in (("superordinate", "left"), ("concepts", "right"), ("parts", "right"), ("affordances", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for category in dict.fromkeys(concept.superordinate for concept in ontology.concepts):
        members = [concept for concept in ontology.concepts if concept.superordinate == category]
        owned = {name for concept in members for name in concept.affordances | concept.part_affordances}
        parts = sum(len(concept.parts) for concept in members)
        table.add_row(category, str(len(members)), str(parts), str(len(owned)))
    return table


def _listing(title: str, pairs: Sequence["AffordancePair"]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("first", "second"):
        table.add_column(name)
    table.add_column("distance", justify="right")
    for pair in pairs:
        table.add_row(pair.first, pair.second, f"{pair.distance:.4f}")
    return table


def _write_csv(path: Path, pairs: Sequence["AffordancePair"]) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", "distance"])
        writer.writerows(pairs)
