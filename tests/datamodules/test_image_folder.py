"""Pictures in a folder per class: order, labels, sizes, splits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as transforms

from datamodules import ImageFolder
from datamodules.variants import Saturate
from lit_modules import StandardTraining
from tests.small_runs import quiet_trainer

CLASSES = ("adder", "bee", "cat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve training and six test pictures of three classes, in several sizes and formats."""
    for part, number in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            (tmp_path / part / name / "more").mkdir(parents=True)
            for place in range(number):
                pixels = np.random.default_rng(10 * label + place).integers(0, 256, (30 + place, 40, 3), dtype=np.uint8)
                folder = tmp_path / part / name
                Image.fromarray(pixels).save(
                    folder / f"{place}.png" if place else folder / "more" / "0.JPEG", quality=95
                )
    (tmp_path / "train" / "adder" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def small(folder: Path, /, **arguments: Any) -> ImageFolder:
    return ImageFolder(**{"root": str(folder), "image_size": 16, "validation_size": 3, "batch_size": 4, **arguments})


def test_batches_hold_the_pictures_as_torchvision_prepares_them(root: Path) -> None:
    data = small(root, resize_size=20)
    assert data.classes == CLASSES
    assert (data.num_classes, data.channels, data.image_size) == (3, 3, 16)
    chosen = data.split("train")
    batch = chosen[range(len(chosen))]
    assert {name: tuple(column.shape) for name, column in batch.items()} == {
        "image": (9, 3, 16, 16),
        "label": (9,),
        "index": (9,),
    }
    paths = chosen.images.paths  # type: ignore[attr-defined]
    for path, image, label in zip(paths, batch["image"], batch["label"], strict=True):
        assert CLASSES[int(label)] in path.parts
        picture = transforms.center_crop(transforms.resize(Image.open(path), 20), 16)
        assert image.equal(transforms.to_tensor(picture))


def test_order_is_fixed_and_of_all_classes(root: Path) -> None:
    first, again = (small(root, seed=seed).split("train") for seed in (0, 1))
    assert first.images.paths == again.images.paths  # type: ignore[attr-defined]
    labels = torch.cat([small(root).split(name).labels for name in ("validation", "train")])
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels.tolist() != sorted(labels.tolist())
    subset = small(root, test_size=4).split("test")
    assert len(subset) == 4


def test_classes_of_a_larger_set(root: Path) -> None:
    names = root / "names.txt"
    names.write_text("zebra\ncat\nbee\nadder\n\n")
    data = small(root, classes=str(names))
    assert data.num_classes == 4
    assert set(data.split("test").labels.tolist()) == {1, 2, 3}


def test_a_part_alone_will_do(root: Path) -> None:
    (root / "train").rename(root / "val")
    data = small(root, test_folder="val")
    data.setup("test")
    assert sum(len(batch["label"]) for batch in data.test_dataloader()) == 12
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*train of train pictures.*give `root` and"):
        data.setup("fit")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_with_augmentation_and_variant(root: Path, workers: int, tmp_path: Path) -> None:
    data = small(root, augment=True, variant=Saturate(4.0), num_workers=workers, interpolation="bicubic")
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(StandardTraining(nn.Sequential(nn.Flatten(), nn.Linear(768, 3))), data)
    assert trainer.global_step == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 4}, "image_size must be at least 5, got 4"),
        ({"resize_size": 8}, "resize_size must be at least 16, got 8"),
        ({"interpolation": "box"}, "interpolation must be of 'bilinear', 'bicubic', got 'box'"),
        ({"device": "cuda"}, "device must be 'cpu', as pictures are read from files, got 'cuda'"),
        ({"validation_size": 12}, "validation_size must be less than the 12 training images of ImageFolder, got 12"),
        (
            {"root": "nowhere"},
            "There is a folder for each class in neither nowhere/train nor nowhere/test; give `root`",
        ),
        ({"classes": "nowhere.txt"}, "There is no file nowhere.txt for classes"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(root, **arguments).setup("fit")


def test_bad_files(root: Path) -> None:
    names = root / "names.txt"
    for text, message in (
        ("cat\nbee\n", "must hold folders of the 2 classes, got adder; give all names in `classes`"),
        ("cat\ncat\n", "must hold at least two names, each once, got 'cat' twice"),
        ("cat\n", "must hold at least two names, each once, got 1 names"),
    ):
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            small(root, classes=str(names)).setup("fit")
    next((root / "test").rglob("1.png")).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"1.png is no picture: it is named .png and begins with b'<html>'"):
        list(small(root).test_dataloader())
