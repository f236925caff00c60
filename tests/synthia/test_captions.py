import json

import pytest

from lit_modules.synthia.pairs.captions import VAGUE, caption_problem, caption_request, read_captions, template_captions


def test_templates_obey_the_rules() -> None:
    captions = template_captions(["pour", "take_off"], ["drum_kit", "kettle"], 30)
    assert len(set(captions)) == 30
    for caption in captions:
        assert caption_problem(caption) is None
        assert "pour" in caption
        assert "take off" in caption
        assert "drum" not in caption
    assert len({caption.split(".")[0] for caption in captions}) == 30
    assert captions == template_captions(["pour", "take_off"], ["drum_kit", "kettle"], 30)
    assert captions != template_captions(["pour", "take_off"], ["drum_kit", "kettle"], 30, seed=1)


def test_templates_take_one_or_three_affordances() -> None:
    assert "All of it is shaped to sit." in template_captions(["sit"], number=1)[0]
    assert "and also to cut" in template_captions(["sit", "store", "cut"], number=1)[0]
    assert len(set(template_captions(["sit"], number=120))) == 120
    with pytest.raises(ValueError, match="number must lie between 1 and the 120 captions there are, got 121"):
        template_captions(["sit"], number=121)


def test_the_request_holds_the_rules_and_the_names_as_data() -> None:
    system, user = caption_request(["take_off", 'say "x"'], ["drum_kit"], 7)
    assert all(word in system["content"] for word in VAGUE)
    assert "three short sentences" in system["content"]
    given = json.loads(user["content"])
    assert given == {"functions": ["take off", 'say "x"'], "do_not_resemble": ["drum kit"], "captions": 7}
    plain = '["A  bowl.", "A ring.", "A disc."]'
    for answer in (plain, f"```json\n{plain}\n```", f'{{"captions": {plain}}}'):
        assert read_captions(answer, 2) == ["A bowl.", "A ring."]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Here they are: a bowl", "the answer is no JSON: Here they are"),
        ('["A bowl.", "A bowl."]', "the answer has 1 different captions, 2 were asked for"),
        ('["A. B. C. D.", "A ring."]', "more than 3 sentences: A. B. C. D."),
        ('["A versatile bowl.", "A ring."]', "the vague word 'versatile': A versatile bowl."),
        ('["A \\u001b[31m bowl.", "A ring."]', "characters that cannot be printed"),
        (json.dumps(["A bowl" * 200, "A ring."]), "longer than 600 letters"),
    ],
)
def test_answers_that_break_the_rules_are_refused(answer: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_captions(answer, 2)
