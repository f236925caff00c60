import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.few_shot.pairs import ConfusablePair, official_folders, pair_id, read_pairs, write_pairs


def test_the_official_pair_file_is_read_as_it_is(data_folder: Path) -> None:
    pairs = read_pairs(data_folder / "novelspecies" / "inat_confusable_pairs_example.json")
    assert len(pairs) == 19
    assert len({pair.target_dir for pair in pairs} | {pair.confusable_dir for pair in pairs}) == 23
    first = pairs[0]
    assert (first.target, first.confusable, first.error_rate) == ("Puff Adder", "Timber Rattlesnake", 0.26)
    assert first.target_dir == "05110_Animalia_Chordata_Reptilia_Squamata_Viperidae_Bitis_arietans"
    both = {(pair.target, pair.confusable) for pair in pairs}
    assert {("Common Chameleon", "Cape Dwarf Chameleon"), ("Cape Dwarf Chameleon", "Common Chameleon")} <= both
    assert len({pair.pair_id for pair in pairs}) == 19


def test_pairs_are_written_with_the_model_and_read_again(tmp_path: Path) -> None:
    pairs = [
        ConfusablePair("Adder", "Grass Snake", 0.5, "a", "b", fields={"note": 1}),
        ConfusablePair("Grass Snake", "Adder"),
    ]
    write_pairs(tmp_path / "new" / "pairs.json", pairs, model="llava")
    content = json.loads((tmp_path / "new" / "pairs.json").read_text())
    assert content["model"] == "llava"
    assert content["pairs"][0]["pair_id"] == pair_id("Adder", "Grass Snake")
    assert read_pairs(tmp_path / "new" / "pairs.json") == pairs
    assert read_pairs(tmp_path / "new" / "pairs.json")[0].fields == {"note": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pairs.json"]


@pytest.mark.parametrize("name", ["../../etc", "a/b\\c", "<script>alert(1)</script>", "蛇", "a" * 150, "--", "."])
def test_the_id_of_a_pair_is_safe_as_a_folder_whatever_the_names(name: str) -> None:
    made = pair_id(name, "Adder")
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(made) <= 100
    assert made != pair_id("Adder", name)
    assert read_pairs([{"target": name, "confusable": "Adder"}])[0].pair_id == made


def test_all_problems_are_in_one_error() -> None:
    entries: list[Any] = [
        {"target": "Adder", "confusable": "adder"},
        {"target": "", "confusable": "Adder"},
        {"target": "A\nB", "confusable": "C"},
        {"target": "A", "confusable": "C", "error_rate": 1.5},
        {"target": "A", "confusable": "C", "rate_of_error": True},
        {"target": "A", "ground_truth": "B", "confusable": "C"},
        {"target": "A", "confusable": "C", "target_dir": "../secret"},
        {"target": "A", "confusable": "C", "pair_id": "a/b"},
        "Adder",
    ]
    with pytest.raises(ValueError, match="has 9 problems") as error:
        read_pairs(entries)
    for text in (
        "pair 0: target and confusable must differ, got 'Adder' twice",
        "pair 1: target must be a name, got ''",
        "pair 2: target must have no line breaks",
        "pair 3: error_rate must be from 0 to 1, got 1.5",
        "pair 4: error_rate must be from 0 to 1, got True",
        "pair 5: ground_truth and target mean the same",
        "pair 6: target_dir must be a folder below the root, got '../secret'",
        "pair 7: pair_id must be letters",
        "pair 8: must be an object, got 'Adder'",
    ):
        assert text in str(error.value)


def test_a_pair_that_comes_twice_is_taken_once_if_alike() -> None:
    twice = {"target": "A", "confusable": "B", "error_rate": 0.3}
    assert len(read_pairs([twice, dict(twice)])) == 1
    with pytest.raises(ValueError, match="'A' and 'B' come twice, and not alike"):
        read_pairs([twice, {**twice, "error_rate": 0.4}])
    with pytest.raises(ValueError, match="pair_id 'x' is that of pair 0"):
        read_pairs([{**twice, "pair_id": "x"}, {"target": "B", "confusable": "A", "pair_id": "x"}])


def test_files_that_are_no_pair_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    with pytest.raises(FileNotFoundError, match="There is no pair file"):
        read_pairs(path)
    for text, message in (
        ("{", "must be JSON"),
        ('{"a": 1}', "must hold a list of pairs"),
        ("3", "must hold a list"),
        ("[]", "at least one pair"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_pairs(path)
        assert official_folders(path) == {}
