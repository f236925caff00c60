"""Models that a configuration names, for the tests of ``lit-modules coda``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from lit_modules.coda.backends.protocols import BudgetExhausted, Capabilities, Message, Reply, Usage
from tests.coda.fakes import FakeChat


class PoorChat(FakeChat):
    """Stops at its third question."""

    def chat(self, *arguments: Any, **more: Any) -> Reply:
        if len(self.asked) >= 2:
            raise BudgetExhausted("2 calls are used up.")
        return super().chat(*arguments, **more)


class InterruptedChat(FakeChat):
    """Somebody presses Ctrl-C at its third question."""

    def chat(self, *arguments: Any, **more: Any) -> Reply:
        if len(self.asked) >= 2:
            raise KeyboardInterrupt
        return super().chat(*arguments, **more)


class FirstChat:
    """Answers with the first name in the alphabet, whatever a picture shows."""

    def __init__(self) -> None:
        self.identity = "the first name"
        self.capabilities = Capabilities(images_per_message=1)

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        asked = messages[-1]["content"][-1]["text"].partition("show ")[2].partition("?")[0]
        return Reply(min(re.split(r",? or |, ", asked)), self.identity, Usage(10, 1))
