import inspect
from pathlib import Path

import numpy as np
import pytest

from datamodules import DrawnSpecies
from datamodules.drawn.creatures import DrawnCreatures, draw
from lit_modules.coda.backends.protocols import ImageGenerator


def made(generator: DrawnCreatures, prompt: str, seed: int = 0) -> np.ndarray:
    return np.asarray(generator.generate(prompt, None, seed, 64, 64, 1, 0.0))


def test_it_has_the_interface_of_generators() -> None:
    assert inspect.signature(DrawnCreatures.generate) == inspect.signature(ImageGenerator.generate).replace(
        return_annotation=inspect.signature(DrawnCreatures.generate).return_annotation
    )
    assert "stand-in" in DrawnCreatures().identity


def test_it_draws_what_the_prompt_names_and_nothing_of_a_name() -> None:
    generator = DrawnCreatures(miss=0)
    prompt = "A realistic picture of a Velanip with two horns, red skin."
    expected = np.asarray(draw({"horns": "two", "colour": "red"}, 3, 64))
    assert np.array_equal(made(generator, prompt, 3), expected)
    assert np.array_equal(made(generator, prompt.replace("Velanip", "Tarutol"), 3), expected)
    assert not np.array_equal(made(generator, prompt, 4), expected)


def test_it_misses_as_much_as_it_says() -> None:
    prompt = "a creature with two horns"
    kept = sum(
        np.array_equal(made(DrawnCreatures(0.5), prompt, seed), made(DrawnCreatures(0), prompt, seed))
        for seed in range(40)
    )
    assert 8 <= kept <= 32
    assert not np.array_equal(made(DrawnCreatures(1), prompt), made(DrawnCreatures(0), prompt))


def test_absurd_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"miss must lie in \[0, 1\], got 1.5"):
        DrawnCreatures(1.5)
    with pytest.raises(ValueError, match="width and height must be equal, got 64 and 32"):
        DrawnCreatures().generate("a horn", None, 0, 64, 32, 1, 0.0)


def test_it_knows_known_species_by_name_and_no_novel_one(tmp_path: Path) -> None:
    data = DrawnSpecies(str(tmp_path / "data"), num_known=3, num_novel=1, train_images=1)
    data.prepare_data()
    path = data.root / "concepts.jsonl"
    generator, (known, *_), novel = DrawnCreatures(0, str(path)), data.species, data.species[-1]
    look = {**known.attributes, "horns": "two"}
    prompt = f"A picture of {known.name} with two horns."
    assert np.array_equal(made(generator, prompt), np.asarray(draw(look, 0, 64)))
    prompt = f"A picture of {novel.name} with two horns."
    assert np.array_equal(made(generator, prompt), np.asarray(draw({"horns": "two"}, 0, 64)))
    assert known.name in generator.identity
    assert novel.name not in generator.identity
    with pytest.raises(FileNotFoundError, match="There is no file"):
        DrawnCreatures(concepts=str(tmp_path / "none.jsonl"))
    path.write_text('{"name": "a", "known": true, "attributes": {"horns": "nine"}}\n')
    with pytest.raises(ValueError, match=r"is no concepts.jsonl of drawn species: horns must be one of"):
        DrawnCreatures(concepts=str(path))
