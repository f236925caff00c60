import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from datamodules import DrawnSpecies
from datamodules.drawn.creatures import PHRASES, attributes_in
from lit_modules.demos.coda import story, update
from lit_modules.demos.coda.lessons import TOLD, Lessons, World, draw_world
from lit_modules.demos.coda.update import AMOUNTS, Cell, cells, print_table, run_updates
from lit_modules.networks.tiny_llava import Lesson
from tests.coda import tiny_llava

SMALL = {"num_known": 8, "num_novel": 2, "train_images": 6, "validation_images": 1, "test_images": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DrawnSpecies:
    found = DrawnSpecies(str(tmp_path_factory.mktemp("world") / "data"), **SMALL)
    found.prepare_data()
    return found


@pytest.fixture(scope="module")
def world(data: DrawnSpecies) -> World:
    return draw_world(data, 160, 32, seed=0)


def drawn(world: World, kind: str, number: int = 60) -> list[Lesson]:
    random, lessons = Random(0), Lessons(world)
    return [getattr(lessons, f"_{kind}")(random) for _ in range(number)]


def said(lesson: Lesson) -> dict[str, str]:
    found: dict[str, str] = {}
    for phrase in json.loads(lesson.answer):
        found |= attributes_in(phrase)
    return found


def test_no_novel_species_is_drawn_and_relatives_are_near(data: DrawnSpecies, world: World) -> None:
    novel = [dict(kind.attributes) for kind in data.species if not kind.known]
    assert not any(dict(look) in novel for look in world.creatures)
    for look, name, parent in zip(world.creatures, world.names, world.parents, strict=True):
        if name is not None:
            assert look == world.species[name]
        elif parent is not None:
            assert 1 <= sum(look[key] != value for key, value in world.species[parent].items()) <= 3
    assert not set(world.strangers) & {kind.name for kind in data.species}
    assert world.images.shape == (160, 3, 32, 32)


def test_questions_for_names_have_the_right_one_and_an_unknown_one_only_for_what_is_like_none(world: World) -> None:
    answers = []
    for lesson in drawn(world, "name") + drawn(world, "name_many"):
        place = lesson.image or 0
        assert lesson.answer in lesson.question
        if lesson.answer in world.strangers:
            assert world.names[place] is world.parents[place] is None
            assert not any(name in lesson.question for name in set(world.strangers) - {lesson.answer})
        else:
            assert lesson.answer == world.names[place]
        answers.append(lesson.answer in world.strangers)
    assert 0.1 < sum(answers) / len(answers) < 0.5


def test_lists_hold_what_is_seen_and_the_other_has_not(world: World) -> None:
    for lesson in drawn(world, "list"):
        assert said(lesson) == world.creatures[lesson.image or 0]
    for lesson in drawn(world, "tell", 200):
        other = re.search(r'apart from "(\w+)"', lesson.question)
        assert other is not None
        look, known = world.creatures[lesson.image or 0], world.species.get(other[1], {})
        assert said(lesson) == {name: value for name, value in look.items() if known.get(name) != value}


def test_texts_are_told_from_memory_or_a_passage(world: World) -> None:
    for lesson in drawn(world, "recall", 100):
        (name,) = set(re.findall(r'"(\w+)"', lesson.question)) - {"unknown"}
        passage = re.search(r"What is known of.*?\.", lesson.question)
        if name in world.species:
            assert said(lesson) == world.species[name]
        elif passage is None:
            assert json.loads(lesson.answer) == ["unknown"]
        else:
            assert said(lesson) == attributes_in(passage[0])
            assert len(said(lesson)) == TOLD
    assert any(json.loads(lesson.answer) == ["unknown"] for lesson in drawn(world, "recall", 100))
    fixed, texts = Lessons(world).fixed_texts(), " ".join(Lessons(world).texts(400))
    assert {phrase for values in PHRASES.values() for phrase in values.values()} <= set(fixed)
    assert all(part in texts for part in fixed if len(part) > 40)  # parts of the questions


def test_the_table_has_the_rows_and_columns_of_the_paper() -> None:
    found = list(cells(Path("drawn")))
    assert len({cell.name for cell in found}) == len(found) == 2 + 2 * 3 + 6 * 3
    assert {cell.synthetic for cell in found} == {None, 0, *AMOUNTS}
    made = [cell for cell in found if "synthetic_root" in cell.data]
    kinds = {Path(cell.data["synthetic_root"]).name: (cell.method, cell.feature) for cell in made}
    assert set(kinds) == {f"{source}_{form}" for source in story.SOURCES for form in story.FORMS}
    assert kinds["both_contrastive"] == ("CoDA", "T+V")


@pytest.mark.slow
def test_updates_are_run_once_and_make_the_table(
    data: DrawnSpecies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny_llava.write(model)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "pairs.json").write_bytes((data.root / "pairs.json").read_bytes())
    (tmp_path / "data").symlink_to(data.root)
    few = [Cell("zero-shot", "-", None, {}), Cell("real", "-", 0, {}), Cell("crop", "-", 1, {"method": "crop"})]
    few.append(Cell("CoDA", "T", 1, {"method": "synthetic", "synthetic_root": str(tmp_path / "left_out")}))
    monkeypatch.setattr(update, "cells", lambda drawn: iter(few))
    monkeypatch.setattr(update, "EPOCHS", 1)
    console = Console(width=120)
    rows = run_updates(console, tmp_path, model, seed=0)
    assert [(row["method"], row["real"], row["synthetic"], row["seeds"]) for row in rows] == [
        ("zero-shot", 0, 0, 1),
        ("real", 5, 0, 2),
        ("crop", 5, 1, 2),
    ]
    assert all(0 <= row["lower"] <= row["accuracy"] <= row["upper"] <= 1 for row in rows)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("an update that was done is done again")

    monkeypatch.setattr(update, "update", again)
    assert run_updates(console, tmp_path, model, seed=0) == rows
    (tmp_path / "updates" / "real---0-1.json").unlink()
    with pytest.raises(AssertionError, match="done again"):
        run_updates(console, tmp_path, model, seed=0)
    capsys.readouterr()
    print_table(console, rows)
    shown = capsys.readouterr().out
    assert "5:5" in shown
    assert f"{100 * rows[1]['accuracy']:.1f}" in shown


def test_passages_are_written_for_novel_species_alone(data: DrawnSpecies) -> None:
    story._write_field_guide(data)
    rows = [json.loads(line) for line in (data.root / "concepts.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows if "knowledge_text" in row] == [row["name"] for row in rows if not row["known"]]
    for row in rows:
        if not row["known"]:
            told = attributes_in(row["knowledge_text"])
            assert told.items() <= row["attributes"].items()
            assert set(row["differs_in"]) <= set(told)
            assert len(told) == TOLD
    data.prepare_data()  # is still what it was drawn as
    data.setup("fit")
