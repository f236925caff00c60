"""The image sets: batches, splits, variants, augmentation, resume, file layouts, damaged files."""

import gzip
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from datamodules import CIFAR10, MNIST, Digits, FashionMNIST
from datamodules.images.base import AugmentedSampler, ImageDataModule, shift_and_flip
from datamodules.images.mnist import read_idx
from datamodules.variants import Resize, Smooth, Variant
from tests.small_runs import OneWeight, quiet_trainer

NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def idx(array: Any) -> bytes:
    array = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def random_bytes(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def mnist_files(tmp_path: Path) -> Path:
    """Four packed files, of 30 training and 12 test images."""
    for number, (part, size) in enumerate((("train", 30), ("t10k", 12))):
        for kind, array in (
            ("images-idx3", random_bytes(number, size, 28, 28)),
            ("labels-idx1", np.arange(size) % 10),
        ):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


@pytest.fixture
def cifar_file(tmp_path: Path) -> Path:
    """One packed file, of 30 training and 12 test images."""
    path = tmp_path / "some.npz"
    arrays = {f"{part}_images": random_bytes(size, size, 32, 32, 3) for part, size in (("train", 30), ("test", 12))}
    np.savez(path, **arrays, train_labels=np.arange(30) % 10, test_labels=np.arange(12) % 10)
    return path


def everything(data: ImageDataModule, split: str) -> dict[str, Tensor]:
    chosen = data.split(split)
    return chosen[range(len(chosen))]


def test_batches_keep_the_contract() -> None:
    data = Digits(batch_size=50, eval_batch_size=150)
    for stage, loader, sizes in (
        ("fit", data.train_dataloader, [50] * 24),
        ("validate", data.val_dataloader, [150, 50]),
        ("test", data.test_dataloader, [150, 150, 97]),
        ("predict", data.predict_dataloader, [150, 150, 97]),
    ):
        data.setup(stage)
        batches = list(loader())
        assert [len(batch["label"]) for batch in batches] == sizes
        for batch in batches:
            types = {name: column.dtype for name, column in batch.items()}
            assert types == {"image": torch.float32, "index": torch.int64, "label": torch.int64}
            assert batch["image"].shape[1:] == (data.channels, data.image_size, data.image_size) == (1, 8, 8)
            assert 0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1
    assert float(everything(data, "train")["image"].max()) == 1


def test_digits_are_split_once_and_for_all() -> None:
    first, second = Digits(seed=0), Digits(seed=1)
    for split, size in (("train", 1200), ("validation", 200), ("test", 397)):
        batch = everything(first, split)
        assert len(batch["label"]) == size
        assert torch.equal(batch["image"], everything(second, split)["image"])
        assert batch["label"].bincount(minlength=10).min() >= 0.06 * size  # every class is there
    pixels = torch.cat([everything(first, split)["image"] for split in ("train", "validation", "test")])
    assert len(pixels) == 1797
    assert pixels[:1400].mean().item() == pytest.approx(first.mean[0], abs=1e-4)
    assert pixels[:1400].std().item() == pytest.approx(first.std[0], abs=1e-4)


def test_splits_are_the_first_images_of_the_files(mnist_files: Path) -> None:
    files = read_idx(mnist_files / f"{NAMES[0]}.gz")
    data = MNIST(str(mnist_files), validation_size=8, train_size=10, test_size=5)
    assert torch.equal(data.split("validation").images[:, 0], files[:8])
    train = everything(data, "train")
    torch.testing.assert_close(train["image"][:, 0], files[8:18] / 255, rtol=0, atol=0)
    assert train["label"].tolist() == [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]
    assert train["index"].tolist() == list(range(10))
    assert everything(data, "test")["label"].tolist() == [0, 1, 2, 3, 4]
    assert len(MNIST(str(mnist_files), validation_size=8, test_split="train").test_dataloader().dataset) == 22  # type: ignore[arg-type]
    data = MNIST(str(mnist_files), validation_size=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.split("train")) == 30
    with pytest.raises(ValueError, match="no validation split, as validation_size is 0"):
        data.split("validation")


def test_the_order_is_a_function_of_the_seed() -> None:
    orders = [
        torch.cat([batch["index"] for batch in Digits(seed=seed).train_dataloader()]).tolist() for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(1200))
    assert torch.cat([batch["index"] for batch in Digits().val_dataloader()]).tolist() == list(range(200))


def test_a_variant_changes_all_splits_and_the_facts() -> None:
    plain, small = Digits(), Digits(variant=Resize(5))
    assert (small.image_size, small.channels) == (5, 1)
    assert "variant" not in small.hparams
    for split in ("train", "validation", "test"):
        images, expected = everything(small, split)["image"], Resize(5)(everything(plain, split)["image"])
        torch.testing.assert_close(images, expected)


class Bright(Variant):
    def change(self, images: Tensor) -> Tensor:
        return images + 0.25 * images.amax((-1, -2), keepdim=True)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (lambda images: images + 1.5, r"must return images within \[0, 1\], got values from 1.5 to 1.5 .*clamp"),
        (lambda images: images[:, :, :4], r"must return floats of shape \(1, channel, size, size\), got torch.float32"),
        (Bright(), r"from [0-9.]+ to 1.25 from Bright\(\); let it end with .clamp\(0, 1\)"),  # on real images alone
    ],
)
def test_variant_that_breaks_the_rules(variant: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(iter(Digits(variant=variant).train_dataloader()))
    with pytest.raises(TypeError, match="variant must be a callable from images to images, got 'Smooth'"):
        Digits(variant="Smooth")  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_shifts_and_flips_are_crops_of_the_padded_images(padding: int) -> None:
    shifts = 2 * padding + 1
    draws = torch.arange(2 * shifts**2)
    images = torch.rand(len(draws), 2, 6, 6, generator=torch.Generator().manual_seed(0))
    padded = F.pad(images, (padding,) * 4, mode="reflect") if padding else images
    changed = shift_and_flip(images, draws, padding)
    for draw in draws.tolist():
        row, column, flip = draw % shifts, draw // shifts % shifts, draw // shifts**2
        crop = padded[draw, :, row : row + 6, column : column + 6]
        assert torch.equal(changed[draw], crop.flip(-1) if flip else crop)


def test_augmentation_is_for_training_alone(cifar_file: Path) -> None:
    data = CIFAR10(str(cifar_file), validation_size=10)
    assert data.augment
    plain = everything(data, "train")["image"]
    epochs = []
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append(next(iter(loader)))
    same = [torch.equal(image, plain[i]) for i, image in zip(epochs[0]["index"], epochs[0]["image"], strict=True)]
    assert sum(same) < 5
    assert not torch.equal(epochs[0]["image"].sort(0).values, epochs[1]["image"].sort(0).values)
    assert torch.equal(next(iter(data.val_dataloader()))["image"], everything(data, "validation")["image"])
    off = next(iter(CIFAR10(str(cifar_file), validation_size=10, augment=False).train_dataloader()))
    assert torch.equal(off["image"], plain[off["index"]])


def test_devices_augment_as_one_device_does() -> None:
    one = [pair for batch in AugmentedSampler(20, 8, seed=3, choices=162) for pair in batch]
    two = [list(AugmentedSampler(20, 4, 3, rank, 2, choices=162)) for rank in (0, 1)]
    assert [pair for parts in zip(*two, strict=True) for part in parts for pair in part] == one
    draws = [draw for _, draw in one]
    assert max(draws) < 162
    assert len(set(draws)) > 10
    assert one != [pair for batch in AugmentedSampler(20, 8, seed=4, choices=162) for pair in batch]


class Sums(OneWeight):
    """Keeps the index of each image and the sum of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.seen += zip(batch["index"].tolist(), batch["image"].double().flatten(1).sum(1).tolist(), strict=True)
        return self.layer.weight.sum()


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_images(tmp_path: Path) -> None:
    def train(steps: int, resume: Path | None = None, num_workers: int = 0) -> list[tuple[int, float]]:
        module, trainer = Sums(), quiet_trainer(tmp_path, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        data = Digits(batch_size=16, train_size=64, augment=True, variant=Smooth(2), num_workers=num_workers)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.seen

    whole = train(7)
    assert [*train(5), *train(7, tmp_path / "5.ckpt", num_workers=1)] == whole
    assert whole[:48] != whole[64:]


@pytest.mark.parametrize("layout", ["packed", "unpacked", "torchvision"])
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_layouts_of_idx_files(kind: type[MNIST], layout: str, mnist_files: Path) -> None:
    expected = everything(kind(str(mnist_files), validation_size=8), "train")
    folder = mnist_files / kind.__name__ / "raw" if layout == "torchvision" else mnist_files
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        packed = mnist_files / f"{name}.gz"
        if layout == "unpacked":
            (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
        else:
            packed.rename(folder / packed.name)
    batch = everything(kind(str(mnist_files), validation_size=8), "train")
    assert torch.equal(batch["image"], expected["image"])


def test_cifar_as_one_file_and_as_batches(cifar_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = np.load(cifar_file)
    folder = tmp_path / "other" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    contents: list[tuple[str, dict[str, Any]]] = [
        ("data_batch_1", {"data": arrays["train_images"].transpose(0, 3, 1, 2).reshape(30, -1)}),
        ("test_batch", {"data": arrays["test_images"].transpose(0, 3, 1, 2).reshape(12, -1)}),
        ("batches.meta", {"label_names": list("abcdefghij")}),
    ]
    for name, content in contents:
        if "data" in content:
            content["labels"] = [number % 10 for number in range(len(content["data"]))]
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
    for split in ("train", "validation", "test"):
        one, two, batches = (
            everything(CIFAR10(str(root), validation_size=10), split)
            for root in (cifar_file, tmp_path, tmp_path / "other")
        )
        for key in ("image", "label"):
            assert torch.equal(one[key], two[key])
            assert torch.equal(one[key], batches[key])
    first = everything(CIFAR10(str(cifar_file), validation_size=10), "test")["image"][0]
    torch.testing.assert_close(first, torch.from_numpy(arrays["test_images"][0]).permute(2, 0, 1) / 255)
    (folder / "test_batch").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"test_batch must have the MD5 .*, got .*; move it away to download it again"):
        CIFAR10(str(tmp_path / "other")).setup("fit")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MNIST, r"none must hold train-images-idx3-ubyte.gz and .* MNIST/raw, and .* are missing; give `root`, or let"),
        (FashionMNIST, r"FashionMNIST/raw, and .* are missing; give `root`, or let `download: true` .* http"),
        (CIFAR10, r"none must hold cifar-10-batches-py, and data_batch_1, .* are missing there, or one .npz with"),
    ],
)
def test_missing_files(kind: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        kind(str(tmp_path / "none")).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.npz"):
        CIFAR10(str(tmp_path / "none.npz")).setup("fit")


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / f"{name}.gz").write_bytes(content)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / f"{name}.gz").write_bytes((folder / f"{name}.gz").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(NAMES[0]), "train-images-idx3-ubyte.gz is damaged: .*; get it again"),
        (write(NAMES[0], gzip.compress(b"<html>")), "must be an idx file of unsigned bytes, got one that begins with"),
        (
            write(NAMES[0], gzip.compress(idx(np.zeros((30, 28, 28)))[:-5])),
            r"must hold 23520 values of the shape \(30, 28, 28\), got 23515; get it again",
        ),
        (write(NAMES[0], gzip.compress(idx(np.zeros((30, 8, 8))))), r"images of 28 x 28 pixels, got .*\(30, 8, 8\)"),
        (write(NAMES[1], gzip.compress(idx(np.zeros(29)))), "got 29 labels of 30 images"),
        (write(NAMES[1], gzip.compress(idx([3] * 7 + [10] * 23))), "labels from 0 to 9, got 10 for image 7"),
    ],
)
def test_damaged_idx_files(damage: Callable[[Path], Any], message: str, mnist_files: Path) -> None:
    damage(mnist_files)
    with pytest.raises(ValueError, match=message):
        MNIST(str(mnist_files), validation_size=8).setup("fit")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must hold train_images and train_labels, and train_images and train_labels is not there"),
        ({"train_images": np.zeros((2, 3, 32, 32), np.uint8), "train_labels": [0, 1]}, r"uint8 of shape \(n, 32, 32"),
        ({"train_images": np.zeros((2, 32, 32, 3), np.uint8), "train_labels": [0, -1]}, "got -1 for image 1"),
        ({"train_images": np.zeros((2, 32, 32, 3), object), "train_labels": [0, 1]}, "is no .npz file or is damaged"),
    ],
)
def test_malformed_npz(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        CIFAR10(str(tmp_path), validation_size=1).setup("fit")


def test_damaged_npz_and_two_of_them(cifar_file: Path) -> None:
    cifar_file.write_bytes(cifar_file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"some.npz is no .npz file or is damaged: .*; get it again"):
        CIFAR10(str(cifar_file)).setup("fit")
    (cifar_file.parent / "more.npz").touch()
    with pytest.raises(ValueError, match=r"must hold one .npz file, got more.npz, some.npz"):
        CIFAR10(str(cifar_file.parent)).setup("fit")


@pytest.fixture
def server(mnist_files: Path) -> Iterator[str]:
    """Serves the four files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mnist_files)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(server: str, mnist_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = [(f"{name}.gz", md5((mnist_files / f"{name}.gz").read_bytes()).hexdigest()) for name in NAMES]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server])
    data = MNIST(str(tmp_path / "new"), download=True, validation_size=8)
    data.prepare_data()
    data.prepare_data()
    assert len(data.split("train")) == 22
    wrong = tmp_path / "new" / "MNIST" / "raw" / f"{NAMES[1]}.gz"
    wrong.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz must have the MD5 .*, got .*; move it away"):
        data.prepare_data()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server}missing/"])
    with pytest.raises(ConnectionError, match="MNIST cannot be downloaded: Error downloading train-images"):
        MNIST(str(tmp_path / "none"), download=True).prepare_data()


def test_real_files_have_their_checksums(data_folder: Path) -> None:
    root = data_folder / "mnist"
    if not root.is_dir():
        pytest.skip(f"no real MNIST in {root}")
    data = MNIST(str(root), download=True)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [55000, 5000, 10000]
    pixels = data.split("train").images[:1000].float() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"validation_size": 1400}, "validation_size must be less than the 1400 training images of Digits, got 1400"),
        ({"train_size": 1201}, "train_size must be at most the 1200 images that Digits has, got 1201"),
        ({"test_split": "dev"}, "test_split must be of 'train', 'validation', 'test', got 'dev'"),
        ({"device": "gpu0"}, "device must be a device of torch such as 'cpu' or 'cuda', got 'gpu0'"),
        ({"device": "cuda", "num_workers": 2}, "num_workers must be 0 if the set is kept on cuda, got 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        data = Digits(**arguments)
        data.setup("fit")
        data.setup("test")


@pytest.mark.gpu
def test_the_set_may_stay_on_the_gpu() -> None:
    here, there = (Digits(device=device, augment=True, variant=Smooth(3)) for device in ("cpu", "cuda"))
    for one, two in zip(here.train_dataloader(), there.train_dataloader(), strict=True):
        assert two["image"].is_cuda
        assert torch.equal(one["index"], two["index"].cpu())
        torch.testing.assert_close(one["image"], two["image"].cpu())
