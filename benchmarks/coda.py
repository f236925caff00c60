"""Cost of CoDA, as ratios against the plain way or the floor in the same run.

    python benchmarks/coda.py                # all parts
    python benchmarks/coda.py --part update

Scores: the discriminability of 200 attributes on 100 x 100 images against the loop over pairs, once with plain numbers
on cosines that are there already, and once with a tensor for each softmax of two; the latter is timed on a share.

Embeddings: a whole run with a tiny CLIP that transformers loads from a folder, and with stand-ins that answer and draw
by rules; how often each image and each text went through the model.

Generation: a LLaVA-NeXT built from its configuration, saved and loaded as a real one is, answers the questions that a
run asks, by `LocalChat` in batches and one at a time, in turns: lists of features on an image of each class, some 100
tokens long, and verdicts of two tokens on all attributes of each synthetic image. The answers are compared; where they
differ, the scores of the first token that differs are looked at.

Update: a step of `CoDA` in the Trainer against the forward pass, backward pass and optimizer step of the same adapted
model on the same batch, encoded before, in turns; processor time on the CPU.

Resume: a finished store is gone through again; seconds and model calls.
"""

import argparse
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import pairwise
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from lit_modules.coda import (
    Capabilities,
    ChatRequest,
    ClipEmbedder,
    CoDA,
    CoDAPipeline,
    CoDASettings,
    Concept,
    ConfusablePair,
    LocalChat,
    PairTask,
    Reply,
    Store,
    Usage,
    discriminability_values,
    feature_request,
    preset,
    verification_requests,
)
from lit_modules.coda.protocols import Message, pixel_hash

PATCH, TILE = 14, 112
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
ATTRIBUTES = (
    "a short tail",
    "keeled scales along the whole of the back",
    "pale rings",
    "a broad, flat head that is set off from the neck",
    "red eyes",
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COLOURS = {"red": (1.0, 0.1, 0.1), "blue": (0.1, 0.1, 1.0)}
Row = tuple[str, str, str]


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Return how long something took, and what it returned."""
    began = clock()
    found = work()
    return clock() - began, found


def in_turns(rounds: int, *works: Callable[[], float]) -> list[list[float]]:
    """Return the times of works, which take turns and change who is first, so that a drift meets all alike."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        for place in sorted(range(len(works)), reverse=number % 2 == 1):
            times[place].append(works[place]())
    return times


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of values, with all of them."""
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


# --- scores


def plain_loop(target: Tensor, confusable: Tensor) -> list[float]:
    """Return the discriminability of attributes by its definition, in plain numbers."""
    found = []
    for own, others in zip(target.T.tolist(), confusable.T.tolist(), strict=True):
        total = 0.0
        for x in own:
            for y in others:
                shown, other = exp(100 * x), exp(100 * y)
                total += shown / (shown + other)
        found.append(total / (len(own) * len(others)))
    return found


def tensor_loop(target: Tensor, confusable: Tensor) -> float:
    """Return the discriminability of one attribute, by a softmax of two for each pair of images."""
    shares = [float(torch.stack([100 * x, 100 * y]).softmax(0)[0]) for x in target for y in confusable]
    return statistics.fmean(shares)


def scores(attributes: int, images: int, rounds: int) -> list[Row]:
    """Time the scores against both loops."""
    generator = torch.Generator().manual_seed(0)
    target, confusable = (0.2 + 0.02 * torch.randn(images, attributes, generator=generator) for _ in range(2))
    share = max(1, images // 10)
    found = discriminability_values(target, confusable)
    error = max(abs(a - b) for a, b in zip(found.tolist(), plain_loop(target, confusable), strict=True))
    ours, plain, tensors = in_turns(
        rounds,
        lambda: min(seconds(partial(discriminability_values, target, confusable))[0] for _ in range(5)),
        lambda: seconds(partial(plain_loop, target, confusable))[0],
        lambda: seconds(partial(tensor_loop, target[:share, 0], confusable[:, 0]))[0] * attributes * images / share,
    )
    what = f"scores of {attributes} attributes, {images} x {images} images"
    return [
        (what, f"{1000 * statistics.median(ours):.1f} ms", f"greatest difference {error:.0e}"),
        ("  loop in plain numbers / scores", spread([p / o for p, o in zip(plain, ours, strict=True)], 0), ">= 100"),
        ("  loop of tensors / scores", spread([t / o for t, o in zip(tensors, ours, strict=True)], 0), ">= 100"),
    ]


# --- embeddings and resuming


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


def picture(seed: int, colour: str = "red", width: int = 96, height: int = 96) -> Image.Image:
    """Return a pattern of blocks in shades of a colour."""
    blocks = np.random.default_rng(seed).uniform(60, 250, (8, 8, 1)) * np.array(COLOURS[colour])
    return Image.fromarray(blocks.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


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


def save_clip(folder: str) -> None:
    """Build a tiny CLIP from its configuration, and save it with its processors."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = tokenizer(["Red Blue object photo of a disc body long tail horns six legs"])
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 77, **sizes, **ids},
        vision_config={"image_size": 32, "patch_size": 8, **sizes},
        projection_dim=16,
    )
    torch.manual_seed(0)
    build: Any = transformers.CLIPModel
    build(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    words.save_pretrained(folder)


def runs(part: str, pairs: int, images: int, rounds: int) -> list[Row]:
    """Run a store to its end, and go through it again."""
    settings: CoDASettings = preset(num_images=images, width=96, height=96, trials_per_group=5, allow_short=True)
    rows: list[Row] = []
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

        first, (chat, generator, embedder) = seconds(run)
        if part != "resume":
            made = f"{first:.1f} s, {chat.calls} calls, {generator.images} images made"
            rows.append((f"run of {pairs} pairs, {len(settings.kinds)} kinds, {images} images each", made, ""))
            for what, counts in (("image", embedder.shown), ("text", embedder.read)):
                most = max(counts.values())
                rows.append((f"  {what}s embedded", f"{counts.total()} of {len(counts)}, one {most} times", "1 each"))
        if part != "embeddings":
            times, asked = [], 0
            for _ in range(rounds):
                again, (chat, generator, embedder) = seconds(run)
                times.append(again)
                asked += chat.calls + generator.images + embedder.shown.total() + embedder.read.total()
            files = sum(path.is_file() for path in (folder / "store").rglob("*"))
            rows.append((f"finished store of {files} files, seconds", spread(times), "< 2"))
            rows.append(("  calls of models", str(asked), "0"))
    return rows


# --- generation and updating


def tokenizer(texts: Sequence[str]) -> Any:
    """Train a tokenizer on texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    made: Any = transformers.PreTrainedTokenizerFast
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return made(tokenizer_object=fast, **named, extra_special_tokens={"image_token": "<image>"})


def save_llava(folder: str, hidden: int, layers: int, texts: Sequence[str]) -> int:
    """Build a LLaVA-NeXT from its configuration, save it, and return its number of parameters."""
    words = tokenizer(texts)
    heads = max(1, hidden // 64)
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": TILE, "patch_size": PATCH, **vision},
        text_config={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    network: Any = transformers.LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # spreads the scores, so that answers differ and end at different places
    network.generation_config.eos_token_id = [1, *range(2048, 2112)]
    network.save_pretrained(folder)
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    made: Any = transformers.LlavaNextProcessor
    fields = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    made(images, words, chat_template=TEMPLATE, **fields).save_pretrained(folder)
    return int(network.num_parameters())


def questions(number: int) -> dict[str, list[ChatRequest]]:
    """Return as many lists of features as given, and as many verdicts, as a run asks for."""
    names = ["Puff Adder", "Eyelash Viper", "Southeastern Five-lined Skink", "Tail-spot Wrasse", "Asp"]
    sizes = [(224, 224), (320, 160), (160, 320), (300, 260)]
    features = []
    for place in range(number):
        target, other = (Concept(f"{names[(place + far) % 5]} {place}", "animal") for far in (0, 2))
        shown = picture(place, "red", *sizes[place % 4])
        kind: Any = ("textual_contrastive", "visual_contrastive", "visual_plain")[place % 3]
        features.append(feature_request(kind, target, other, shown, max_new_tokens=128, temperature=0.0))
    verdicts = [
        replace(request, max_new_tokens=2)
        for place in range(-(-number // len(ATTRIBUTES)))
        for request in verification_requests(picture(place), ATTRIBUTES)
    ]
    return {"lists of features": features, "verdicts": verdicts[:number]}


def tied(chat: LocalChat, request: ChatRequest, first: str, second: str) -> bool:
    """Say whether the two likeliest tokens are within 1e-4 where two answers part."""
    processor, network = chat._loaded
    one, other = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    inputs = dict(chat._inputs([request]))
    more = torch.tensor([one[:common]], dtype=torch.int64, device=network.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        top = network(**inputs).logits[0, -1].float().topk(2).values
    return bool(top[0] - top[1] < 1e-4)


def generation(folder: str, number: int, batch_size: int, rounds: int) -> list[Row]:
    """Time answers in batches and one at a time."""
    together, alone = LocalChat(folder, batch_size=batch_size), LocalChat(folder, batch_size=1)
    rows: list[Row] = []
    kinds = questions(number)
    kinds["both"] = [request for pair in zip(*kinds.values(), strict=True) for request in pair]
    for name, asked in kinds.items():
        answers: dict[str, list[str]] = {}

        def timed(
            name: str,
            chat: LocalChat,
            asked: Sequence[ChatRequest] = asked,
            answers: dict[str, list[str]] = answers,
        ) -> float:
            second, found = seconds(lambda: dict(chat.chat_many(asked)))
            answers[name] = [str(getattr(found[place], "text", found[place])) for place in range(len(asked))]
            return second

        for chat in (together, alone):
            dict(chat.chat_many(asked[:2]))  # loads the model
        batched, single = in_turns(rounds, partial(timed, "batched", together), partial(timed, "single", alone))
        ratios = [s / b for s, b in zip(single, batched, strict=True)]
        pairs = list(zip(asked, answers["batched"], answers["single"], strict=True))
        other = [(request, one, two) for request, one, two in pairs if one != two]
        ties = sum(tied(alone, *one) for one in other)
        rate = f"{len(asked) / statistics.median(batched):.1f} / s"
        equal = f"{len(asked) - len(other)} of {len(asked)} answers equal, {ties} of the others tied"
        rows.append((f"{len(asked)} {name}, {batch_size} at a time", rate, equal))
        rows.append(("  one at a time / in batches, seconds", spread(ratios), ">= 3" if name == "both" else ""))
    return rows


def batch(rows: int) -> dict[str, Any]:
    """Return questions about pictures with their answers."""
    names = ("Puff Adder", "Eyelash Viper")
    return {
        "image": [picture(row, ("red", "blue")[row % 2]) for row in range(rows)],
        "prompt": [f"Does the picture show {names[row % 2]} or {names[1 - row % 2]}?" for row in range(rows)],
        "answer": [names[row % 2] for row in range(rows)],
    }


def step_times(module: CoDA, data: dict[str, Any], steps: int, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of each step of a fit."""
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    times: list[float] = []

    class Tick(Callback):
        """Marks the beginning of each batch."""

        def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
            """Mark the time."""
            times.append(clock())

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, callbacks=[Tick()], devices=1, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader([data] * (steps + 1), batch_size=None))  # type: ignore[arg-type]
    return [later - earlier for earlier, later in pairwise(times)]


def update(folder: str, rows: int, steps: int, rounds: int) -> list[Row]:
    """Time the step of the module against that of the bare model."""
    data = batch(rows)
    module = CoDA(folder, dtype="float32", gradient_checkpointing=False)
    module.configure_model()

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def ours() -> float:
        return statistics.median(step_times(module, data, steps + 3, clock)[3:])

    def floor() -> float:
        encoded = module.encode(data["image"], data["prompt"], data["answer"])
        optimizer = torch.optim.AdamW(module.trainable_parameters(), lr=1e-4, weight_decay=0.0)
        times = []
        for _ in range(steps + 3):
            began = clock()
            module.model(**encoded, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(clock() - began)
        return statistics.median(times[3:])

    def encoding() -> float:
        return statistics.median(
            seconds(lambda: module.encode(data["image"], data["prompt"], data["answer"]), clock)[0]
            for _ in range(steps)
        )

    if torch.cuda.is_available():
        module.model.to("cuda")
    step, bare, encoded = in_turns(rounds, ours, floor, encoding)
    tokens = module.encode(data["image"], data["prompt"], data["answer"])["input_ids"].shape[1]
    shares = [e / b for e, b in zip(encoded, bare, strict=True)]
    return [
        (
            f"update of {rows} x {tokens} tokens",
            f"{1000 * statistics.median(step):.0f} ms",
            "processor time on the CPU",
        ),
        ("  step / floor", spread([s / b for s, b in zip(step, bare, strict=True)], 3), "<= 1.05"),
        ("  of which encoding of pictures and texts / floor", spread(shares, 3), ""),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("all", "scores", "embeddings", "generation", "update", "resume")
    parser.add_argument("--part", choices=parts, default="all", help="what to time")
    numbers = {
        "rounds": (5, "repetitions, of which the median counts"),
        "attributes": (200, "attributes of the scores"),
        "images": (100, "images on either side of the scores"),
        "pairs": (3, "pairs of the run"),
        "num-images": (20, "synthetic images of each concept and kind in the run"),
        "questions": (64, "questions of each kind of the generation"),
        "batch-size": (16, "questions in a batch of the generation"),
        "rows": (2, "rows of a batch of the update"),
        "steps": (10, "steps of the update in a round"),
        "hidden-size": (320, "width of the language model of generation and update"),
        "layers": (5, "layers of that language model"),
    }
    for name, (usual, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{what} (default: {usual})")
    options = parser.parse_args()
    for name in numbers:
        if getattr(options, name.replace("-", "_")) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name.replace('-', '_'))}")
    warnings.filterwarnings("ignore")
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{date.today()}, {device}, {torch.get_num_threads()} threads, {versions}", flush=True)

    def show(rows: Sequence[Row]) -> None:
        for what, found, asked in rows:
            print(f"{what:52}{found:44}{asked}", flush=True)

    part = options.part
    if part in ("all", "scores"):
        show(scores(options.attributes, options.images, options.rounds))
    if part in ("all", "embeddings", "resume"):
        show(runs(part, options.pairs, options.num_images, options.rounds))
    if part in ("all", "generation", "update"):
        texts = [
            part["text"]
            for asked in questions(15).values()
            for one in asked
            for part in one.messages[0]["content"]
            if "text" in part
        ]
        with tempfile.TemporaryDirectory() as folder:
            size = save_llava(folder, options.hidden_size, options.layers, texts)
            show([(f"LLaVA-NeXT of {size / 1e6:.1f} M parameters", "", "")])
            if part != "update":
                show(generation(folder, options.questions, options.batch_size, options.rounds))
            if part != "generation":
                show(update(folder, options.rows, options.steps, options.rounds))


if __name__ == "__main__":
    main()
