"""Thinking of a model before its answer, which is no part of the answer."""

import re
from collections.abc import Sequence
from typing import Any

_THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)
"""Marks that open and close a thought in the chat formats of open models."""
_SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that switch thinking on and off: of Qwen and GLM, and of DeepSeek and Kimi."""


def without_thoughts(text: str) -> str:
    r"""Return an answer without the thoughts in it; nothing of one that was never closed.

    Example:
        >>> without_thoughts("<think>Adder? No.</think>\n\nPuff Adder"), without_thoughts("<think>Adder? Or")
        ('Puff Adder', '')
    """
    for begin, end in _THOUGHTS:
        kept = []
        while begin in text:
            before, _, inner = text.partition(begin)
            kept.append(before)
            text = inner.partition(end)[2]
        text = "".join((*kept, text)).rpartition(end)[2]  # the question may have opened the thought
    return text.strip()


def leading_thought(text: str) -> str:
    r"""Return the empty thought, or the end of an open one, with which a text begins; nothing if there is none.

    Example:
        >>> leading_thought("<think>\n\n</think>\n\nPuff Adder"), leading_thought("Puff Adder")
        ('<think>\n\n</think>\n\n', '')
    """
    patterns = (rf"\s*({re.escape(begin)})?\s*{re.escape(end)}\s*" for begin, end in _THOUGHTS)
    return next((match[0] for pattern in patterns if (match := re.match(pattern, text))), "")


def opened_thought(question: str) -> tuple[str, str] | None:
    r"""Return what opened, and what would close, the thought that a question leaves open at its end, or ``None``.

    Example:
        >>> opened_thought("Which is it?\nassistant: <think>\n")
        ('<think>', '</think>')
    """
    return next((marks for marks in _THOUGHTS if question.rstrip().endswith(marks[0])), None)


def close_thought(question: str) -> str:
    r"""Return a question so that the model answers at once: a thought that it leaves open is closed empty.

    Example:
        >>> close_thought("assistant: <think>\n")
        'assistant: <think>\n\n</think>\n\n'
    """
    marks = opened_thought(question)
    return question if marks is None else f"{question.rstrip()}\n\n{marks[1]}\n\n"


def template_options(processor: Any) -> dict[str, bool]:
    """Return the arguments that switch thinking off, for a chat template that knows them.

    Example:
        >>> class Processor:
        ...     chat_template = "{% if thinking is defined and thinking is false %}</think>{% endif %}"
        >>> template_options(Processor())
        {'thinking': False}
    """
    template = str(getattr(processor, "chat_template", None))  # not all processors have one
    code = " ".join(re.findall(r"{[%{].*?[%}]}", template, re.DOTALL))
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", code)  # neither a word in a text nor a field of a message
    return {name: False for name in _SWITCHES if re.search(rf"(?<![\w.]){name}\b", code)}


def mentions_thoughts(processor: Any) -> bool:
    """Return whether a chat template writes thoughts, as that of a model does which may think before it answers."""
    template = str(getattr(processor, "chat_template", None))
    return any(begin in template for begin, _ in _THOUGHTS)


def decode_answer(tokenizer: Any, tokens: Sequence[int], question: str = "") -> str:
    """Return the text of an answer to a question, which may open a thought, without thoughts and special tokens."""
    marks = opened_thought(question)
    whole = ("" if marks is None else marks[0]) + str(tokenizer.decode(tokens, skip_special_tokens=False))
    text = without_thoughts(whole)
    if text == whole.strip():
        plain: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return plain.strip()
    for mark in tokenizer.all_special_tokens:  # some of the marks are such tokens, so these go last
        text = text.replace(mark, "")
    return text.strip()
