import hashlib
import json
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.drawn.creatures import (
    ATTRIBUTES,
    PHRASES,
    attributes_in,
    draw,
    phrases,
    random_attributes,
    render_creatures,
)
from datamodules.drawn.species import DrawnSpecies, differences, invent_species, known_pairs, write_species

SMALL = {"num_known": 6, "num_novel": 2, "train_images": 4, "validation_images": 2, "test_images": 2, "drawn_size": 32}


def small(root: Path, **changed: object) -> DrawnSpecies:
    data = DrawnSpecies(str(root), **{**SMALL, "n_real": 3, **changed})  # type: ignore[arg-type]
    data.prepare_data()
    return data


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def test_there_are_enough_attributes_with_several_values() -> None:
    assert len(ATTRIBUTES) >= 8
    assert all(len(values) >= 3 for values in ATTRIBUTES.values())
    called = [phrase for values in PHRASES.values() for phrase in values.values()]
    assert len(set(called)) == len(called)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_value_of_an_attribute_is_visible_whatever_the_others(attribute: str) -> None:
    for number in range(3):
        others = random_attributes(Random(number))
        pictures = [
            np.asarray(draw({**others, attribute: value}, number), dtype=int) for value in ATTRIBUTES[attribute]
        ]
        for place, one in enumerate(pictures):
            for other in pictures[:place]:
                assert (np.abs(one - other).max(-1) > 40).sum() >= 12


def test_a_picture_is_a_function_of_attributes_and_seed() -> None:
    assert draw({"tail": "long"}, 5).tobytes() == draw({"tail": "long"}, 5).tobytes()
    assert draw({"tail": "long"}, 5).tobytes() != draw({"tail": "long"}, 6).tobytes()
    many = render_creatures([{"tail": "long"}, {}], [5, "a"], 32)
    assert many.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(many[0].transpose(1, 2, 0), np.asarray(draw({"tail": "long"}, 5, 32)))
    assert render_creatures([], [], 32).shape == (0, 3, 32, 32)


def test_edges_are_smooth() -> None:
    small_one = np.asarray(draw({}, 1, 32), dtype=float)
    large = np.asarray(draw({}, 1, 128).reduce(4), dtype=float)
    assert np.abs(small_one - large).mean() < 4
    assert len(np.unique(np.asarray(draw({}, 1, 64)).reshape(-1, 3), axis=0)) > 40


def test_a_creature_is_drawn_in_a_few_milliseconds() -> None:
    started = time.process_time()
    for seed in range(20):
        draw({}, seed)
    assert (time.process_time() - started) / 20 < 0.02  # about 1 ms; the bound leaves room for a busy machine


def test_texts_and_attributes_lead_to_each_other() -> None:
    for name, values in ATTRIBUTES.items():
        for value in values:
            assert attributes_in(f"A realistic picture of a frog that has {phrases({name: value})[0].upper()}.") == {
                name: value
            }
    look = random_attributes(Random(0))
    assert attributes_in(", ".join(phrases(look))) == look
    assert attributes_in("no hornstown, a beakless frog") == {}


def test_wrong_attributes_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"An attribute must be one of body, colour, .*, got 'hair'"):
        draw({"hair": "long"})
    with pytest.raises(ValueError, match="horns must be one of none, one, two, antlers, got 'three'"):
        draw({"horns": "three"})
    with pytest.raises(ValueError, match="size must be at least 16, got 8"):
        draw({}, size=8)
    with pytest.raises(ValueError, match="as many seeds as creatures, got 1 and 2"):
        render_creatures([{}, {}], [0])


def test_novel_species_differ_from_a_known_one_in_one_or_two_attributes() -> None:
    species = invent_species(24, 6, seed=3)
    by_name = {kind.name: kind for kind in species}
    assert len(by_name) == 30
    known = [kind for kind in species if kind.known]
    novel = [kind for kind in species if not kind.known]
    for place, kind in enumerate(known):
        assert all(len(differences(kind.attributes, other.attributes)) >= 4 for other in known[:place])
    for kind in novel:
        parent = by_name[str(kind.confusable)]
        assert tuple(sorted(differences(kind.attributes, parent.attributes))) == kind.differs_in
        assert len(kind.differs_in) in (1, 2)
        assert kind.supercategory == parent.supercategory
        rest = [other for other in species if other not in (kind, parent)]
        assert all(len(differences(kind.attributes, other.attributes)) >= 2 for other in rest)
    assert len({kind.confusable for kind in novel}) == 6
    assert invent_species(24, 6, seed=3) == species
    assert invent_species(24, 6, seed=4) != species
    parents = {kind.confusable for kind in novel}
    asked = {name for pair in known_pairs(species) for name in (pair.target, pair.confusable)}
    assert not asked & (parents | {kind.name for kind in novel})
    with pytest.raises(ValueError, match="num_novel must be from 0 to num_known, 3, got 4"):
        invent_species(3, 4)
    with pytest.raises(ValueError, match="num_known must be from 2 to 400, got 1"):
        invent_species(1, 0)


def test_files_are_a_function_of_the_seed_and_read_by_the_shared_reader(tmp_path: Path) -> None:
    data = small(tmp_path / "a")
    small(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(small(tmp_path / "c", world_seed=1).root)
    data.setup("fit")
    assert len(data.pairs) == 2
    assert data.num_classes == 4
    assert {concept.known for concept in data.concepts.values()} == {True, False}
    picture = next(iter(data.concepts.values())).pictures["train"][0]
    assert set(picture.fields["attributes"]) == set(ATTRIBUTES)
    assert picture.fields["caption"].startswith(f"A {picture.fields['class_name']} has a ")
    assert data.hparams["drawn_size"] == 32
    batch = next(iter(data.train_dataloader()))
    assert len(batch["image"]) == len(batch["prompt"]) == 5
    assert batch["image"][0].size == (32, 32)
    assert len(data.split("train")) == 2 * 2 * 3
    assert len(data.split("test")) == 2 * 2 * 2 * 2
    retention = small(tmp_path / "a", retention_pairs=str(tmp_path / "a" / "retention.json"))
    assert len(retention.split("test")) == (2 + len(known_pairs(data.species))) * 2 * 2 * 2


def test_a_folder_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    data = small(tmp_path / "a")
    before = (tmp_path / "a" / "pairs.json").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "a" / "pairs.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="was drawn with another seed and species; give another folder"):
        small(tmp_path / "a", world_seed=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds other files than DrawnSpecies writes"):
        small(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_writing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image, *given: object, **more: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_species(tmp_path / "a", invent_species(2, 1), {"train": 1})
    assert not list(tmp_path.iterdir())


def test_known_drawings_show_no_novel_species(tmp_path: Path) -> None:
    data = DrawnSpecies(str(tmp_path), num_known=4, num_novel=2)
    drawn = data.known_drawings(12, 32)
    assert drawn["image"].shape == (12, 3, 32, 32)
    assert drawn["image"].dtype == torch.uint8
    novel = [kind for kind in data.species if not kind.known]
    assert not set(drawn["name"]) & {kind.name for kind in novel}
    assert all(differences(look, kind.attributes) for look in drawn["attributes"] for kind in novel)
    values = torch.tensor([[ATTRIBUTES[n].index(look[n]) for n in ATTRIBUTES] for look in drawn["attributes"]])
    assert torch.equal(drawn["values"], values)
    for text, look in zip(drawn["prompt"], drawn["attributes"], strict=True):
        told = attributes_in(text)
        assert len(told) == 3
        assert told.items() <= look.items()
        assert {word.strip(".,") for word in text.split()} <= {*data.vocabulary, "creature"}
    assert torch.equal(data.known_drawings(12, 32)["image"], drawn["image"])
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        data.known_drawings(0)


def test_the_vocabulary_has_all_words_of_questions_and_concepts(tmp_path: Path) -> None:
    data = small(tmp_path / "a")
    data.setup("fit")
    words = set(data.vocabulary)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        for text in (*batch["prompt"], *batch["answer"]):
            assert {word.strip(".,:?") for word in text.split()} <= words
    rows = (tmp_path / "a" / "concepts.jsonl").read_text().splitlines()
    assert len(rows) == 8
    assert all(len(json.loads(row)["features"]) == len(ATTRIBUTES) for row in rows)


@pytest.mark.parametrize("name", ["num_novel", "train_images", "validation_images", "test_images"])
def test_too_small_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DrawnSpecies(**{name: 0})
