import pytest

from lit_modules.utils.thoughts import close_thought, without_thoughts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Adder", "Adder"),
        ("<think>\n\n</think>\n\nAdder\n", "Adder"),
        ("<think>a</think>Puff <think>b</think>Adder", "Puff Adder"),
        ("no, it is </think> Adder", "Adder"),
        ("<think>one <think>two</think> three</think>Adder", "Adder"),
        ("<think>never closed: Adder", ""),
        ("Adder <think>or", "Adder"),
        ("[THINK]no[/THINK]Adder", "Adder"),
        ("<|channel|>final<|message|>Adder", "Adder"),
        ("<think>" * 2000, ""),
    ],
)
def test_answers_are_what_is_left(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


def test_a_question_without_a_thought_stays() -> None:
    assert close_thought("<think> is a tag.\nassistant:") == "<think> is a tag.\nassistant:"
