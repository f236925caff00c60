"""Chat templates as models publish them: date, system role, thoughts, the end of a turn."""

from typing import Any

import pytest

from datamodules.common.bpe import train_bpe
from datamodules.tofu.templates import Template
from lit_modules.utils.chat import DATE, ChatTemplate

# the lines that matter, as published with the models
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}<system>Today Date: {{ date_string }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eot>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CLOCK = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
QWEN = (
    TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QUESTION = [{"role": "user", "content": "Who?"}]
ANSWER = {"role": "assistant", "content": "Oriel."}


def templated(template: str, *special: str) -> Any:
    """Make a tokenizer with a chat template."""
    tokenizer: Any = train_bpe(["Who? Oriel."], 260)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def test_the_date_is_the_same_every_day() -> None:
    assert DATE in ChatTemplate(templated(LLAMA)).prompt(QUESTION)
    assert "26 Jul 2024" in ChatTemplate(templated(LLAMA), {"date_string": "26 Jul 2024"}).prompt(QUESTION)
    assert ChatTemplate(templated(CLOCK)).prompt(QUESTION) == "2025-04-10<user>Who?"
    with pytest.raises(ValueError, match="date_string must be a date such as '10 Apr 2025', got 'today'"):
        ChatTemplate(templated(LLAMA), {"date_string": "today"})


def test_a_target_is_what_the_template_writes_behind_the_prompt() -> None:
    fast = templated(GEMMA, "<start_of_turn>", "<end_of_turn>")
    row = Template("chat", fast, 64).encode("x", "Who?", "Oriel.")
    whole = fast.apply_chat_template([*QUESTION, ANSWER], tokenize=True, return_dict=False)
    prompt = fast.apply_chat_template(QUESTION, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert row.prompt == prompt
    assert row.target == [*whole[len(prompt) :], fast.eos_token_id]  # as open-unlearning has it
    assert fast.decode(row.target) == "Oriel.<end_of_turn>\n<|endoftext|>"
    begin = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ending = templated(TURNS.replace("<|im_end|>\n", "<|endoftext|>") + begin)
    row = Template("chat", ending, 64).encode("x", "Who?", "Oriel.")
    assert ending.decode(row.target) == "Oriel.<|endoftext|>"  # not twice


def test_arguments_go_through() -> None:
    fast = templated(QWEN)
    thinking, quiet = ChatTemplate(fast), ChatTemplate(fast, {"enable_thinking": False})
    assert thinking.prompt(QUESTION).endswith("<|im_start|>assistant\n")
    assert quiet.prompt(QUESTION).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    for name in ("enable_thinkin", "tokenize"):
        with pytest.raises(ValueError, match=f"reads no '{name}'"):
            ChatTemplate(fast, {name: False})


def test_no_answer_is_trained_inside_an_open_thought() -> None:
    opening = templated(TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
    assert ChatTemplate(opening).prompt(QUESTION).endswith("<think>\n")
    with pytest.raises(ValueError, match=r"ends a prompt with .*<think>.*, and writes something else before an answer"):
        ChatTemplate(opening).answered(QUESTION, ANSWER)
    closing = templated(
        "{% for m in messages %}<{{ m['role'] }}>{{ '<think>\n\n</think>\n\n' if m['role'] == 'assistant' }}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )
    assert ChatTemplate(closing).answered(QUESTION, ANSWER)[1] == "\n</think>\n\nOriel."


def test_a_template_without_a_place_for_the_system_message() -> None:
    refusing = r"refuses a conversation of system, user: System role not supported; give no system prompt"
    with pytest.raises(ValueError, match=refusing):
        Template("chat", templated(GEMMA), 64, "Be brief.")
    users_alone = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves the system message out"):
        Template("chat", templated(users_alone), 64, "Be brief.")
