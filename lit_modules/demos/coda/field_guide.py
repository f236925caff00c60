"""Lists of features of drawn species with stated errors, in the place of a chat model."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL.Image import Image

from lit_modules.coda.backends.protocols import Capabilities, Message, Reply
from lit_modules.datamodules import drawn
from lit_modules.utils.json_lines import read_json_lines


class FieldGuide:
    """Stand-in for a chat model that has read a field guide of drawn species, and remembers it with errors.

    To a plain question it lists all attributes of the species, in any order. To a contrastive one it lists those by
    which the species differs from the other one, and inventions: attributes that both share, half of them with a value
    that the species does not have. It reads the names in the question, and looks at no picture.

    Args:
        concepts: File ``concepts.jsonl`` of drawn species.
        errors: Share of the attributes of a plain list that are wrong, in [0, 1].
        inventions: Chance that an attribute which tells nothing gets into a contrastive list, in [0, 1].

    Raises:
        ValueError: If a share is out of its range.
    """

    def __init__(self, concepts: str, errors: float = 0.05, inventions: float = 0.15) -> None:
        for name, share in (("errors", errors), ("inventions", inventions)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}.")
        self.looks = {row["name"]: dict(row["attributes"]) for _, row in read_json_lines(Path(concepts))}
        self.errors, self.inventions = errors, inventions

    @property
    def identity(self) -> str:
        """Name with the settings and the species."""
        names = ", ".join(sorted(self.looks))
        return f"field guide (a stand-in for a chat model), errors {self.errors}, inventions {self.inventions}; {names}"

    @property
    def capabilities(self) -> Capabilities:
        """No images."""
        return Capabilities(images_per_message=0)

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """List attributes of the first species that the last message names, apart from the second if there is one."""
        question = str(messages[-1]["content"][-1]["text"])
        name, *others = [name for name in dict.fromkeys(re.findall(r'"(\w+)"', question)) if name in self.looks]
        random = Random(f"{seed}/field guide/{name}/{others}")
        look = self.looks[name]
        order = random.sample(list(look), len(look))
        if others:
            listed = self._apart(look, self.looks[others[0]], order, random=random)
        else:
            listed = {key: _other(look, key, random) if random.random() < self.errors else look[key] for key in order}
        return Reply(json.dumps([drawn.creatures.PHRASES[key][value] for key, value in listed.items()]), self.identity)

    def _apart(
        self, look: Mapping[str, str], other: Mapping[str, str], order: Sequence[str], random: Random
    ) -> dict[str, str]:
        listed = {}
        for key in order:
            if look[key] != other[key]:
                listed[key] = look[key]
            elif random.random() < self.inventions:
                listed[key] = look[key] if random.random() < 0.5 else _other(look, key, random)
        return listed


def _other(look: Mapping[str, str], key: str, random: Random) -> str:
    """Return a value of an attribute that a species does not have."""
    return str(random.choice([value for value in drawn.creatures.ATTRIBUTES[key] if value != look[key]]))
