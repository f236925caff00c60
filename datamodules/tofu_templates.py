"""How TOFU's questions and answers are put to a model."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from .text import Encoded, encode_row

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

    Raises:
        ValueError: If the name is unknown, the tokenizer has no chat template, or a system prompt is given without
            ``"chat"``.
    """

    def __init__(
        self, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int, system_prompt: str | None = None
    ) -> None:
        check_template(name, system_prompt)
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template; give template='plain', or the "
                "tokenizer of an instruction-tuned model."
            )
        self.name, self.tokenizer, self.max_length, self.system_prompt = name, tokenizer, max_length, system_prompt

    def prompt(self, question: str) -> str:
        """Return the text that asks the question."""
        if self.name == "chat":
            return str(
                self.tokenizer.apply_chat_template(self._messages(question), tokenize=False, add_generation_prompt=True)
            )
        return TEMPLATES[self.name][0].format(question)

    def encode(self, name: str, question: str, answer: str) -> Encoded:
        """Tokenise question and answer; the answer ends with the end of sequence.

        The answer gets the tokens that it has behind the prompt, unless one would cross the border between them; then
        it is tokenised alone. A question that is too long loses its beginning, but not in a chat.

        Args:
            name: Name of the row.
            question: Text that is not scored.
            answer: Text that is scored.

        Raises:
            ValueError: If the answer has no token, the row does not fit, or the tokenizer has no end of sequence.
        """
        if self.name == "chat":
            return self._encode_chat(name, question, answer)
        prompt, target = self.prompt(question), TEMPLATES[self.name][1].format(answer)
        row = encode_row(self.tokenizer, name, prompt, target, self.max_length, separator="")
        ids, alone = self._ids(prompt + target), self._ids(prompt)
        if ids[: len(alone)] != alone or len(ids) == len(alone):
            return row
        return self._checked(Encoded(name, row.prompt, [*ids[len(alone) :], row.target[-1]], row.cut))

    def _encode_chat(self, name: str, question: str, answer: str) -> Encoded:
        # checks that the answer has tokens and the tokenizer an end
        row = encode_row(self.tokenizer, name, question, answer, self.max_length, separator="")
        ids: Any = self.tokenizer.apply_chat_template(
            self._messages(question), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return self._checked(Encoded(name, list(ids), row.target))

    def _checked(self, row: Encoded) -> Encoded:
        if len(row) > self.max_length:
            raise ValueError(f"max_length must be at least {len(row)} for the row {row.id}, got {self.max_length}.")
        return row

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _messages(self, question: str) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": question}]


def check_template(name: str, system_prompt: str | None) -> None:
    """Raise a ``ValueError`` if the template is unknown, or has no place for a system prompt."""
    if name not in NAMES:
        raise ValueError(f"template must be of {', '.join(map(repr, NAMES))}, got {name!r}.")
    if system_prompt is not None and name != "chat":
        raise ValueError(f"system_prompt goes with template='chat' only, got template={name!r}.")
