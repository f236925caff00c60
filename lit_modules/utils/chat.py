"""One rendering of chat templates, the same on every day."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

DATE = "10 Apr 2025"
"""Date that templates print by default: that of the TOFU and MUSE results of open-unlearning."""
_SET_HERE = ("tools", "documents", "messages", "add_generation_prompt", "tokenize", "chat_template", "strftime_now")

Message = Mapping[str, Any]


class ChatTemplate:
    """Chat template of a tokenizer or processor, with its arguments.

    A template that prints a date, by ``date_string`` or by ``strftime_now``, prints the same one on every day.

    Args:
        renderer: Tokenizer or processor with a chat template.
        arguments: Values that the template reads, such as ``{"enable_thinking": False}`` or
            ``{"date_string": "26 Jul 2024"}``.

    Raises:
        ValueError: If there is no template, it does not read an argument, or the date is none.

    Example:
        >>> class Renderer:
        ...     chat_template = "{{ messages[0].content }}"
        ...     name_or_path = "example"
        >>> ChatTemplate(Renderer(), {"enable_thinking": False})
        Traceback (most recent call last):
        ...
        ValueError: The chat template of 'example' reads no 'enable_thinking'; leave it out of the template's arguments.
    """

    def __init__(self, renderer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        # a tokenizer has the first, a processor perhaps neither
        self._name = getattr(renderer, "name_or_path", None) or type(renderer).__name__
        template = getattr(renderer, "chat_template", None)
        if not template:
            raise ValueError(f"The {type(renderer).__name__} {self._name!r} has no chat template.")
        if isinstance(template, dict):
            if "default" not in template:
                raise ValueError(f"The chat templates of {self._name!r} must hold 'default', got {sorted(template)}.")
            template = template["default"]
        given = dict(arguments or {})
        for name in given:
            if name in _SET_HERE or not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(
                    f"The chat template of {self._name!r} reads no {name!r}; leave it out of the template's arguments."
                )
        date = given.setdefault("date_string", DATE)
        try:
            fixed = datetime.strptime(date, "%d %b %Y")
        except (ValueError, TypeError) as error:
            raise ValueError(f"date_string must be a date such as {DATE!r}, got {date!r}.") from error
        # a function among the arguments would reach the template as text
        clock = _clock(fixed) if "strftime_now" in template else ""
        self._renderer, self._arguments = renderer, {**given, "chat_template": clock + template}

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the model begins to answer.

        Args:
            messages: Turns with ``role`` and ``content``; the last one is the user's.

        Raises:
            ValueError: If the template refuses the turns, or leaves the system's message out.
        """
        text = self._render(messages, True)
        first = messages[0]
        if first["role"] == "system" and isinstance(first["content"], str) and first["content"].strip() not in text:
            raise ValueError(
                f"The chat template of {self._name!r} leaves the system message out; give none, or write it into the "
                "question."
            )
        return text

    def answered(self, messages: Sequence[Message], answer: Message) -> tuple[str, str]:
        """Return the prompt, and behind it the answer to the end of its turn, as the template writes them.

        Args:
            messages: Turns up to the user's last one.
            answer: Turn of the assistant.

        Raises:
            ValueError: If the template refuses the turns, or writes other text before an answer than at the end of a
                prompt, such as a thought that it opens.
        """
        prompt = self.prompt(messages)
        # Mistral's writes the system message into the last turn, if that is the user's, and so not before an answer
        alone = [messages[1:]] if messages[0]["role"] == "system" else []
        for turns in (messages, *alone):
            start, whole = self._render(turns, True), self._render([*turns, answer], False)
            if whole.startswith(start):
                return prompt, whole[len(start) :]
        raise ValueError(
            f"The chat template of {self._name!r} ends a prompt with {prompt[-40:]!r}, and writes something else "
            "before an answer that is given, so a model cannot be trained to go on with it; an argument of the "
            "template may help, such as enable_thinking=False."
        )

    def _render(self, messages: Sequence[Message], asks: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(
                self._renderer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=asks, **self._arguments
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            hint = "; give no system prompt, or write it into the question" if messages[0]["role"] == "system" else ""
            raise ValueError(
                f"The chat template of {self._name!r} refuses a conversation of {roles}: {error}{hint}."
            ) from error


def _clock(date: datetime) -> str:
    """Return a macro that stands in for ``strftime_now`` and stands still."""
    directives = [f"%{letter}" for letter in "aAbBdHIjmMpSwyY"] + ["%-d", "%-m", "%e"]
    filters = "".join(f"|replace({name!r}, {date.strftime(name)!r})" for name in directives)
    return "{%- macro strftime_now(format) -%}{{ format" + filters + " }}{%- endmacro +%}"
