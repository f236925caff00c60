"""Where a model lies: its input follows it, logits and gradients come back to the samples; what importing needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_modules.attacks import APGD, EOT, FiniteDifference, LinfPGD, Square
from lit_modules.attacks.engine.state import Oracle
from lit_modules.networks import PixelClassifier
from tests.attacks.helpers import convolutional, images

ROOT = Path(__file__).resolve().parent.parent.parent


class Split(nn.Module):
    """Two layers, each on a device of its own."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 16, device=first), nn.Linear(16, 5, device=second)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1)).relu()
        return self.second(hidden.to(self.second.weight.device))


@pytest.mark.parametrize("samples", ["cpu", "cuda:1"])
@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: PixelClassifier(model, mean=[0.5, 0.5], std=[0.2, 0.2]), EOT]
)
def test_input_follows_a_model_over_several_devices(wrap: Any, samples: str) -> None:
    """Devices that torch pretends to have: it knows of each tensor where it lies, and refuses to mix them."""
    with FakeTensorMode():
        model = wrap(Split("cuda:0", "cuda:1"))
        x = torch.rand(3, 2, 4, 6, device=samples, requires_grad=True)
        with pytest.raises(RuntimeError, match="device"):
            model(x)
        oracle = Oracle(model, x)
        assert oracle.device == torch.device("cuda:0")
        logits = oracle(x)  # the backward pass needs real devices
        assert logits.device == torch.device(samples)
        assert logits.shape == (3, 5)
        assert logits.requires_grad


def test_estimated_gradient_over_several_devices() -> None:
    with FakeTensorMode():
        x = torch.rand(3, 2, 4, 6, device="cuda:0")
        model = FiniteDifference(Split("cuda:0", "cuda:1"), max_batch=10**6)
        assert model(x).device == torch.device("cuda:0")
        gradient = model.estimate(x, torch.ones_like(model(x)))
        assert (gradient.device, gradient.shape) == (torch.device("cuda:0"), x.shape)


@pytest.mark.parametrize("offload", ["disk_offload", "cpu_offload"])
def test_model_that_accelerate_loads_layer_by_layer(offload: str, tmp_path: Path) -> None:
    """Its parameters lie on meta between the calls, and its samples must not go there."""
    accelerate = pytest.importorskip("accelerate")
    model, x = convolutional(), images()
    y = model(x).argmax(1)
    attacks = [LinfPGD(eps=0.1, steps=3), APGD(eps=0.1, steps=3), Square(eps=0.1, queries=20)]
    expected = [attack(model, x, y) for attack in attacks]
    folder = {"offload_dir": str(tmp_path)} if offload == "disk_offload" else {}
    getattr(accelerate, offload)(model, execution_device=torch.device("cpu"), **folder)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for attack, adversarial in zip(attacks, expected, strict=True):
        torch.testing.assert_close(attack(model, x, y), adversarial)


def test_function_places_its_input_itself() -> None:
    model = convolutional()
    assert Oracle(lambda x: model(x), images()).device == torch.device("cpu")
    with FakeTensorMode():
        far = nn.Linear(4, 3, device="cuda:0")
        assert Oracle(lambda x: far(x), torch.rand(2, 4)).device == torch.device("cpu")


def test_attacks_need_neither_transformers_nor_lightning() -> None:
    code = """
import sys
for name in ("transformers", "lightning", "torchvision", "timm", "peft", "diffusers", "accelerate"):
    sys.modules[name] = None  # an import of it fails
import torch, lit_modules.attacks as attacks
for name in attacks.__all__:
    getattr(attacks, name)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
x = torch.rand(4, 3, 4, 4)
print(attacks.AutoAttack(eps=0.1).run(net, x).robust)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'clean': 4" in done.stdout
