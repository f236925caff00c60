"""Small models that ``lit-modules demo coda`` starts from: a CLIP that sees attributes, and two models to be taught."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lit_modules.datamodules import drawn
from lit_modules.demos.coda.lessons import PHRASES
from lit_modules.demos.shipped import load_weights, save_weights
from lit_modules.demos.stages import quiet
from lit_modules.utils.folders import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIZE = 64
PICTURES = 15_000
CLIP_STEPS, RESNET_STEPS = 2500, 700
LLAVA_STEPS = (250, 850)
"""Steps of lessons that ask for all attributes, and then of lessons of all sorts."""
WIDTHS = [24, 48, 96, 160]
_ELSEWHERE = ("model.vision_tower.", "lm_head.")  # weights that are the CLIP's, or the embeddings
_BYTES = 262  # tokens of a tokenizer without merges: 256 bytes and 6 special ones


def train_models(folder: Path, seed: int = 0) -> None:
    """Train the models on creatures with attributes at random, in all habitats and in none, and save their weights.

    A model whose weights the folder holds is not trained again.

    Args:
        folder: Folder of the weights, in the form of :func:`~lit_modules.demos.shipped.save_weights`.
        seed: Seed of pictures, weights, order and lessons.
    """
    from rich.console import Console

    from lit_modules.networks import attribute_accuracy, train_clip
    from lit_modules.utils.random_state import preserved_random_state

    missing = [name for name in ("clip", "resnet", "llava") if not (folder / "coda" / f"{name}.safetensors").exists()]
    if not missing:
        return
    console = Console()
    images, values = draw_creatures(PICTURES, seed)
    fresh = draw_creatures(1000, seed + 1)
    if "clip" in missing:
        with preserved_random_state(seed=seed):
            clip, processor = build_clip()
        with _bar(console, "CLIP", CLIP_STEPS) as watch:
            train_clip(clip, processor, images, values, phrases=PHRASES, num_steps=CLIP_STEPS, seed=seed, watch=watch)
        right = attribute_accuracy(clip, processor, *fresh, phrases=PHRASES)
        console.print(f"On new drawings the CLIP names {sum(right) / len(right):.1%} of the attributes.")
        save_weights(clip.state_dict(), "coda/clip", folder)
    if "resnet" in missing:
        with preserved_random_state(seed=seed), _bar(console, "ResNet", RESNET_STEPS) as watch:
            resnet, accuracy = _train_resnet(images, values, fresh, watch=watch)
        console.print(f"The ResNet, with a linear layer on its features, names {accuracy:.1%}.")
        save_weights(resnet.state_dict(), "coda/resnet", folder)
    if "llava" in missing:
        with preserved_random_state(seed=seed), _bar(console, "LLaVA-NeXT", sum(LLAVA_STEPS)) as watch:
            llava, shares = _train_llava(images, values, fresh, weights=folder, seed=seed, watch=watch)
        console.print(f"The LLaVA-NeXT answers {', '.join(f'{sort} {share:.1%}' for sort, share in shares.items())}.")
        own = {name: value for name, value in llava.state_dict().items() if not name.startswith(_ELSEWHERE)}
        save_weights(own, "coda/llava", folder)


def write_models(folder: Path, weights: Path | None = None) -> None:
    """Write the models as folders ``clip``, ``resnet`` and ``llava``, as the Auto classes load them, unless they exist.

    Args:
        folder: Folder to write to.
        weights: Folder of the weights; the shipped ones by default.
    """
    if not (folder / "clip" / "config.json").exists():
        clip, processor = _load_clip(weights)
        with quiet(), whole_folder(folder / "clip") as part:
            clip.save_pretrained(part)
            processor.save_pretrained(part)
    if not (folder / "resnet" / "config.json").exists():
        resnet = build_resnet()
        resnet.resnet.load_state_dict(load_weights("coda/resnet", weights))
        with quiet(), whole_folder(folder / "resnet") as part:
            resnet.save_pretrained(part)
    if not (folder / "llava" / "config.json").exists():
        llava, processor = build_llava(*_load_clip(weights))
        there = {name: value for name, value in llava.state_dict().items() if name.startswith(_ELSEWHERE)}
        llava.load_state_dict(there | load_weights("coda/llava", weights))
        with quiet(), whole_folder(folder / "llava") as part:
            llava.save_pretrained(part)
            processor.save_pretrained(part)


def draw_creatures(number: int, seed: int) -> "tuple[Tensor, Tensor]":
    """Draw creatures with attributes at random, each fifth before a plain background and others in any habitat.

    Returns:
        Pictures, uint8 ``(number, 3, size, size)``, and the place of each attribute's value, ``(number, attributes)``.
    """
    import torch

    options = drawn.creatures.ATTRIBUTES
    keys = [f"{seed}/pretraining/{index}" for index in range(number)]
    looks = [drawn.creatures.random_attributes(Random(key)) for key in keys]
    places = [None, *drawn.creatures.HABITATS]
    habitats = [places[index % len(places)] for index in range(number)]
    images = drawn.creatures.render_creatures(looks, keys, IMAGE_SIZE, habitats)
    values = [[options[name].index(value) for name, value in look.items()] for look in looks]
    return torch.from_numpy(images), torch.tensor(values)


def build_clip() -> tuple[Any, Any]:
    """Return a CLIP with random weights, and its processor with a tokenizer trained on the phrases of attributes."""
    from lit_modules.networks import build_clip

    return build_clip([phrase for group in PHRASES for phrase in group], IMAGE_SIZE)


def build_resnet() -> Any:
    """Return a ResNet classifier with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=WIDTHS[0], hidden_sizes=WIDTHS, depths=[1] * len(WIDTHS), layer_type="basic")
    return ResNetForImageClassification(config)


def build_llava(clip: Any, clip_processor: Any) -> tuple[Any, Any]:
    """Return a LLaVA-NeXT around the vision tower of a CLIP, with other weights at random, and its processor.

    Names, phrases and the fixed parts of questions are one token each, and all other text is read byte by byte.
    """
    from lit_modules.demos.coda.lessons import whole_texts
    from lit_modules.networks import build_llava

    return build_llava(clip, clip_processor, texts=(), whole=whole_texts(), vocab_size=_BYTES)


def _load_clip(weights: Path | None) -> tuple[Any, Any]:
    clip, processor = build_clip()
    clip.load_state_dict(load_weights("coda/clip", weights))
    return clip, processor


def _train_resnet(
    images: "Tensor", values: "Tensor", fresh: "tuple[Tensor, Tensor]", watch: Callable[[int, float], None]
) -> tuple[Any, float]:
    """Return the trunk, trained to name attributes through a linear layer, and the share named on new pictures."""
    import torch
    import torch.nn.functional as F

    trunk = build_resnet().resnet
    sizes = [len(group) for group in PHRASES]
    head = torch.nn.Linear(WIDTHS[-1], sum(sizes))

    def scores(pictures: "Tensor") -> "tuple[Tensor, ...]":
        logits: Tensor = head(trunk(pictures.float() / 127.5 - 1).pooler_output.flatten(1))
        return torch.split(logits, sizes, 1)

    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=RESNET_STEPS)
    trunk.train()
    for number in range(RESNET_STEPS):
        chosen = torch.randint(len(images), (100,))
        pictures = images[chosen].flip(3) if number % 2 else images[chosen]
        rows = [F.cross_entropy(row, values[chosen, index]) for index, row in enumerate(scores(pictures))]
        loss = torch.stack(rows).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        watch(number + 1, loss.item())
    trunk.eval()
    with torch.no_grad():
        named = torch.cat(
            [torch.stack([row.argmax(1) for row in scores(part)], 1) for part in torch.split(fresh[0], 250)]
        )
    return trunk, float((named == fresh[1]).float().mean())


def _train_llava(
    images: "Tensor",
    values: "Tensor",
    fresh: "tuple[Tensor, Tensor]",
    *,
    weights: Path,
    seed: int,
    watch: Callable[[int, float], None],
) -> tuple[Any, Mapping[str, float]]:
    """Return the model, and by sort of lesson the share of right answers on new pictures."""
    from lit_modules.demos.coda.lessons import Lessons
    from lit_modules.networks import train_llava

    model, processor = build_llava(*_load_clip(weights))
    lessons = Lessons(values.tolist())
    first, second = LLAVA_STEPS
    describe = partial(lessons.draw, "describe")
    train_llava(model, processor, images, describe, num_steps=first, seed=seed, watch=watch)
    train_llava(
        model,
        processor,
        images,
        lessons,
        num_steps=second,
        seed=seed + 1,
        watch=lambda number, loss: watch(first + number, loss),
    )
    return model, answered(model, processor, *fresh)


def answered(model: Any, processor: Any, images: "Tensor", values: "Tensor", number: int = 256) -> dict[str, float]:
    """Return by sort of lesson the share of right answers, of single phrases where the question asks for many.

    Args:
        model: LLaVA-NeXT.
        processor: Its processor.
        images: Pictures, as :func:`draw_creatures` returns them.
        values: Values of their attributes.
        number: Lessons of each sort.
    """
    import torch

    from lit_modules.demos.coda.lessons import WEIGHTS, Lessons
    from lit_modules.networks.tiny_llava import encode_lessons

    lessons, random = Lessons(values.tolist()), Random("answered")
    between = processor.tokenizer.convert_tokens_to_ids([", ", processor.tokenizer.eos_token])
    shares = {}
    for sort in WEIGHTS:
        batch = encode_lessons(processor, [lessons.draw(sort, random) for _ in range(number)], images)
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            chosen = model(**batch, use_cache=False).logits[:, :-1].argmax(2)
        asked = (labels >= 0) & ~torch.isin(labels, torch.tensor(between))
        right = (chosen == labels) | ~asked
        shares[sort] = float((right[asked] if sort == "describe" else right.all(1)).float().mean())
    return shares


@contextmanager
def _bar(console: Any, name: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show the progress of a training, with its loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task(name, total=total, loss=float("nan"))
        yield lambda number, loss: bar.update(task, completed=number, loss=loss)
