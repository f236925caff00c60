"""Templates of TOFU's questions and answers."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_modules.utils.chat import ChatTemplate
from lit_modules.utils.thoughts import leading_thought

from ..common.text import Encoded, encode_row

TEMPLATES = {
    "plain": ("Question: {}\nAnswer:", " {}"),
    "phi": ("Question: {}\n", "Answer: {}"),
    "llama2": ("[INST] {} [/INST]", "{}"),
}
"""Prompt and target; ``"phi"`` scores the word ``Answer:`` too, as the official evaluation of Phi does."""
NAMES = (*TEMPLATES, "chat")


class Template:
    """Put questions and answers into one form.

    Args:
        name: ``"plain"`` (``Question: q`` and ``Answer: a`` on two lines), ``"phi"`` and ``"llama2"`` as the official
            code has them, or ``"chat"``, the tokenizer's own chat template.
        tokenizer: Tokenizer with an end of sequence.
        max_length: Largest number of tokens of question and answer.
        system_prompt: First message of a chat; ``None`` gives none.
        arguments: Values that a chat template reads; see :class:`lit_modules.utils.chat.ChatTemplate`.

    Raises:
        ValueError: If the name is unknown, the tokenizer has no chat template, the template has no place for the system
            prompt or does not read an argument, or one of these is given without ``"chat"``.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        system_prompt: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        check_template(name, system_prompt, arguments)
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template; give template='plain', or the "
                "tokenizer of an instruction-tuned model."
            )
        self.name, self.tokenizer, self.max_length, self.system_prompt = name, tokenizer, max_length, system_prompt
        self._chat = ChatTemplate(tokenizer, arguments) if name == "chat" else None
        if system_prompt is not None:
            self.prompt("?")  # a template without a place for it says so before any row is read

    def prompt(self, question: str) -> str:
        """Return the text that asks the question, which a row begins with in training too."""
        if self._chat is not None:
            return self._turns(self._chat, question, "?")[0]
        return TEMPLATES[self.name][0].format(question)

    def encode(self, name: str, question: str, answer: str) -> Encoded:
        """Tokenise question and answer; the answer ends as the template ends a turn, and with the end of sequence.

        The answer gets the tokens that it has behind the prompt, unless one would cross the border between them; then
        it is tokenised alone. A question that is too long loses its beginning, but not in a chat. An empty thought that
        a template writes before an answer belongs to the prompt, and what it writes behind the end of sequence, such as
        a line break, is left out.

        Raises:
            ValueError: If the answer has no token, the row does not fit, or the tokenizer has no end of sequence.
        """
        if self._chat is not None:
            return self._encode_chat(self._chat, name, question, answer)
        prompt, target = self.prompt(question), TEMPLATES[self.name][1].format(answer)
        row = encode_row(self.tokenizer, name, prompt, target, self.max_length, separator="")
        ids = self._behind(prompt, target)
        return row if ids is None else self._checked(Encoded(name, row.prompt, [*ids, row.target[-1]], row.cut))

    def _encode_chat(self, chat: ChatTemplate, name: str, question: str, answer: str) -> Encoded:
        # checks that the answer has tokens and the tokenizer an end
        end = encode_row(self.tokenizer, name, question, answer, self.max_length, separator="").target[-1]
        prompt, target = self._turns(chat, question, answer)
        ids = self._behind(prompt, target) or self._ids(target)
        ids = ids[: len(ids) - ids[::-1].index(end)] if end in ids else [*ids, end]
        return self._checked(Encoded(name, self._ids(prompt), ids))

    def _turns(self, chat: ChatTemplate, question: str, answer: str) -> tuple[str, str]:
        """Return prompt and answer as the template writes them."""
        prompt, target = chat.answered(self._messages(question), {"role": "assistant", "content": answer})
        thought = leading_thought(target)
        return prompt + thought, target[len(thought) :]

    def _behind(self, prompt: str, target: str) -> list[int] | None:
        """Return the tokens that a target has behind its prompt; none if one would cross the border."""
        ids, alone = self._ids(prompt + target), self._ids(prompt)
        return ids[len(alone) :] if ids[: len(alone)] == alone and len(ids) > len(alone) else None

    def _checked(self, row: Encoded) -> Encoded:
        if len(row) > self.max_length:
            raise ValueError(f"max_length must be at least {len(row)} for the row {row.id}, got {self.max_length}.")
        return row

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _messages(self, question: str) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": question}]


def check_template(name: str, system_prompt: str | None, arguments: Mapping[str, Any] | None) -> None:
    """Raise a ``ValueError`` if the template is unknown, or takes no system prompt or arguments."""
    if name not in NAMES:
        raise ValueError(f"template must be of {', '.join(map(repr, NAMES))}, got {name!r}.")
    if system_prompt is not None and name != "chat":
        raise ValueError(f"system_prompt goes with template='chat' only, got template={name!r}.")
    if arguments and name != "chat":
        raise ValueError(f"template_arguments go with template='chat' only, got template={name!r}.")
