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


def test_a_novel_species_stands_among_fourteen_known_ones_with_names_in_quotes() -> None:
    subset = draw_subset([*SPECIES, "New"], always="New")
    assert (len(subset), subset.count("New"), subset[-1]) == (15, 1, "New")
    assert '"Lizard, green", or "B"' in options_question(["A", "Lizard, green", "B"])
    assert "<image>" not in options_question(["<image>", "B"])
    with pytest.raises(ValueError, match="at least 14 known concepts, got 2; lower size"):
        draw_subset(["a", "b"], always="New")


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
    more = ConfusablePair(both[0].target, both[0].confusable, 0.5)
    assert [pair.error_rate for pair in merge_pairs(table.pairs(concepts), [more])] == [0.5, 1.0]  # both directions


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
    with pytest.raises(ValueError, match="belong to one model, got fake 1, fake 2"):
        save_pairs(tmp_path / "x.json", [], [table, ConfusionTable(["Adder", "Viper"], "fake 2")])
    with pytest.raises(ValueError, match="2 rows of 3 numbers"):
        ConfusionTable.from_record({"names": ["a", "b"], "model": "m", "counts": [[1, 2], [3, 4]]})
