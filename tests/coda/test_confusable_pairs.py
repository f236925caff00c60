import json
import math
from pathlib import Path

import pytest
from PIL import Image

from lit_modules.coda.augmentation.confusable_pairs import (
    ConfusionTable,
    confusion_questions,
    draw_subset,
    load_tables,
    merge_pairs,
    options_question,
    save_pairs,
)
from lit_modules.coda.core.concepts import Concept, ConfusablePair

SPECIES = [f"Species {letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]
CONCEPTS = {name: Concept(name) for name in SPECIES}
IMAGES = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(10)]


def test_questions_have_fifteen_options_in_an_order_of_their_own() -> None:
    subset = draw_subset(SPECIES, seed=3)
    assert len(subset) == 15
    assert subset == draw_subset(SPECIES[::-1], seed=3) != draw_subset(SPECIES, seed=4)
    questions = confusion_questions(subset[0], IMAGES, subset, seed=1)
    assert len({question.options for question in questions}) == len(IMAGES)
    assert all(sorted(question.options) == sorted(subset) for question in questions)
    assert all(question.request.temperature == 0 for question in questions)  # defect 6: nothing is sampled
    assert questions == confusion_questions(subset[0], IMAGES, subset[::-1], seed=1)


def test_a_novel_species_stands_among_fourteen_known_ones() -> None:
    subset = draw_subset([*SPECIES, "New"], always="New")
    assert (len(subset), subset.count("New"), subset[-1]) == (15, 1, "New")
    with pytest.raises(ValueError, match="at least 14 known concepts, got 2; lower size"):
        draw_subset(["a", "b"], always="New")


def test_names_with_commas_are_quoted_and_markup_is_neutral() -> None:
    assert '"Lizard, green", or "B"' in options_question(["A", "Lizard, green", "B"])
    assert "<image>" not in options_question(["<image>", "B"])
    assert "show A or B?" in options_question(["A", "B"])
    with pytest.raises(ValueError, match="at least two options"):
        options_question(["A"])


def table_of(answers: dict[str, list[str]]) -> ConfusionTable:
    table = ConfusionTable(list(answers), "fake 1")
    for target, said in answers.items():
        for answer in said:
            table.add(target, answer)
    return table


def test_a_pair_is_kept_over_the_threshold_alone() -> None:
    table = table_of({"Adder": ["Viper"] * 2 + ["Python"] * 3 + ["Adder"] * 5, "Viper": [], "Python": ["Adder"] * 5})
    concepts = {name: Concept(name) for name in table.names}
    found = [(pair.target.name, pair.confusable.name, pair.error_rate) for pair in table.pairs(concepts)]
    assert found == [("Adder", "Python", 0.3), ("Python", "Adder", 1.0)]  # 0.2 itself is not over 0.2
    both = table.pairs(concepts, threshold=0.1)
    assert [pair.confusable.name for pair in both] == ["Python", "Viper", "Adder"]
    assert [pair.confusable.name for pair in table.pairs(concepts, 0.1, top_n=1)] == ["Python", "Adder"]
    assert math.isnan(table.rate("Viper", "Adder"))
    with pytest.raises(ValueError, match="got none for Viper, Python"):
        table.pairs({"Adder": Concept("Adder")})
    with pytest.raises(ValueError, match=r"top_n at least 1 or None, got 0\.2 and 0"):
        table.pairs(concepts, top_n=0)


def test_defect_7_rows_of_the_table_sum_to_one_with_the_answers_that_name_no_option() -> None:
    table = table_of({"Adder": ["Puff Adder", "?", "Adder or Viper", "adder"], "Puff Adder": [], "Viper": []})
    shares = [table.rate("Adder", name) for name in table.names]
    assert shares == [0.25, 0.25, 0.0]
    assert sum(shares) + table.invalid_rate("Adder") == 1.0
    assert table.asked("Adder") == 4


def test_pairs_are_saved_with_the_model_and_the_whole_table(tmp_path: Path) -> None:
    table = table_of({"Adder": ["Viper"] * 3, "Viper": ["Viper"]})
    concepts = {name: Concept(name) for name in table.names}
    save_pairs(tmp_path / "new" / "pairs.json", table.pairs(concepts), [table], directories={"Adder": "05_adder"})
    record = json.loads((tmp_path / "new" / "pairs.json").read_text())
    assert record["model"] == "fake 1"
    assert record["pairs"] == [{"target": "Adder", "confusable": "Viper", "error_rate": 1.0, "target_dir": "05_adder"}]
    assert load_tables(tmp_path / "new" / "pairs.json")[0].record() == table.record()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pairs.json"]
    other = ConfusionTable(["Adder", "Viper"], "fake 2")
    with pytest.raises(ValueError, match="belong to one model, got fake 1, fake 2"):
        save_pairs(tmp_path / "x.json", [], [table, other])
    with pytest.raises(ValueError, match="as confusions belong to it"):
        ConfusionTable(["a", "b"], "")
    with pytest.raises(FileNotFoundError, match="`save_pairs` writes it"):
        load_tables(tmp_path / "absent.json")


def test_subsets_are_joined_without_duplicates_and_both_directions_stay() -> None:
    first, second = Concept("A"), Concept("B")
    lists = [
        [ConfusablePair(first, second, 0.3)],
        [ConfusablePair(first, second, 0.5), ConfusablePair(second, first, 0.4)],
    ]
    joined = merge_pairs(*lists)
    assert [(pair.target.name, pair.error_rate) for pair in joined] == [("A", 0.5), ("B", 0.4)]


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two different ones"):
        ConfusionTable(["a", "a"], "m")
    with pytest.raises(ValueError, match="2 rows of 3 numbers"):
        ConfusionTable.from_record({"names": ["a", "b"], "model": "m", "counts": [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match="'Other' is not in the table"):
        ConfusionTable(["a", "b"], "m").add("Other", "x")
    with pytest.raises(ValueError, match="must differ and hold 'x'"):
        confusion_questions("x", IMAGES, ["a", "b"])


def test_published_rates_lie_over_the_threshold(data_folder: Path) -> None:
    file = data_folder / "novelspecies" / "inat_confusable_pairs_example.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    rows = json.loads(file.read_text())["pairs"]
    pairs = [
        ConfusablePair(Concept(row["ground_truth"]), Concept(row["confusing_class"]), row["rate_of_error"])
        for row in rows
    ]
    assert len(pairs) == 19
    assert all(pair.error_rate is not None and pair.error_rate > 0.2 for pair in pairs)
    assert len(merge_pairs(pairs)) == 19
