"""The image classifiers: sizes, shapes, formulas, gradients, and what they refuse."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.networks import LeNet5, Normalise, PerImageStandardise, PreActResNet18, WideResNet


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: LeNet5("madry"), 3_274_634),
        (lambda: LeNet5("small"), 648_226),
        (lambda: LeNet5("madry", width=0.125), 4 * 25 + 4 + 8 * 4 * 25 + 8 + 49 * 8 * 128 + 128 + 128 * 10 + 10),
        (lambda: WideResNet(28, 10), 36_479_194),
        (lambda: WideResNet(), 5_849_050),
        (lambda: PreActResNet18(), 11_172_170),
    ],
)
def test_numbers_of_parameters(network: Any, expected: int) -> None:
    assert sum(parameter.numel() for parameter in network().parameters()) == expected


@pytest.mark.parametrize(
    ("network", "classes", "shape"),
    [
        (lambda: LeNet5("small", image_size=8), 10, (1, 8, 8)),
        (lambda: LeNet5("madry", width=0.25, num_classes=7, image_size=30, channels=3), 7, (3, 30, 30)),
        (lambda: WideResNet(10, 0.25, num_classes=7), 7, (3, 16, 16)),
        (lambda: WideResNet(16, 1, channels=1, standardise=False), 10, (1, 8, 8)),
        (lambda: PreActResNet18(width=4), 10, (3, 16, 16)),
        (lambda: PreActResNet18(width=4, channels=1, mean=None, std=None), 10, (1, 8, 8)),
    ],
)
def test_logits_and_gradients(network: Any, classes: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = network()
    images = torch.rand(4, *shape, requires_grad=True)
    logits = model(images)
    assert logits.shape == (4, classes)
    F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)).backward()
    assert images.grad is not None
    assert bool((images.grad.flatten(1).abs().sum(1) > 0).all())
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    alone = torch.cat([model(images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-4)


def test_wide_resnet_has_the_layers_of_the_paper() -> None:
    torch.manual_seed(0)
    model = WideResNet(28, 4)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = [module for module in convolutions if module.kernel_size == (1, 1)]
    assert len(convolutions) - len(shortcuts) == 1 + 3 * 4 * 2
    assert [(module.in_channels, module.out_channels) for module in shortcuts] == [(16, 64), (64, 128), (128, 256)]
    for module in convolutions:
        assert module.bias is None
        expected = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1)


def test_shortcut_starts_after_the_first_activation() -> None:
    torch.manual_seed(0)
    block: Any = WideResNet(10, 1).eval().features.get_submodule("group2.0")
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        block.conv2.weight.zero_()
        activated = F.relu(block.norm1(x))
        torch.testing.assert_close(block(x), F.conv2d(activated, block.shortcut.weight, stride=2))


def test_per_image_standardisation() -> None:
    images = torch.rand(3, 3, 4, 5)
    images[2] = 0.3
    images[2, 0, 0, 0] += 0.01  # nearly flat: the bound counts
    standardised = PerImageStandardise()(images)
    for image, result in zip(images, standardised, strict=True):
        torch.testing.assert_close(result, (image - image.mean()) / max(float(image.std()), 1 / math.sqrt(60)))
    flat = torch.full((1, 3, 4, 4), 0.3, requires_grad=True)
    PerImageStandardise()(flat).pow(2).sum().backward()
    assert bool(flat.grad.isfinite().all())


def test_normalise() -> None:
    layer = Normalise((0.5, 0.25), (0.5, 0.125))
    images: Tensor = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    assert layer(images).flatten().tolist() == [1, 2]
    assert layer.state_dict() == {}
    assert layer.double()(images.double()).dtype == torch.float64
    model, bare = PreActResNet18(width=2), PreActResNet18(width=2, mean=None, std=None)
    bare.load_state_dict(model.state_dict())
    pixels = torch.rand(2, 3, 8, 8)
    normalised = Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))(pixels)
    torch.testing.assert_close(model.eval()(pixels), bare.eval()(normalised))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LeNet5("large"), "variant must be 'madry' or 'small', got 'large'"),  # type: ignore[arg-type]
        (lambda: LeNet5(width=0.01), "width must be at least 1/32, .* got 0.01"),
        (lambda: LeNet5(image_size=3), "image_size must be at least 4, as it is halved twice, got 3"),
        (lambda: LeNet5(num_classes=1), "at least 1 channel and 2 classes, got channels=1 and num_classes=1"),
        (lambda: LeNet5()(torch.rand(2, 1, 8, 8)), r"takes images of shape \(batch, 1, 28, 28\), got \(2, 1, 8, 8\)"),
        (lambda: WideResNet(depth=20), r"depth must be 6 n \+ 4 with n of at least 1, such as 10, 16 or 28, got 20"),
        (lambda: WideResNet(width=0.05), "width must be at least 1/16, .* got 0.05"),
        (lambda: PreActResNet18(channels=1), "a number for each of the 1 channels, got mean"),
        (lambda: PreActResNet18(mean=None), "mean and std must be given both or neither, got mean=None"),
        (lambda: Normalise([0.5], [0.0]), r"std must be positive, got \(0.0,\)"),
        (lambda: Normalise([0.5], []), "a number for each channel, got 1 and 0 numbers"),
        (lambda: Normalise([0.5], [1.0])(torch.rand(2, 3, 4, 4)), r"must have 1 channels, .* got the shape \(2, 3, 4"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
