"""Models that follow rules, so that the right result is known: red discs, which a model takes for blue ones."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_modules.coda.augmentation.pipeline import CoDAPipeline, PipelineResult, Until
from lit_modules.coda.augmentation.settings import CoDASettings, preset
from lit_modules.coda.augmentation.tasks import PairTask
from lit_modules.coda.backends.protocols import Capabilities, Message, Reply, Usage
from lit_modules.coda.core.concepts import Concept, ConfusablePair
from lit_modules.coda.core.store import Store

COLOURS = {"red": (1.0, 0.1, 0.1), "blue": (0.1, 0.1, 1.0)}


def noted(log: Path | None, *facts: object) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps(facts) + "\n")


class FakeChat:
    """Names the colour of the concept in the question, and looks at pictures when it is asked yes or no."""

    def __init__(self, log: Path | None = None, script: Sequence[str] = (), images_per_message: int = 2) -> None:
        self.log, self.script = log, list(script)
        self.identity = "fake chat 1"
        self.capabilities = Capabilities(images_per_message=images_per_message)
        self.asked: list[str] = []
        self.seeds: list[int | None] = []

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        text = messages[-1]["content"][-1]["text"]
        self.asked.append(text)
        self.seeds.append(seed)
        noted(self.log, "chat", text, seed, [list(np.asarray(image).mean((0, 1))) for image in images])
        if self.script:
            answer = self.script.pop(0)
        elif text.startswith("Does this picture show the attribute"):
            answer = "Yes." if self.shows(images[0], text.split('"')[1]) else "No."
        elif text.startswith("Which of these attributes"):
            answer = str([int(self.shows(images[0], one)) for one in re.findall('"([^"]*)"', text)])
        else:
            colour = "red" if "red" in text.split('"')[1].lower() else "blue"
            answer = f'Sure! ["{colour} body", "long tail", "{colour.upper()} BODY", "a {colour} disc"]'
        return Reply(answer, self.identity, Usage(len(text.split()), len(answer.split())))

    @staticmethod
    def shows(image: Image.Image, attribute: str) -> bool:
        red, _, blue = np.asarray(image).mean((0, 1))
        return bool({"red body": red > blue, "blue body": blue > red}.get(attribute, True))


class FakeGenerator:
    """Fills a picture with the first colour in its prompt, and a pattern that its seed chooses."""

    def __init__(self, log: Path | None = None, fail_on: str = "") -> None:
        self.log, self.fail_on = log, fail_on
        self.identity = "fake generator 1"
        self.requests: list[tuple[str, str | None, int]] = []

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        if self.fail_on and self.fail_on in prompt:
            raise ConnectionError("the generator is away")
        self.requests.append((prompt, negative, seed))
        noted(self.log, "image", prompt, seed)
        colour = next((name for name in COLOURS if name in prompt.partition(" with ")[2]), None)
        shade = np.array(COLOURS.get(colour or "", (0.5, 0.5, 0.5))) * 200
        pattern = np.random.default_rng(seed).uniform(0.5, 1.2, (8, 8, 1)).repeat(height // 8, 0).repeat(width // 8, 1)
        return Image.fromarray((shade * pattern).clip(0, 255).astype(np.uint8))


class FakeEmbedder:
    """Embeds pictures as their mean colour, and texts as the colour they name, else as grey."""

    identity = "fake clip 1"

    def __init__(self) -> None:
        self.images = 0
        self.texts: list[str] = []

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        self.images += len(images)
        return torch.tensor(np.stack([np.asarray(image.convert("RGB")).mean((0, 1)) for image in images]))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        shades = [next((COLOURS[name] for name in COLOURS if name in text.lower()), (1, 1, 1)) for text in texts]
        return torch.tensor(shades, dtype=torch.float64)

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 2


def support(folder: Path, colour: str, count: int = 3) -> tuple[str, ...]:
    """Write pictures of a colour, of which the first ones are the purest."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        shade = tuple(int(200 * part) + (10 * number if part < 1 else 0) for part in COLOURS[colour])
        path = folder / f"{colour}{number}.png"
        Image.new("RGB", (32, 32), shade).save(path)
        paths.append(str(path))
    return tuple(paths)


def discs(folder: Path, names: tuple[str, str] = ("Red Disc", "Blue Disc"), inner: str = "discs") -> PairTask:
    pair = ConfusablePair(Concept(names[0], "disc", "object"), Concept(names[1], "disc", "object"), 0.4)
    return PairTask(pair, support(folder / inner, "red"), support(folder / inner, "blue"))


def run_pipeline(
    folder: Path,
    tasks: list[PairTask],
    until: Until = "verification",
    chat: Any = None,
    generator: Any = None,
    embedder: Any = None,
    **changes: Any,
) -> PipelineResult:
    """Run the stages on a store with rules for models and a few small images."""
    with Store(folder) as store:
        models = chat or FakeChat(), generator or FakeGenerator(), embedder or FakeEmbedder()
        return CoDAPipeline(store, tiny(**changes), *models).run(tasks, until)


def tiny(**changes: Any) -> CoDASettings:
    small: dict[str, Any] = {
        "kinds": ("textual_contrastive", "visual_contrastive"),
        "num_images": 2,
        "trials_per_group": 2,
        "width": 32,
        "height": 32,
        "min_side": 16,
        "resamples": 20,
    }
    return preset("default", **(small | changes))
