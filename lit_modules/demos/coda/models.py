"""Small models that ``lit-modules demo coda`` starts from: a CLIP that sees attributes, and a ResNet to be taught."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lit_modules.datamodules import drawn
from lit_modules.demos.shipped import load_weights, save_weights
from lit_modules.demos.stages import quiet
from lit_modules.utils.folders import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIZE = 64
PICTURES = 15_000
CLIP_STEPS, RESNET_STEPS = 2500, 700
PHRASES = [list(values.values()) for values in drawn.creatures.PHRASES.values()]
WIDTHS = [24, 48, 96, 160]


def train_models(folder: Path, seed: int = 0) -> None:
    """Train both models on creatures with attributes at random, in all habitats and in none, and save their weights.

    Args:
        folder: Folder of the weights, in the form of :func:`~lit_modules.demos.shipped.save_weights`.
        seed: Seed of pictures, weights and order.
    """
    from rich.console import Console

    from lit_modules.networks import attribute_accuracy, train_clip
    from lit_modules.utils.random_state import preserved_random_state

    console = Console()
    images, values = draw_creatures(PICTURES, seed)
    fresh = draw_creatures(1000, seed + 1)
    with preserved_random_state(seed=seed):
        clip, processor = build_clip()
    with _bar(console, "CLIP", CLIP_STEPS) as watch:
        train_clip(clip, processor, images, values, phrases=PHRASES, num_steps=CLIP_STEPS, seed=seed, watch=watch)
    right = attribute_accuracy(clip, processor, *fresh, phrases=PHRASES)
    console.print(f"On new drawings the CLIP names {sum(right) / len(right):.1%} of the attributes.")
    save_weights(clip.state_dict(), "coda/clip", folder)
    with preserved_random_state(seed=seed), _bar(console, "ResNet", RESNET_STEPS) as watch:
        resnet, accuracy = _train_resnet(images, values, fresh, watch=watch)
    console.print(f"The ResNet, with a linear layer on its features, names {accuracy:.1%}.")
    save_weights(resnet.state_dict(), "coda/resnet", folder)


def write_models(folder: Path, weights: Path | None = None) -> None:
    """Write both models as folders ``clip`` and ``resnet``, as the Auto classes load them, unless they are there.

    Args:
        folder: Folder to write to.
        weights: Folder of the weights; the shipped ones by default.
    """
    if not (folder / "clip" / "config.json").exists():
        clip, processor = build_clip()
        clip.load_state_dict(load_weights("coda/clip", weights))
        with quiet(), whole_folder(folder / "clip") as part:
            clip.save_pretrained(part)
            processor.save_pretrained(part)
    if not (folder / "resnet" / "config.json").exists():
        resnet = build_resnet()
        resnet.resnet.load_state_dict(load_weights("coda/resnet", weights))
        with quiet(), whole_folder(folder / "resnet") as part:
            resnet.save_pretrained(part)


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


@contextmanager
def _bar(console: Any, name: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Show the progress of a training, with its loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task(name, total=total, loss=float("nan"))
        yield lambda number, loss: bar.update(task, completed=number, loss=loss)
