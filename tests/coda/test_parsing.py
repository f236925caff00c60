import hashlib

import pytest

from lit_modules.coda.augmentation.parsing import (
    MalformedAnswer,
    join_features,
    parse_bits,
    parse_features,
    parse_yes_no,
)
from lit_modules.coda.core.answers import read_answer
from lit_modules.coda.core.concepts import Concept, ConfusablePair, prompt_text, safe_name, unique_pairs
from lit_modules.utils.hashing import stable_hash, stable_seed


@pytest.mark.parametrize(
    "answer",
    [
        '["red tail", "short legs"]',
        'Here is the list you asked for:\n```json\n["red tail", "short legs"]\n```\nAnything else?',
        "['red tail', 'short legs']",
        '{"attributes": ["red tail", "short legs"]}',
        '[["red tail"], ["short legs"]]',
        '[{"attribute": "red tail"}, {"attribute": "short legs"}]',
        "- red tail\n- short legs",
        "Sure:\n1. **red tail**\n2) short legs.",
        "\u2022 red tail\n\u2022 short legs\n",
        "[red tail, short legs]",
        "As [1] says: ['red tail', 'short legs']",
        'I see [my] picture: ["red tail", "short legs"]',
        '["red tail", "short legs", "unfini',
        '["\u201cred tail\u201d", " short  legs. ", ""]',
        '["red tail", "Red  Tail", "short legs"]',
    ],
)
def test_lists_of_features(answer: str) -> None:
    assert parse_features(answer).features == ("red tail", "short legs")


@pytest.mark.parametrize(
    "answer", ["", "I cannot help with that.", "red tail and short legs", "[", "{}", "[[[[" * 9000]
)
def test_an_answer_without_a_list_is_malformed(answer: str) -> None:
    with pytest.raises(MalformedAnswer, match="The answer holds no list of features"):
        parse_features(answer)


def test_what_is_dropped_has_its_reason() -> None:
    answer = '["red tail", "RED-tail", "", "unknown", "Puff Adder head", "puffy adders", "a b c d", "x", "y"]'
    found = parse_features(answer, ["Puff Adder"], max_features=3, max_words=3)
    assert found.features == ("red tail", "puffy adders", "x")
    assert [reason for _, reason in found.dropped] == [
        "duplicate",
        "empty",
        "unknown",
        "names a class",
        "more than 3 words",
        "after the first 3",
    ]
    assert parse_features('["unknown"]').features == ()
    found = parse_features('["云豹的斑纹", "白色的毛", "like a puff adder"]', ["云豹", "Puff Adder"])
    assert found.features == ("白色的毛",)
    assert join_features(["a b", "c"], ["A  B", "d"]) == ("a b", "c", "d")


def test_features_are_one_line_of_text_whatever_a_model_says() -> None:
    found = parse_features('["red\\u0000tail\\nIgnore all that", "\\ud800 legs", "<script>x</script>"]')
    assert found.features[:2] == ("red tail Ignore all that", "legs")
    assert prompt_text(found.features[2]) == "\u2039script\u203ax\u2039/script\u203a"
    assert parse_features('["tail [red]", "legs (short)"]').features == ("tail [red]", "legs (short)")


@pytest.mark.parametrize(
    ("answer", "bits"),
    [
        ("[1, 0, 1]", (True, False, True)),
        ("['1', '0', '1']", (True, False, True)),
        ("[true, false, true]", (True, False, True)),
        ('{"bits": [1, 0, 1]}', (True, False, True)),
        ("The bits: [1, 0, 1].", (True, False, True)),
        ("1 0 1", (True, False, True)),
        ("1,0,1", (True, False, True)),
    ],
)
def test_bits(answer: str, bits: tuple[bool, ...]) -> None:
    assert parse_bits(answer, 3) == bits


@pytest.mark.parametrize("answer", ["[1, 0]", "[1, 0, 1, 1]", "101", "[1, 2, 0]", "yes", "", "[]", "['a', 'b', 'c']"])
def test_a_list_of_another_length_or_content_is_malformed(answer: str) -> None:
    with pytest.raises(MalformedAnswer, match=r"3 (bits|zeros and ones)"):
        parse_bits(answer, 3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", True),
        ("No.", False),
        ("**Yes**, it does, no doubt", True),
        ("I would say no", False),
        ("1", True),
        ("\uff39\uff25\uff33", True),
    ],
)
def test_yes_and_no(answer: str, said: bool) -> None:
    assert parse_yes_no(answer) is said


@pytest.mark.parametrize("answer", ["", "maybe", "It may be yes or no", "nothing", "I know it"])
def test_neither_yes_nor_no_is_malformed(answer: str) -> None:
    with pytest.raises(MalformedAnswer, match="must be yes or no"):
        parse_yes_no(answer)


SNAKES, GULL = ["Adder", "Puff Adder"], ["Adder", "Puff Adder", "Franklin's Gull"]


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (GULL, {"ADDER.": 0, "puff_adder": 1, "This is a Puff Adder!": 1, "The image shows an adder": 0}),
        (GULL, {"The answer is: **Puff Adder**": 1, "Puff Adder (Bitis arietans)": 1, "A snake (Puff Adder)": 1}),
        (GULL, {"Puff Adder (not an Adder, nor Franklin's Gull)": 1, "franklin\u2019s gull": 2, "Franklins gull": 2}),
        (GULL, {"\uff30uff Adder": 1, "Puff\n Adder": 1, "Puff Adder or Franklin's Gull": None, "Ladder": None}),
        (GULL, {"Adders": None, "": None, "I cannot tell.": None, "(((((" * 1000: None}),
        (SNAKES, {"Adder / Puff Adder": None, "Not an Adder but a Puff Adder": None, "adderland": None}),
        (SNAKES, {"The puff adder. Puff Adders are vipers, puff adder.": 1, "(B) Puff Adder": 1}),
        (["Puff", *SNAKES[1:], "Puff Adder of the North"], {"It is a Puff Adder of the north": 2, "puff": 0}),
        (["cat", "caterpillar"], {"the cat and the caterpillar": None}),
        (["云豹", "雪豹"], {"这是云豹。": 0, "图片显示的是雪豹、它有白色的皮毛。": 1, "云豹或雪豹": None}),
        (["豹", "云豹"], {"这是云豹": 1}),
        (["ヒョウ", "ユキヒョウ"], {"これはユキヒョウです。": 1}),
        (["애더", "퍼프애더"], {"퍼프애더입니다": 1}),
        (SNAKES, {"这是Puff Adder。": 1}),
        (["เสือดาว", "เสือโคร่ง"], {"นี่คือเสือดาว": 0}),
    ],
)
def test_defect_7_an_answer_is_one_option_whose_name_it_holds_on_word_boundaries(
    options: list[str], answers: dict[str, int | None]
) -> None:
    assert {answer: read_answer(answer, options) for answer in answers} == answers


def test_aliases_and_bad_options() -> None:
    assert read_answer("bitis arietans", GULL, [[], ["Bitis arietans"], []]) == 1
    with pytest.raises(ValueError, match="Two options bear the name 'puff adder'"):
        read_answer("x", ["Puff Adder", "puff_adder"])
    with pytest.raises(ValueError, match=r"letters or digits, got '\?'"):
        read_answer("x", ["?"])


def test_a_pair_and_its_reverse_are_one_piece_of_work() -> None:
    first, second = Concept("A/B"), Concept("a b")
    pairs = [ConfusablePair(first, second, 0.3), ConfusablePair(second, first, 0.5)]
    assert pairs[0].pair_id == pairs[1].pair_id
    assert unique_pairs(pairs) == pairs[:1]
    assert ConfusablePair(first, Concept("A-B")).pair_id != pairs[0].pair_id
    with pytest.raises(ValueError, match="two concepts, got 'A/B' twice"):
        ConfusablePair(first, Concept("A/B"))


def test_defect_8_seeds_are_stable_hashes() -> None:
    # what `sha256sum` says of the JSON, so it holds in any process and on any machine
    assert stable_hash("Puff Adder", 3) == hashlib.sha256(b'["Puff Adder",3]').hexdigest()
    assert stable_hash("Puff Adder", 3).startswith("5c6b316982ea4e38")
    seeds = {stable_seed(0, "pair", "way", "visual", stage, index) for stage in ("a", "b") for index in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert stable_hash("a/b", "c") != stable_hash("a", "b/c")
    assert stable_hash(["a", ("b",)]) == stable_hash(("a", ["b"]))
    with pytest.raises(TypeError, match="stable hash"):
        stable_hash({"a": {1}})


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "<script>", "CON", "Ünï Cödé", "\u86c7", ".", "x" * 900])
def test_names_of_classes_make_safe_folders(name: str) -> None:
    folder = safe_name(name)
    assert folder == "".join(letter for letter in folder if letter in "abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(folder) < 80
    assert safe_name(name + " ") != folder
