"""``lit-modules ontology``: look at an ontology and at the distances of its affordances."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_modules.cli.options import read_options
from lit_modules.studies.tables import print_table
from lit_modules.synthia.ontology.curriculum import EDGES, bin_of, transform, usable_pairs
from lit_modules.synthia.ontology.distance import AffordanceDistance, AffordanceTable
from lit_modules.utils.figures import save_figure
from lit_modules.utils.files import whole_file
from lit_modules.utils.ontology import Ontology, find_problems
from lit_modules.utils.ontology_files import load_mapping

DESCRIPTION = "Look at an ontology: superordinate categories, concepts, parts and affordances."
EXAMPLE = """FILE is YAML or JSON, or `household` for the ontology that comes with the package.

examples:
  lit-modules ontology stats household
  lit-modules ontology distances household --csv distances.csv
  lit-modules ontology plot my_objects.yaml --folder pictures
"""


Action = Literal["stats", "validate", "distances", "plot"]


@dataclass
class Actions:
    """Action on an ontology.

    Args:
        action: stats counts categories, concepts, parts and affordances; validate says everything that is wrong with a
            file, and what deserves a look; distances shows the distances of affordances by bin, the closest pairs and
            the most distant ones; plot draws the graph, and the histogram of distances with the bins. Each has its own
            --help.
    """

    action: Action


@dataclass
class FileOptions:
    """The ontology.

    Args:
        file: YAML or JSON file, or household.
    """

    file: str


@dataclass
class DistanceOptions(FileOptions):
    """The ontology, and how its affordances are compared.

    Args:
        weight: Share of the whole against the parts.
        encoder: Name or folder of a text model that compares the names of concepts, or none.
        alpha: With an encoder: share of the structure.
        beta: With an encoder: share of the names.
        semantic_term: With an encoder: add 1 - cosine, or the cosine as the authors' code does.
        compat: Round to 4 digits as the authors' code does.
    """

    weight: float = 0.6
    encoder: str = "none"
    alpha: float = 0.7
    beta: float = 0.3
    semantic_term: Literal["distance", "similarity"] = "distance"
    compat: bool = False

    def table(self, ontology: Ontology) -> AffordanceTable:
        """Return the distances of the affordances."""
        distance = AffordanceDistance(
            self.weight,
            alpha=self.alpha,
            beta=self.beta,
            semantic_term=self.semantic_term,
            encoder=None if self.encoder == "none" else self.encoder,
            compat=self.compat,
        )
        return distance(ontology)


@dataclass
class ListOptions(DistanceOptions):
    """The ontology, how its affordances are compared, and what is shown.

    Args:
        top: Pairs shown at each end.
        csv: File to write all pairs to.
    """

    top: int = 5
    csv: str | None = None


@dataclass
class PlotOptions(DistanceOptions):
    """The ontology, how its affordances are compared, and where the pictures go.

    Args:
        folder: Folder of the pictures.
    """

    folder: str = "runs/ontology"


def main(args: list[str]) -> int:
    """Look at an ontology; return 0, or 1 if ``validate`` found something wrong."""
    action = read_options(Actions, args[:1], "ontology", DESCRIPTION, EXAMPLE)[0].action
    act, options = ACTIONS[action]
    line = str(act.__doc__).partition("\n")[0]
    return int(act(read_options(options, args[1:], f"ontology {action}", line, EXAMPLE)[0]))


def stats(options: FileOptions) -> int:
    """Count categories, concepts, parts and affordances."""
    ontology = Ontology.from_file(options.file)
    counts = [(name.replace("_", " "), str(number)) for name, number in ontology.stats().items()]
    print_table([("what", "number"), *counts], ontology.name)
    rows = []
    for category in dict.fromkeys(concept.superordinate for concept in ontology.concepts):
        members = [concept for concept in ontology.concepts if concept.superordinate == category]
        affordances = {name for concept in members for name in concept.affordances | concept.part_affordances}
        numbers = len(members), sum(len(concept.parts) for concept in members), len(affordances)
        rows.append((category, *map(str, numbers)))
    print_table([("superordinate", "concepts", "parts", "affordances"), *rows])
    return 0


def validate(options: FileOptions) -> int:
    """Say everything that is wrong with a file, and what deserves a look."""
    file = options.file
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


def distances(options: ListOptions) -> int:
    """Show the distances of affordances by bin, the closest pairs and the most distant ones."""
    if options.top < 0:
        raise ValueError(f"--top must not be negative, got {options.top}.")
    ontology = Ontology.from_file(options.file)
    pairs = options.table(ontology).pairs()
    usable = usable_pairs(pairs)
    print(
        f"{ontology.name}: {len(pairs)} pairs can be measured, {len(usable)} of them at a distance other than 0 and 1."
    )
    if usable:
        bins = bin_of(transform([pair.distance for pair in usable]))
        rows = []
        for number, low in enumerate(EDGES):
            members = [pair.distance for pair, own in zip(usable, bins, strict=True) if own == number]
            high = EDGES[number + 1] if number + 1 < len(EDGES) else 1.0
            ends = [f"{min(members):.4f}", f"{max(members):.4f}"] if members else ["-", "-"]
            rows.append((f"{'[' if number == 0 else '('}{low:g}, {high:g}]", str(len(members)), *ends))
        print_table([("bin", "pairs", "least distance", "greatest"), *rows], "transformed distance t")
    order = sorted(usable, key=lambda pair: pair.distance)
    for title, shown in (("closest pairs", order[: options.top]), ("most distant pairs", order[::-1][: options.top])):
        if shown:
            rows = [(pair.first, pair.second, f"{pair.distance:.4f}") for pair in shown]
            print_table([("first", "second", "distance"), *rows], title, texts=2)
    if options.csv:
        with whole_file(options.csv) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["first", "second", "distance"])
            writer.writerows(pairs)
        print(f"All pairs: {options.csv}")
    return 0


def plot(options: PlotOptions) -> int:
    """Draw the graph, and the histogram of distances with the bins."""
    from lit_modules.cli.ontology_pictures import draw_distances, draw_graph

    ontology = Ontology.from_file(options.file)
    histogram = draw_distances(ontology.name, options.table(ontology))
    for name, figure in {"graph.png": draw_graph(ontology), "distances.png": histogram}.items():
        print(save_figure(figure, Path(options.folder) / name)[0])
    return 0


ACTIONS: dict[Action, tuple[Any, Any]] = {
    "stats": (stats, FileOptions),
    "validate": (validate, FileOptions),
    "distances": (distances, ListOptions),
    "plot": (plot, PlotOptions),
}
"""Functions of the actions, and their options."""
