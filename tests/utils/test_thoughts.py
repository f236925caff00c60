from types import SimpleNamespace

import pytest

from lit_modules.utils.thoughts import close_thought, template_options, without_thoughts


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


@pytest.mark.parametrize(
    ("template", "options"),
    [
        ("{%- if enable_thinking is defined and enable_thinking is false %}</think>{% endif %}", ["enable_thinking"]),
        ("{%- if thinking is defined and thinking is false -%}</think>{% endif %}", ["thinking"]),
        ("{% if message.thinking %}{{ '<thinking>' + \"I am thinking\" }}{% endif %} enable_thinking thinking", []),
        ("{% if rethinking or thinking_budget %}a{% endif %}", []),
        (None, []),
    ],
)
def test_thinking_is_switched_off_by_the_variables_of_a_template_alone(
    template: str | None, options: list[str]
) -> None:
    assert template_options(SimpleNamespace(chat_template=template)) == dict.fromkeys(options, False)
