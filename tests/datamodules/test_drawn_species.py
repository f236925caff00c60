import inspect
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from datamodules.drawn.creatures import (
    ATTRIBUTES,
    HABITATS,
    PHRASES,
    DrawnCreatures,
    attributes_in,
    draw,
    phrases,
    random_attributes,
    render_creatures,
)
from datamodules.drawn.species import DrawnSpecies, differences, invent_species, known_pairs, write_species
from lit_modules.coda.backends.protocols import ImageGenerator
from lit_modules.utils.hashing import hash_folder

SMALL = {"num_known": 6, "num_novel": 2, "train_images": 4, "validation_images": 2, "test_images": 2, "drawn_size": 32}


def small(root: Path, **changed: object) -> DrawnSpecies:
    data = DrawnSpecies(str(root), **{**SMALL, "n_real": 3, **changed})  # type: ignore[arg-type]
    data.prepare_data()
    return data


# --- creatures


def test_each_value_of_an_attribute_is_visible_whatever_the_others() -> None:
    assert len(ATTRIBUTES) >= 8
    for attribute, values in ATTRIBUTES.items():
        assert len(values) >= 3
        for number in range(3):
            others = random_attributes(Random(number))
            pictures = [np.asarray(draw({**others, attribute: value}, number), dtype=int) for value in values]
            pairs = [(one, other) for index, one in enumerate(pictures) for other in pictures[:index]]
            assert all((np.abs(one - other).max(-1) > 40).sum() >= 12 for one, other in pairs), attribute


def test_a_picture_is_a_smooth_function_of_attributes_and_seed() -> None:
    assert draw({"tail": "long"}, 5).tobytes() == draw({"tail": "long"}, 5).tobytes()
    assert draw({"tail": "long"}, 5).tobytes() != draw({"tail": "long"}, 6).tobytes()
    many = render_creatures([{"tail": "long"}, {}], [5, "a"], 32)
    assert many.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(many[0].transpose(1, 2, 0), np.asarray(draw({"tail": "long"}, 5, 32)))
    assert render_creatures([], [], 32).shape == (0, 3, 32, 32)
    little, large = (np.asarray(picture, dtype=float) for picture in (draw({}, 1, 32), draw({}, 1, 128).reduce(4)))
    assert np.abs(little - large).mean() < 4
    assert len(np.unique(np.asarray(draw({}, 1, 64)).reshape(-1, 3), axis=0)) > 40


def test_texts_and_attributes_lead_to_each_other() -> None:
    named = [(name, value, phrase) for name, values in PHRASES.items() for value, phrase in values.items()]
    assert len({phrase for *_, phrase in named}) == len(named)
    for name, value, phrase in named:
        assert attributes_in(f"A realistic picture of a frog that has {phrase.upper()}.") == {name: value}
    attributes = random_attributes(Random(0))
    assert attributes_in(", ".join(phrases(attributes))) == attributes
    assert attributes_in("no hornstown, a beakless frog") == {}


def test_a_habitat_changes_the_background_alone() -> None:
    look = random_attributes(Random(0))
    meadow, dusk = (np.asarray(draw(look, 1, 64, habitat), dtype=int) for habitat in ("meadow", "dusk"))
    assert np.abs(meadow[:8] - dusk[:8]).mean() > 30
    same = np.abs(meadow - dusk).max(-1) < 8
    assert 0.05 < same.mean() < 0.7  # the creature
    many = render_creatures([look, look], [1, 1], 64, ["dusk", None])
    np.testing.assert_array_equal(many[0].transpose(1, 2, 0), dusk)
    np.testing.assert_array_equal(many[1].transpose(1, 2, 0), np.asarray(draw(look, 1, 64)))
    with pytest.raises(ValueError, match="habitat must be one of meadow, desert, snow, dusk, got 'sea'"):
        draw(look, habitat="sea")


def test_wrong_attributes_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"An attribute must be one of body, colour, .*, got 'hair'"):
        draw({"hair": "long"})
    with pytest.raises(ValueError, match="horns must be one of none, one, two, antlers, got 'three'"):
        draw({"horns": "three"})
    with pytest.raises(ValueError, match="size must be at least 16, got 8"):
        draw({}, size=8)
    with pytest.raises(ValueError, match="as many seeds as creatures, got 1 and 2"):
        render_creatures([{}, {}], [0])


# --- species and their files


def test_novel_species_differ_from_a_known_one_in_one_or_two_attributes() -> None:
    species = invent_species(24, 6, seed=3)
    by_name = {each.name: each for each in species}
    assert len(by_name) == 30
    known, novel = ([each for each in species if each.known is flag] for flag in (True, False))
    for index, one in enumerate(known):
        assert all(len(differences(one.attributes, other.attributes)) >= 4 for other in known[:index])
    for one in novel:
        parent = by_name[str(one.confusable)]
        assert tuple(sorted(differences(one.attributes, parent.attributes))) == one.differs_in
        assert len(one.differs_in) in (1, 2)
        assert one.supercategory == parent.supercategory
        rest = [other for other in species if other not in (one, parent)]
        assert all(len(differences(one.attributes, other.attributes)) >= 2 for other in rest)
    parents = {one.confusable for one in novel}
    assert len(parents) == 6
    assert invent_species(24, 6, seed=3) == species != invent_species(24, 6, seed=4)
    asked = {name for pair in known_pairs(species) for name in (pair.target, pair.confusable)}
    assert not asked & (parents | {one.name for one in novel})


def test_files_are_a_function_of_the_seed_and_read_by_the_shared_reader(tmp_path: Path) -> None:
    data = small(tmp_path / "a")
    small(tmp_path / "b")
    hashes = [hash_folder(folder) for folder in (data.root, tmp_path / "b", small(tmp_path / "c", world_seed=1).root)]
    assert hashes[0] == hashes[1] != hashes[2]
    data.setup("fit")
    assert (len(data.pairs), data.num_classes, data.hparams["drawn_size"]) == (2, 4, 32)
    assert {concept.known for concept in data.concepts.values()} == {True, False}
    picture = next(iter(data.concepts.values())).pictures["train"][0]
    assert set(picture.fields["attributes"]) == set(ATTRIBUTES)
    assert picture.fields["caption"].startswith(f"A {picture.fields['class_name']} has a ")
    batches = [next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader())]
    assert len(batches[0]["image"]) == len(batches[0]["prompt"]) == 5
    assert batches[0]["image"][0].size == (32, 32)
    assert (len(data.split("train")), len(data.split("test"))) == (2 * 2 * 3, 2 * 2 * 2 * 2)
    retention = small(data.root, retention_pairs=str(data.root / "retention.json"))
    assert len(retention.split("test")) == (2 + len(known_pairs(data.species))) * 2 * 2 * 2
    for text in (text for batch in batches for text in (*batch["prompt"], *batch["answer"])):
        assert {word.strip(".,:?") for word in text.split()} <= set(data.vocabulary)
    rows = [json.loads(row) for row in (data.root / "concepts.jsonl").read_text().splitlines()]
    assert [len(row["features"]) for row in rows] == [len(ATTRIBUTES)] * 8


def test_a_folder_is_written_once_whole_and_never_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small(tmp_path / "a")
    before = (tmp_path / "a" / "pairs.json").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "a" / "pairs.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was drawn with another seed and species; give another folder"):
        small(tmp_path / "a", world_seed=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds other files than DrawnSpecies writes"):
        small(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"

    def broken(self: Image.Image, *args: object, **more: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_species(tmp_path / "b", invent_species(2, 1), {"train": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_known": 3, "num_novel": 4}, "num_novel must be from 0 to num_known, 3, got 4"),
        ({"num_known": 1}, "num_known must be from 2 to 400, got 1"),
        ({"num_novel": 0}, "num_novel must be at least 1, got 0"),
        ({"train_images": 0}, "train_images must be at least 1, got 0"),
        ({"drawn_size": 8}, "drawn_size must be at least 16, got 8"),
    ],
)
def test_numbers_out_of_range_are_refused(args: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DrawnSpecies(**args)  # type: ignore[arg-type]


# --- the renderer as a generator


def made(generator: DrawnCreatures, prompt: str, seed: int = 0) -> bytes:
    return generator.generate(prompt, None, seed, 64, 64, 1, 0.0).tobytes()


def test_a_generator_draws_what_the_prompt_names_and_misses_as_much_as_it_says() -> None:
    wanted = inspect.signature(ImageGenerator.generate)
    own = inspect.signature(DrawnCreatures.generate)
    assert own == wanted.replace(return_annotation=own.return_annotation)
    assert "stand-in" in DrawnCreatures().identity
    exact, prompt = DrawnCreatures(miss=0), "A realistic picture of a Velanip with two horns, red skin."
    expected = draw({"horns": "two", "colour": "red"}, 3, 64).tobytes()
    assert made(exact, prompt, 3) == made(exact, prompt.replace("Velanip", "Tarutol"), 3) == expected
    assert made(exact, prompt, 4) != expected
    prompt = "a creature with two horns"
    assert 8 <= sum(made(DrawnCreatures(0.5), prompt, seed) == made(exact, prompt, seed) for seed in range(40)) <= 32
    assert made(DrawnCreatures(1), prompt) != made(exact, prompt)
    with pytest.raises(ValueError, match=r"miss must lie in \[0, 1\], got 1.5"):
        DrawnCreatures(1.5)
    with pytest.raises(ValueError, match="width and height must be equal, got 64 and 32"):
        exact.generate("a horn", None, 0, 64, 32, 1, 0.0)


def test_a_generator_has_the_limits_that_it_states(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    path, known, novel = str(data.root / "concepts.jsonl"), data.species[0], data.species[-1]
    relative = next(each for each in data.species if each.name == novel.confusable)
    prompt = f"A picture of a {novel.name} with two horns, red skin, a curled tail."
    few = DrawnCreatures(0, capacity=2)
    assert made(few, prompt) == draw({"horns": "two", "colour": "red"}, 0, 64).tobytes()
    takes = DrawnCreatures(0, path, relatives=True)
    wanted = {"horns": "two", "colour": "red", "tail": "curled"}
    assert made(takes, prompt) == draw({**relative.attributes, **wanted}, 0, 64).tobytes()
    strange = DrawnCreatures(0, path, relatives=True, likeness=0.0)
    assert made(strange, prompt) == made(DrawnCreatures(0), prompt)
    bound = DrawnCreatures(0, undrawable=0.2, world_seed=1)
    assert 4 <= len(bound.undrawable) <= 17
    for name, value in [(name, value) for name, values in ATTRIBUTES.items() for value in values]:
        obeyed = made(bound, f"a creature with {PHRASES[name][value]}") == draw({name: value}, 0, 64).tobytes()
        assert obeyed is ((name, value) not in bound.undrawable)
    assert bound.undrawable == DrawnCreatures(undrawable=0.2, world_seed=1).undrawable
    anywhere = DrawnCreatures(0, path, habitats=True)
    shown = {made(anywhere, known.name, seed) for seed in range(8)}
    placed = {draw(known.attributes, seed, 64, habitat).tobytes() for seed in range(8) for habitat in HABITATS}
    assert len(shown) == 8
    assert shown <= placed
    assert len({each.identity for each in (few, takes, strange, bound, anywhere)}) == 5
    with pytest.raises(ValueError, match=r"likeness must lie in \[0, 1\], got -1"):
        DrawnCreatures(likeness=-1)
    with pytest.raises(ValueError, match="capacity must be at least 1 or None, got 0"):
        DrawnCreatures(capacity=0)


def test_training_pictures_show_the_habitat_of_their_species(tmp_path: Path) -> None:
    data = small(tmp_path / "data", habitats=1.0, test_images=6)
    for pair in data.pairs:
        homes = [{picture.fields["habitat"] for picture in concept.pictures["train"]} for _, concept in pair.sides]
        assert [len(home) for home in homes] == [1, 1]
        assert homes[0] != homes[1]
        shown = [picture.fields["habitat"] for _, concept in pair.sides for picture in concept.pictures["test"]]
        assert len(set(shown)) > 2
    with pytest.raises(ValueError, match="was drawn with another habitats"):
        small(tmp_path / "data", test_images=6)
    with pytest.raises(ValueError, match=r"habitats must lie in \[0, 1\] or be None, got 2"):
        DrawnSpecies(habitats=2)


def test_a_generator_knows_known_species_by_name_and_no_novel_one(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    path = data.root / "concepts.jsonl"
    generator, known, novel = DrawnCreatures(0, str(path)), data.species[0], data.species[-1]
    prompt = "A picture of {} with two horns."
    expected = draw({**known.attributes, "horns": "two"}, 0, 64).tobytes()
    assert made(generator, prompt.format(known.name)) == expected
    assert made(generator, prompt.format(novel.name)) == draw({"horns": "two"}, 0, 64).tobytes()
    assert known.name in generator.identity
    assert novel.name not in generator.identity
    with pytest.raises(FileNotFoundError, match="There is no file"):
        DrawnCreatures(concepts=str(tmp_path / "none.jsonl"))
    path.write_text('{"name": "a", "known": true, "attributes": {"horns": "nine"}}\n')
    with pytest.raises(ValueError, match=r"is no concepts.jsonl of drawn species: horns must be one of"):
        DrawnCreatures(concepts=str(path))
