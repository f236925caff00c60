import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_modules.synthia import (
    AffordanceDistance,
    Curriculum,
    Ontology,
    build_curriculum,
    split_stages,
    stage_of_epoch,
    stratified_sample,
    transform,
)
from lit_modules.synthia.ontology.curriculum import bin_of, usable_pairs


@pytest.fixture(scope="module")
def household() -> Ontology:
    return Ontology.from_file("household")


@pytest.fixture(scope="module")
def curriculum(household: Ontology) -> Curriculum:
    return build_curriculum(household, num_pairs=601, num_test_pairs=100)


def test_the_example_of_the_transform() -> None:
    np.testing.assert_allclose(transform([0.8, 0.2, 0.6, 0.4]), [1, 0, 0.4444, 0.1556], atol=1e-4)
    assert transform([0.5]).tolist() == [0]
    exact = [0.3, 0.6, 0.3, 0.9]  # noise of rounding changes no rank
    assert transform([0.3, 0.6 - 1e-16, 0.3 - 5e-17, 0.9]).tolist() == transform(exact).tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_transform_rises_from_0_to_1(distances: list[float]) -> None:
    spread = transform(distances)
    assert (spread.min(), spread.max()) == (0, 1)
    order = np.argsort(np.round(distances, 12), kind="stable")
    assert (np.diff(spread[order]) > 0).all()


def test_bins_hold_their_upper_edge_and_those_of_the_household_what_they_promise(household: Ontology) -> None:
    assert bin_of([-0.1, 0, 0.1, 0.1 + 1e-9, 0.7, 0.9, 0.90001]).tolist() == [-1, 0, 0, 1, 6, 7, 8]
    usable = usable_pairs(AffordanceDistance()(household).pairs())
    bins = Counter(bin_of(transform([pair.distance for pair in usable])).tolist())
    assert [bins[number] for number in range(9)] == [38, 38, 56, 79, 84, 106, 96, 226, 89]


def test_each_bin_gives_its_quota_and_the_rest_is_filled() -> None:
    spread = np.repeat([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.8, 0.95], [2, 9, 9, 9, 9, 9, 9, 9, 9])
    drawn = stratified_sample(spread, 43)  # five of each bin; 3 + 3 are missing
    found = Counter(bin_of(spread[drawn]).tolist())
    assert found[0] == 2
    assert all(found[number] >= 5 for number in range(1, 8))
    assert len(drawn) == len(set(drawn.tolist())) == 43
    assert drawn.tolist() == stratified_sample(spread, 43).tolist()
    assert drawn.tolist() != stratified_sample(spread, 43, seed=43).tolist()
    assert any(8 in bin_of(spread[stratified_sample(spread, 43, seed=seed)]) for seed in range(5))
    assert stratified_sample(spread, len(spread)).tolist() == list(range(len(spread)))


def test_stages_are_terciles_and_epochs_go_through_them() -> None:
    spread = np.random.default_rng(0).random(601)
    stages = split_stages(spread)
    assert np.bincount(stages).tolist() == [201, 200, 200]
    assert all(spread[stages == stage].max() < spread[stages == stage + 1].min() for stage in (0, 1))
    for epochs in range(3, 11):
        stages_of = [stage_of_epoch(epoch, epochs) for epoch in range(epochs)]
        assert stages_of == [min(2, 3 * epoch // epochs) for epoch in range(epochs)]
        assert set(stages_of) == {0, 1, 2}
        assert stage_of_epoch(epochs + 5, epochs) == 2


def test_a_curriculum(curriculum: Curriculum, household: Ontology) -> None:
    assert [len(stage) for stage in curriculum.stages()] == [201, 200, 200]
    assert len(curriculum.test) == 100
    every = [*curriculum.train, *curriculum.test]
    assert [pair.pair_id for pair in every] == list(range(701))
    assert len({frozenset(pair.pos_prompts) for pair in every}) == 701
    assert all(0 < pair.distance < 1 for pair in every)
    for pairs in (curriculum.train, curriculum.test):
        values = [pair.tdistance for pair in pairs]
        assert values == sorted(values)
    assert {pair.stage for pair in curriculum.test} == {None}
    table = AffordanceDistance()(household)
    for pair in every[::50]:
        first, second = pair.pos_prompts
        assert pair.distance == table.between(first, second)
        owners = {*household.concepts_with(first), *household.concepts_with(second)}
        assert sorted(f"/{name}" for name in pair.neg_prompts) == sorted(path[path.index("/") :] for path in owners)
    assert curriculum == build_curriculum(household, num_pairs=601, num_test_pairs=100)
    assert curriculum.train != build_curriculum(household, num_pairs=601, num_test_pairs=100, seed=1).train


def test_it_is_written_as_json_lines(curriculum: Curriculum, household: Ontology, tmp_path: Path) -> None:
    files = curriculum.save(tmp_path / "pairs")
    assert [path.name for path in files] == ["stage0.jsonl", "stage1.jsonl", "stage2.jsonl", "test.jsonl"]
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == sorted(path.name for path in files)
    rows = [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200
    pair = curriculum.stages()[1][0]
    fields = ("pair_id", "pos_prompts", "neg_prompts", "distance", "tdistance", "stage")
    assert rows[0] == json.loads(json.dumps({name: getattr(pair, name) for name in fields}))
    build_curriculum(household, num_pairs=8, num_stages=2).save(tmp_path / "pairs")  # leaves no old stage
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["stage0.jsonl", "stage1.jsonl", "test.jsonl"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda graph: build_curriculum(graph, num_pairs=800, num_test_pairs=13), "at most 812 together, the pairs of"),
        (lambda graph: build_curriculum(graph, num_pairs=2), r"num_pairs must be at least num_stages \(3\), got 2"),
        (lambda _: transform([]), "distances must be finite numbers, at least one"),
        (lambda _: stratified_sample([0.1, 0.2], 3), "size must lie between 1 and the 2 items there are, got 3"),
        (lambda _: stratified_sample([0.1], 1, edges=(0.0, 0.0)), "edges must be at least two rising numbers"),
        (lambda _: stage_of_epoch(0, 2), "epochs must be at least the number of stages, 3, got 2"),
    ],
)
def test_bad_arguments_are_refused(build: Callable[[Ontology], Any], message: str, household: Ontology) -> None:
    with pytest.raises(ValueError, match=message):
        build(household)
