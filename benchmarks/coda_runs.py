"""Number of embeddings of a run, and time that a finished store takes.

A whole run with a tiny CLIP that transformers loads from a folder, and with stand-ins that answer and draw by rules;
how often each image and each text went through the model. Then the finished store is gone through again, which asks no
model, or the row is void.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coda_models import COLOURS, picture, save_clip
from PIL import Image
from timing import Table, seconds
from torch import Tensor

from lit_modules.coda import (
    Capabilities,
    ClipEmbedder,
    CoDAPipeline,
    CoDASettings,
    Concept,
    ConfusablePair,
    PairTask,
    Reply,
    Store,
    Usage,
    preset,
)
from lit_modules.coda.backends.protocols import Message, pixel_hash


class RuleChat:
    """Names the colour of the class in the question, and finds every attribute in every picture."""

    identity = "rules"
    capabilities = Capabilities(images_per_message=2)

    def __init__(self) -> None:
        self.calls = 0

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """Answer."""
        self.calls += 1
        text = messages[-1]["content"][-1]["text"]
        if text.startswith("Does"):
            return Reply("yes", self.identity, Usage(20, 1))
        colour = "red" if "Red" in text.split('"')[1] else "blue"
        return Reply(f'["{colour} body", "long tail", "{colour} horns", "six legs"]', self.identity, Usage(50, 12))


class RuleGenerator:
    """Fills a picture with the colour in its prompt, and a pattern that its seed chooses."""

    identity = "rules"

    def __init__(self) -> None:
        self.images = 0

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        """Return a picture."""
        self.images += 1
        return picture(seed, next((name for name in COLOURS if name in prompt.lower()), "red"), width, height)


class CountingEmbedder(ClipEmbedder):
    """Notes what goes through the model."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.shown: Counter[str] = Counter()
        self.read: Counter[str] = Counter()

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Note images by their pixels."""
        self.shown.update(map(pixel_hash, images))
        return super().embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Note texts."""
        self.read.update(texts)
        return super().embed_texts(texts)


def tasks(folder: Path, pairs: int, images: int) -> list[PairTask]:
    """Write support images of some pairs."""
    found = []
    for number in range(pairs):
        paths: dict[str, tuple[str, ...]] = {}
        for colour in COLOURS:
            own = [folder / f"{colour}-{number}-{place}.png" for place in range(images)]
            for place, path in enumerate(own):
                picture(1000 * number + 2 * place + (colour == "red"), colour, 224, 224).save(path)
            paths[colour] = tuple(map(str, own))
        red, blue = (Concept(f"{colour.title()} {number}", "disc", "object") for colour in COLOURS)
        found.append(PairTask(ConfusablePair(red, blue), paths["red"], paths["blue"]))
    return found


def runs(table: Table, part: str, pairs: int, images: int, rounds: int) -> None:
    """Run a store to its end, and go through it again."""
    settings: CoDASettings = preset(num_images=images, width=96, height=96, trials_per_group=5, allow_short=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_clip(str(folder / "clip"))
        chosen = tasks(folder, pairs, 5)

        def run() -> tuple[RuleChat, RuleGenerator, CountingEmbedder]:
            models = RuleChat(), RuleGenerator(), CountingEmbedder(str(folder / "clip"))
            with Store(folder / "store") as store:
                result = CoDAPipeline(store, settings, *models).run(chosen)
            if result.failures or result.stopped:
                raise RuntimeError(f"The run did not come to its end: {result.stopped or result.failures[0].failure}")
            return models

        first, (chat, generator, embedder) = seconds(run, time.perf_counter)
        run_of = f"run of {pairs} pairs, {len(settings.kinds)} kinds, {images} images each"
        if part != "resume":
            made = f"{chat.calls} calls, {generator.images} images made"
            for what, counts in (("images", embedder.shown), ("texts", embedder.read)):
                least = {f"different {what}": [len(counts)]}
                table.add(f"{what} embedded in a {run_of}", [counts.total()], least, made, unit="")
        if part != "embeddings":
            times, asked = [], 0
            for _ in range(rounds):
                again, (chat, generator, embedder) = seconds(run, time.perf_counter)
                times.append(again)
                asked += chat.calls + generator.images + embedder.shown.total() + embedder.read.total()
            files = sum(path.is_file() for path in (folder / "store").rglob("*"))
            table.add(
                f"finished store of {files} files, wall time",
                times,
                {f"the {run_of}": [first] * rounds},
                f"{asked} calls of models",
                void="models are asked again" if asked else "",
            )
