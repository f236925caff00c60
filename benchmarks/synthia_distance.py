"""Time of all affordance distances against the plain loop, on an ontology of the paper's size.

    python benchmarks/synthia_distance.py

The ontology is random: 30 superordinate categories, 590 concepts, 439 affordances of concepts, 686 in all, two parts to
a concept. The loop is the definition: for each pair of affordances the mean over the concepts that own them, each
distance of two concepts computed from its sets when it is met. It is timed on a share of the pairs, drawn at random,
and scaled to all; that share is also compared with the matrix. Both run on one thread if OMP_NUM_THREADS=1.
"""

import argparse
import platform
import random
import statistics
import time
from datetime import date
from itertools import combinations

import numpy as np

from lit_modules.synthia import AffordanceDistance, Concept, Ontology

CONCEPTS, CATEGORIES, WHOLE, ALL = 590, 30, 439, 686


def ontology(seed: int) -> Ontology:
    """Return a random ontology in which every affordance has an owner."""
    generator = random.Random(seed)
    names = [f"affordance {number}" for number in range(ALL)]
    whole: list[set[str]] = [set(generator.sample(names[:WHOLE], 4)) for _ in range(CONCEPTS)]
    parts: list[list[set[str]]] = [[set(generator.sample(names, 2)) for _ in range(2)] for _ in range(CONCEPTS)]
    for number, name in enumerate(names[:WHOLE]):
        whole[number % CONCEPTS].add(name)
    for number, name in enumerate(names[WHOLE:]):
        parts[number % CONCEPTS][0].add(name)
    concepts = [
        Concept(
            f"category {number % CATEGORIES}",
            f"concept {number}",
            tuple(sorted(whole[number])),
            (),
            {f"part {place}": tuple(sorted(own)) for place, own in enumerate(parts[number])},
        )
        for number in range(CONCEPTS)
    ]
    return Ontology(concepts, "random")


def difference(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard distance of two sets."""
    either = first | second
    return 1 - len(first & second) / len(either) if either else 0.0


def loop(objects: Ontology, pairs: list[tuple[str, str]]) -> list[float]:
    """Return the distances of pairs of affordances by the definition."""
    sets = [(concept.affordances, concept.part_affordances) for concept in objects.concepts]
    found = []
    for first, second in pairs:
        values = [
            0.6 * difference(sets[one][0], sets[other][0]) + 0.4 * difference(sets[one][1], sets[other][1])
            for one in range(len(sets))
            if first in sets[one][0]
            for other in range(len(sets))
            if second in sets[other][0] and one != other
        ]
        found.append(sum(values) / len(values) if values else float("nan"))
    return found


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs that the loop is timed on (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the ontology and the pairs (default: 0)")
    options = parser.parse_args()
    objects = ontology(options.seed)
    counts = objects.stats()
    every = list(combinations(objects.affordances("concept"), 2))
    some = random.Random(options.seed).sample(every, min(options.pairs, len(every)))
    print(f"{date.today()}, {platform.processor() or platform.machine()}, numpy {np.__version__}")
    print(f"{counts['concepts']} concepts, {counts['concept_affordances']} affordances, {len(every)} pairs")
    fast, slow = [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        table = AffordanceDistance()(objects)
        fast.append(time.perf_counter() - began)
        began = time.perf_counter()
        values = loop(objects, some)
        slow.append((time.perf_counter() - began) * len(every) / len(some))
    error = max(abs(table.between(*pair) - value) for pair, value in zip(some, values, strict=True) if value == value)
    ours, theirs = statistics.median(fast), statistics.median(slow)
    print(f"matrix: {ours:.4f} s (median of {options.rounds})")
    print(f"loop:   {theirs:.1f} s (from {len(some)} pairs)")
    print(f"ratio:  {theirs / ours:.0f}; greatest difference {error:.1e}")


if __name__ == "__main__":
    main()
