import json
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodules.drawn.objects import DrawnObjects, caption, labelled_drawings, read_pairs
from datamodules.drawn.ontology import (
    AFFORDANCES,
    CONCEPTS,
    PARTS,
    SEEN_BY,
    composed_parts,
    known_affordances,
    ontology,
)
from datamodules.drawn.renderer import (
    _BEHIND,
    PART_SHAPES,
    PLACES,
    Design,
    _paint,
    _placed,
    _strokes,
    composed_design,
    existing_design,
    random_design,
    render,
)

HOUSEHOLD = Path(__file__).parents[2] / "lit_modules" / "utils" / "data" / "household.yaml"


def pair(number: int, *affordances: str, tdistance: float = 0.5, negatives: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"pair_id": number, "pos_prompts": affordances, "neg_prompts": negatives, "tdistance": tdistance}


def write(folder: Path, **files: list[dict[str, Any]]) -> str:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


@pytest.fixture
def curriculum(tmp_path: Path) -> str:
    sit = pair(0, "sit", "rest", tdistance=0.1, negatives=("chair", "sofa"))
    return write(
        tmp_path,
        stage0=[sit, pair(1, "cool", "blow", tdistance=0.2)],
        stage1=[pair(2, "pour", "carry", tdistance=0.5), pair(3, "fly", "film", tdistance=0.6)],
        stage2=[pair(4, "float", "sit", tdistance=0.8), pair(5, "drill", "store", tdistance=1.0)],
        test=[pair(6, "pour", "fly", tdistance=0.15), pair(7, "clean", "sit", "shield", tdistance=0.9)],
    )


def test_it_is_a_part_of_the_household_ontology_whose_affordances_are_seen() -> None:
    household = yaml.safe_load(HOUSEHOLD.read_text(encoding="utf-8"))["superordinates"]
    assert len(CONCEPTS) >= 12
    assert len(PARTS) >= 16
    for kind, concepts in ontology()["superordinates"].items():
        for name, concept in concepts.items():
            whole = household[kind][name]
            assert set(concept["affordances"]["main"]) <= {*whole["affordances"]["main"], *whole["affordances"]["sub"]}
            for part, offered in concept["parts"].items():
                assert set(offered) <= set(whole["parts"][part])
            for affordance in concept["affordances"]["main"]:
                assert set(SEEN_BY[affordance]) & set(concept["parts"]), (name, affordance)
    assert {affordance for concept in CONCEPTS.values() for affordance in concept.affordances} == set(AFFORDANCES)
    assert set(PARTS) == set(PART_SHAPES) == set(PLACES)


def test_each_part_is_visible_in_each_place() -> None:
    body = _strokes(Design("box", (), ()), Random(0))
    for part, place in [(each, place) for each in PARTS for place in PLACES[each]]:
        rows = _placed(_strokes(Design("box", (part,), (place,)), Random(0)), Random(1), 0.0, 1.0)
        # the strokes of the body are the last ones, or the first ones
        hidden = rows[-len(body) :] if part in _BEHIND else rows[: len(body)]
        shown, without = _paint(np.full((2, 3), 0.95, dtype=np.float32), [rows, hidden], 32).astype(int)
        assert (np.abs(shown - without).max(0) > 40).sum() > 25, (part, place)


def test_pictures_are_functions_of_scene_and_key() -> None:
    scenes = [[existing_design(name)] for name in CONCEPTS]
    keys = [f"k{number}" for number in range(len(scenes))]
    np.testing.assert_array_equal(render(scenes, keys)[3:4], render(scenes[3:4], keys[3:4]))
    assert (render(scenes[:1], ["a"]) != render(scenes[:1], ["b"])).any()
    assert render([[]], ["empty"]).std((2, 3)).max() == 0
    assert render(scenes[:1], ["a"], size=64).shape == (1, 3, 64, 64)


def test_edges_are_smooth_and_two_objects_stand_side_by_side() -> None:
    small, large = (render([[existing_design("kettle")]], ["a"], size=size).astype(float) for size in (32, 128))
    assert np.abs(small - large.reshape(1, 3, 32, 4, 32, 4).mean((3, 5))).mean() < 4
    picture = render([[existing_design("watch"), existing_design("watch")]], ["a"])[0].astype(int)
    columns = (np.abs(picture - picture[:, 0, 0][:, None, None]).max(0) > 20).any(0)
    assert columns[:14].any()
    assert columns[18:].any()
    assert not columns[14:18].all()


def test_a_composition_shows_all_affordances_and_is_no_existing_concept() -> None:
    random = Random(0)
    for _ in range(300):
        wanted = random.sample(AFFORDANCES, random.randint(1, 3))
        parts = set(composed_parts(wanted, random))
        assert all(parts & set(SEEN_BY[affordance]) for affordance in wanted)
        assert not any(parts <= set(concept.parts) for concept in CONCEPTS.values())
        design = composed_design(wanted, random)
        assert all(place in PLACES[part] for part, place in zip(design.parts, design.places, strict=True))


def test_a_caption_says_what_is_true() -> None:
    template = "it has functions of {affordances}"
    for number in range(100):
        words = set(caption("vacuum_cleaner", template, Random(number)).replace(",", "").split())
        assert words & {"clean", "suck", "nozzle", "wheel"}
        assert words <= set(DrawnObjects(template=template).vocabulary)


def test_concept_batches() -> None:
    data, again = (DrawnObjects(num_images=40, validation_size=18, batch_size=8, seed=1) for _ in range(2))
    data.setup("fit")
    batch, other = (next(iter(each.train_dataloader())) for each in (data, again))
    assert (batch["image"].shape, batch["image"].dtype) == ((8, 3, 32, 32), torch.float32)
    assert -1 <= float(batch["image"].min()) < float(batch["image"].max()) <= 1
    assert torch.equal(batch["parts"], data.concept_parts[batch["concept"]])
    assert batch["prompt"] == other["prompt"]
    assert torch.equal(batch["image"], other["image"])
    assert sum(len(part["prompt"]) for part in data.val_dataloader()) == 18


def test_nameless_objects_are_captioned_by_their_parts_and_show_no_tested_pair(curriculum: str) -> None:
    pair = read_pairs(curriculum, "test")[0]["pos_prompts"]
    data = DrawnObjects(curriculum, num_images=4, nameless=300, batch_size=8)
    drawn = data.split("train")
    batch = drawn[[(place, 0) for place in range(304)]]
    assert batch["concept"].tolist() == [0, 1, 2, 3] + [-1] * 300
    for prompt, mask in list(zip(batch["prompt"], batch["parts"], strict=True))[4:]:
        parts = prompt.removeprefix("an object with ").split(", ")
        assert sorted(parts) == [part for part, there in zip(PARTS, mask, strict=True) if there]
        for one, two in permutations(parts, 2):
            assert not (one in SEEN_BY[pair[0]] and two in SEEN_BY[pair[1]])
    assert {int(mask.sum()) for mask in batch["parts"][4:]} == {1, 2, 3}
    free = DrawnObjects(num_images=4, nameless=300).split("train")[[(place, 0) for place in range(304)]]
    assert any(
        one in SEEN_BY[pair[0]] and two in SEEN_BY[pair[1]]
        for prompt in free["prompt"][4:]
        for one, two in permutations(prompt.removeprefix("an object with ").split(", "), 2)
    )


def test_pair_batches_follow_the_curriculum(curriculum: str) -> None:
    args: dict[str, Any] = {"task": "pairs", "epochs": 3, "batch_size": 2, "images_per_concept": 2}
    data = DrawnObjects(curriculum, negatives=2, **args)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batch = next(iter(loader))
        assert batch["stage"].tolist() == [epoch, epoch]
        assert sorted(batch["pair_id"].tolist()) == [2 * epoch, 2 * epoch + 1]
    assert batch["pos"].shape == (2, 3, 32, 32)
    assert batch["neg"].shape == (2, 2, 3, 32, 32)
    assert batch["neg_mask"].all()
    row = batch["pair_id"].tolist().index(4)
    assert batch["prompt"][row] == "a new design that has functions of float, sit"
    assert [AFFORDANCES[int(name)] for name in batch["requested"][row].nonzero()] == ["float", "sit"]
    names = [data.concepts[int(number)] for number in batch["owners"][row].nonzero()]
    assert names == ["chair", "sofa", "wheelchair", "boat"]
    few = DrawnObjects(curriculum, negatives=3, **args | {"images_per_concept": 1})
    assert few.split("train")[[0]]["neg_mask"].tolist() == [[True, True, False]]  # chair and sofa, a picture each
    with pytest.raises(ValueError, match="give the datamodule epochs, or the trainer max_epochs"):
        DrawnObjects(curriculum, "pairs").train_dataloader()


def test_test_pairs_have_the_stage_of_their_distance(curriculum: str) -> None:
    data = DrawnObjects(curriculum, "pairs", epochs=3, samples_per_pair=3)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["pair_id"].tolist() == [6, 6, 6, 7, 7, 7]
    assert batch["stage"].tolist() == [0, 0, 0, 2, 2, 2]
    assert batch["affordances"][-1] == ("clean", "sit", "shield")
    (validation,) = data.val_dataloader()
    assert validation["pair_id"].tolist() == [6, 7]


def test_labelled_drawings() -> None:
    drawings = labelled_drawings(40)
    assert drawings["image"].dtype == torch.uint8
    assert drawings["parts"].shape == (40, len(PARTS))
    existing = drawings["concept"] >= 0
    assert int(existing.sum()) == 8
    assert torch.equal(drawings["parts"][existing], DrawnObjects().concept_parts[drawings["concept"][existing]])
    assert not drawings["single"][8::10].any()
    assert not drawings["parts"][9::10].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DrawnObjects(task="pair"), "task must be 'concepts' or 'pairs', got 'pair'"),  # type: ignore[arg-type]
        (lambda: DrawnObjects(task="pairs"), "needs a curriculum"),
        (lambda: DrawnObjects(template="a thing"), "template must have the place"),
        (lambda: DrawnObjects(image_size=4), "image_size must be at least 8, got 4"),
        (lambda: DrawnObjects().split("validation"), "must be 'train' or 'test', got 'validation'"),
        (lambda: known_affordances(["pouring"]), "'pouring' cannot be drawn; did you mean 'pour'"),
        (lambda: known_affordances([]), "There must be at least one affordance"),
        (lambda: existing_design("spoon"), "concept must be one of chair, .*, got 'spoon'"),
        (lambda: random_design(["wing"], Random(0)), "part must be one of .*, got 'wing'"),
        (lambda: random_design(["leg", "leg"], Random(0)), "Each part may come once"),
        (lambda: render([[]], []), "as many keys as scenes, got 0 keys and 1 scenes"),
        (lambda: render([[]], ["a"], size=4), "size must be at least 8, got 4"),
        (lambda: labelled_drawings(0), "num_images must be at least 1, got 0"),
    ],
)
def test_refuses_what_does_not_fit(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_says_which_file_is_missing_and_which_line_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold stage0.jsonl, stage1.jsonl and so on"):
        read_pairs(str(tmp_path), "train")
    write(tmp_path, stage0=[pair(0, "sit", "rest")])
    with pytest.raises(FileNotFoundError, match=r"must hold test.jsonl"):
        read_pairs(str(tmp_path), "test")
    for row, message in (
        (pair(0, "sit", "swim"), r"stage0.jsonl:1: The affordance 'swim' cannot be drawn"),
        (pair(0, "sit", negatives=("spoon",)), "The concept 'spoon' cannot be drawn"),
        ({"pair_id": 0}, "'pos_prompts' is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pairs(write(tmp_path, stage0=[row]), "train")


def test_writes_its_ontology(tmp_path: Path) -> None:
    DrawnObjects.write_ontology(str(tmp_path / "new" / "drawn.json"))
    assert json.loads((tmp_path / "new" / "drawn.json").read_text(encoding="utf-8")) == ontology()
