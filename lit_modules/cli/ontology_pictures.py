"""The pictures of an ontology: its graph, and its distances."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lit_modules.synthia.ontology.curriculum import EDGES, bin_of, transform, usable_pairs
from lit_modules.utils.figures import figure_style, new_figure

if TYPE_CHECKING:
    from lit_modules.synthia.ontology.distance import AffordanceTable
    from lit_modules.utils.ontology import Ontology

RADII = {"superordinate": 0.9, "concept": 1.7, "part": 3.4}
READABLE = 400
"""Labels that a ring has at most; those of a larger ring are left out."""


@figure_style()
def draw_graph(ontology: "Ontology") -> Any:
    """Draw categories, concepts and parts as rings, each name with its affordances."""
    graph = ontology.graph
    leaves = [node for node in _in_order(graph) if not _children(graph, node)]
    angles = {node: math.tau * index / len(leaves) for index, node in enumerate(leaves)}
    for kind in ("concept", "superordinate"):
        for node in _of_kind(graph, kind):
            if node not in angles:
                inner = [angles[child] for child in _children(graph, node)]
                angles[node] = (min(inner) + max(inner)) / 2
    size = min(40.0, max(12.0, len(leaves) * 0.12 + 3))
    figure, axes = _figure(size, size)
    categories = _of_kind(graph, "superordinate")
    colours = {category: f"C{number % 10}" for number, category in enumerate(categories)}
    for kind, radius in RADII.items():
        nodes = _of_kind(graph, kind)
        for node in nodes:
            colour, angle = colours[node.split("/")[0]], angles[node]
            x, y = radius * math.cos(angle), radius * math.sin(angle)
            for child in _children(graph, node):
                outer = RADII[graph.nodes[child]["kind"]]
                ends = outer * math.cos(angles[child]), outer * math.sin(angles[child])
                axes.plot([x, ends[0]], [y, ends[1]], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot([x], [y], "o", color=colour, markersize={"superordinate": 12, "concept": 6, "part": 3}[kind])
            if len(nodes) <= READABLE:
                _label(axes, graph, node, angle, radius)
    axes.set(xlim=(-4.7, 4.7), ylim=(-4.7, 4.7), aspect="equal")
    axes.axis("off")
    axes.set_title(
        f"{ontology.name}: categories, concepts and parts, each with its affordances", fontsize=14, parse_math=False
    )
    return figure


@figure_style()
def draw_distances(name: str, table: "AffordanceTable") -> Any:
    """Draw the histogram of distances, and that of transformed distances over the bins that pairs are drawn from."""
    pairs = table.pairs()
    usable = usable_pairs(pairs)
    if not usable:
        raise ValueError(f"{name} has no pair of affordances with a distance other than 0 and 1 to draw.")
    spread = transform([pair.distance for pair in usable])
    figure, (left, right) = _figure(12, 4.5, 2)
    left.hist([pair.distance for pair in usable], bins=40, color="C0")
    left.set(
        xlabel="distance $D_A$",
        ylabel="pairs",
    )
    left.set_title(f"{name}: {len(usable)} of {len(pairs)} pairs (those at 0 and 1 left out)", parse_math=False)
    bins = bin_of(spread)
    edges = [*EDGES, 1.0]
    for number, (low, high) in enumerate(pairwise(edges)):
        count = int((bins == number).sum())
        drawn = number < len(EDGES) - 1
        right.bar(low, count, high - low, align="edge", edgecolor="white", color="C1" if drawn else "0.7", hatch=None)
        right.annotate(str(count), ((low + high) / 2, count), ha="center", va="bottom", fontsize=9)
    right.set(
        xlabel="transformed distance $t$",
        ylabel="pairs",
        xticks=edges,
        title="bins of the curriculum (grey: only to fill up)",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def _figure(width: float, height: float, columns: int = 1) -> Any:
    """Return a figure that no window and no global state belongs to, and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(1, columns)


def _label(axes: Any, graph: Any, node: str, angle: float, radius: float) -> None:
    """Write a name and its affordances outwards, never upside down."""
    kind, name = graph.nodes[node]["kind"], graph.nodes[node]["name"]
    affordances = [
        graph.nodes[end]["name"] for end in graph.successors(node) if graph.nodes[end]["kind"] == "affordance"
    ]
    text = f"{name}: {', '.join(affordances)}" if affordances else name
    degrees = math.degrees(angle)
    flipped = 90 < degrees % 360 < 270
    out = radius + 0.08
    axes.text(
        out * math.cos(angle),
        out * math.sin(angle),
        text,
        rotation=degrees + 180 if flipped else degrees,
        rotation_mode="anchor",
        ha="right" if flipped else "left",
        va="center",
        fontsize={"superordinate": 10, "concept": 7.5, "part": 6.5}[kind],
        fontweight="bold" if kind == "superordinate" else "normal",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.3},
        parse_math=False,
    )


def _children(graph: Any, node: str) -> list[str]:
    return [child for child in graph.successors(node) if graph.nodes[child]["kind"] in RADII]


def _of_kind(graph: Any, kind: str) -> list[str]:
    return [node for node, own in graph.nodes(data="kind") if own == kind]


def _in_order(graph: Any) -> list[str]:
    """Return categories, each followed by its concepts, each followed by its parts."""
    order = []
    for category in _of_kind(graph, "superordinate"):
        order.append(category)
        for concept in _children(graph, category):
            order += [concept, *_children(graph, concept)]
    return order
