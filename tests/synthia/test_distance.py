import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_modules.synthia import AffordanceDistance, Concept, Ontology
from lit_modules.synthia.ontology.curriculum import usable_pairs

CONCEPTS = {
    ("sofa", "cabinet"): 0.9,
    ("sofa", "wheelchair"): 0.6667,
    ("cabinet", "jug"): 0.6,
    ("cabinet", "bus"): 0.84,
    ("kettle", "jug"): 0.7,
    ("bus", "wheelchair"): 0.72,
    ("jug", "bus"): 0.84,
    ("sofa", "kettle"): 1.0,
}
AFFORDANCES = {
    ("organize", "store"): 0.6,
    ("rest", "sit"): 0.6667,
    ("boil", "pour"): 0.7,
    ("drive", "escort"): 0.72,
    ("pour", "store"): 0.7667,
    ("escort", "sit"): 0.7956,
    ("sit", "store"): 0.975,
    ("boil", "drive"): 1.0,
}


@pytest.fixture
def mini(repository: Path) -> Ontology:
    return Ontology.from_file(repository / "tests" / "data" / "synthia" / "mini.yaml")


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 1.0


def naive(ontology: Ontology, weight: float = 0.6) -> dict[tuple[str, str], float]:
    """The definition as loops over affordances and their owners."""
    found = {}
    names = ontology.affordances("concept")
    for first, second in product(names, names):
        values = [
            weight * (1 - jaccard(one.affordances, other.affordances))
            + (1 - weight) * (1 - jaccard(one.part_affordances, other.part_affordances))
            for one in ontology.concepts
            for other in ontology.concepts
            if first in one.affordances and second in other.affordances and one is not other
        ]
        found[first, second] = sum(values) / len(values) if values else math.nan
    return found


def by_name(phrases: list[str]) -> Any:
    """Encode a phrase by its first two letters."""
    return [[ord(phrase[0]) - 96.0, ord(phrase[1]) - 96.0] for phrase in phrases]


def test_the_vectors(mini: Ontology) -> None:
    distance = AffordanceDistance()
    concepts, place = distance.concepts(mini), {concept.name: i for i, concept in enumerate(mini.concepts)}
    for (first, second), value in CONCEPTS.items():
        assert concepts[place[first], place[second]] == pytest.approx(value, abs=1e-4)
    table = distance(mini)
    for (first, second), value in AFFORDANCES.items():
        assert table.between(first, second) == pytest.approx(value, abs=1e-4)
    pairs = table.pairs()
    assert len(pairs) == 28
    assert sum(0 < pair.distance < 1 for pair in pairs) == 20
    assert all(pair.first < pair.second for pair in pairs)
    moved = [Concept(c.superordinate, c.name, (), c.main + c.sub, c.parts) for c in mini.concepts]
    np.testing.assert_array_equal(distance(Ontology(moved, "moved")).matrix, table.matrix)  # main and sub are one set
    assert table.between("rest", "sit") == pytest.approx(2 / 3, abs=1e-15)
    assert AffordanceDistance(compat=True)(mini).between("rest", "sit") == 0.6667  # rounds to 4 digits
    assert AffordanceDistance(compat=True).structure(mini)[0, 5] == 0.6667
    values = [pair.distance for pair in distance(Ontology.from_file("household")).pairs()]
    below = [value for value in values if value < 1]
    assert (len(values), len(below)) == (1422, 812)  # as the household promises
    assert (min(below), max(below)) == pytest.approx((0.45, 0.9905), abs=1e-4)
    assert float(np.median(below)) == pytest.approx(0.927, abs=1e-3)


concepts = st.builds(
    lambda main, parts: (tuple(sorted(main)), tuple(sorted(parts))),
    st.sets(st.sampled_from("abcdef"), max_size=4),
    st.sets(st.sampled_from("defgh"), max_size=3),
).filter(lambda sets: bool(sets[0] or sets[1]))


def made(sets: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> Ontology:
    made = [Concept("s", f"c{i}", main, (), {"p": parts}) for i, (main, parts) in enumerate(sets)]
    return Ontology(made, "made")


@settings(max_examples=25, deadline=None)
@given(st.lists(concepts, min_size=1, max_size=7), st.floats(0, 1))
def test_the_matrix_is_the_naive_loop(sets: list[Any], weight: float) -> None:
    ontology = made(sets)
    table = AffordanceDistance(weight)(ontology)
    wanted = naive(ontology, weight)
    for first, second in wanted:
        assert table.between(first, second) == pytest.approx(wanted[first, second], abs=1e-12, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(concepts, min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_properties(sets: list[Any], random: Any) -> None:
    ontology, distance = made(sets), AffordanceDistance()
    between = distance.concepts(ontology)
    assert (between == between.T).all()
    assert ((between >= 0) & (between <= 1)).all()
    assert (between.diagonal() == 0).all()
    for i, j in product(range(len(sets)), repeat=2):
        assert (between[i, j] == 0) == (set(sets[i][0]) == set(sets[j][0]) and set(sets[i][1]) == set(sets[j][1]))
    table = distance(ontology)
    np.testing.assert_array_equal(table.matrix, table.matrix.T)
    finite = table.matrix[np.isfinite(table.matrix)]
    assert ((finite >= 0) & (finite <= 1)).all()
    # asked again, and with everything in another order
    np.testing.assert_array_equal(distance(ontology).matrix, table.matrix)
    shuffled = [(tuple(random.sample(main, len(main))), parts[::-1]) for main, parts in random.sample(sets, len(sets))]
    np.testing.assert_allclose(distance(made(shuffled)).matrix, table.matrix, rtol=0, atol=1e-12)


def test_pairs_without_two_owners_and_at_zero_are_left_out() -> None:
    # a and b belong to one concept alone; c and d to two equal ones
    ontology = made([(("a", "b"), ()), (("c", "d"), ("x",)), (("c", "d"), ("x",))])
    table = AffordanceDistance()(ontology)
    assert math.isnan(table.between("a", "b"))
    assert table.between("c", "d") == 0
    assert [(pair.first, pair.second) for pair in table.pairs()] == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert {pair.distance for pair in table.pairs()} == {1.0}


def test_the_sign_of_the_term_for_names(mini: Ontology) -> None:
    structure = AffordanceDistance().concepts(mini)
    vectors = np.array(by_name([concept.name for concept in mini.concepts]))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    off = ~np.eye(len(unit), dtype=bool)
    far = AffordanceDistance(encoder=by_name).concepts(mini)
    near = AffordanceDistance(encoder=by_name, semantic_term="similarity").concepts(mini)
    np.testing.assert_allclose(far[off], (0.7 * structure + 0.3 * (1 - unit @ unit.T))[off], atol=1e-12)
    np.testing.assert_allclose(near[off], (0.7 * structure + 0.3 * unit @ unit.T)[off], atol=1e-12)
    assert (far.diagonal() == 0).all()
    # the concepts that own both affordances count neither way
    only = AffordanceDistance(alpha=0.0, beta=1.0, encoder=lambda phrases: np.ones((len(phrases), 1)))
    assert only(mini).pairs() == []
    like = AffordanceDistance(alpha=0.0, beta=1.0, encoder=only.encoder, semantic_term="similarity")
    assert {pair.distance for pair in like(mini).pairs()} == {1.0}

    def opposite(phrases: list[str]) -> Any:
        return [[1.0] if phrase in ("kettle", "bus") else [-1.0] for phrase in phrases]

    distance = AffordanceDistance(alpha=0.1, beta=0.9, encoder=opposite, semantic_term="similarity")
    table = {(pair.first, pair.second): pair.distance for pair in distance(mini).pairs()}
    assert table["boil", "organize"] == pytest.approx(0.1 - 0.9)  # a negative distance is kept
    inside = sum(min(abs(value), abs(value - 1)) > 1e-12 for value in table.values())
    assert (len(table), len(usable_pairs(distance(mini).pairs()))) == (28, inside)


def test_names_reach_the_encoder_once_and_without_underscores() -> None:
    calls: list[list[str]] = []
    encoder: Any = lambda phrases: calls.append(phrases) or np.ones((len(phrases), 2))  # noqa: E731
    AffordanceDistance(encoder=encoder)(Ontology.from_file("household"))
    assert [len(call) for call in calls] == [36]
    assert "coffee maker" in calls[0]


def test_bad_arguments_are_refused(mini: Ontology) -> None:
    arguments: list[tuple[dict[str, Any], str]] = [
        ({"weight": 1.5}, r"weight must lie in \[0, 1\], got 1.5"),
        ({"beta": math.nan}, "beta must be at least 0 and finite, got nan"),
        ({"alpha": 0, "beta": 0}, "must not both be 0"),
        ({"semantic_term": "cosine"}, "'distance' or 'similarity', got 'cosine'"),
    ]
    for vectors in (np.ones((5, 2)), np.zeros((6, 2)), np.full((6, 2), math.nan)):
        encoder: Any = lambda _, vectors=vectors: vectors  # noqa: E731
        arguments.append(({"encoder": encoder}, "a finite vector other than 0 for each of 6 phrases"))
    for given_, message in arguments:
        with pytest.raises(ValueError, match=message):
            AffordanceDistance(**given_)(mini)
    with pytest.raises(ValueError, match=r"no affordance 'pur'; did you mean 'pour'\?"):
        AffordanceDistance()(mini).between("sit", "pur")
