"""How a model is asked: layout, type, and where its answer has the logits."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import EOT, FGSM, FiniteDifference, LinfPGD, NESGradient, Square
from lit_modules.attacks.engine.state import Oracle, take_logits
from lit_modules.defenses import BPDA
from tests.attacks.helpers import Recorder
from tests.attacks.helpers import images as draw

INNERMOST = (288, 1, 24, 3)  # strides of a batch of 3 x 12 x 8 with the channels innermost


class Watched(nn.Module):
    """A convolutional classifier that remembers the strides of what it was given, and in which type."""

    def __init__(self, end: str = "reshape") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 10 * 6, 5)
        self.end, self.seen, self.types = end, [], []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        self.types.append(x.dtype)
        features = self.convolution(x).relu()
        if self.end == "storage":  # reads memory as it lies
            features = features.as_strided((len(x), 240), (240, 1))
        else:
            features = getattr(features, self.end)(len(x), -1)
        logits: Tensor = self.last(features)
        return logits


def images() -> Tensor:
    return draw(4, 3, 12, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_faster_layout_is_taken_where_it_is_safe(dtype: torch.dtype) -> None:
    model = Watched().eval().to(dtype)
    FGSM(eps=0.1)(model, images())
    assert model.types[-1] == dtype
    assert model.seen[0] == images().stride()
    assert model.seen[-1] == INNERMOST


@pytest.mark.parametrize("end", ["view", "storage"])
def test_the_own_layout_where_it_is_not(end: str) -> None:
    model, plain, x = Watched(end).eval(), Watched().eval(), images()
    attack = LinfPGD(eps=0.1, steps=3, random_start=False)
    assert torch.allclose(attack(model, x), attack(plain, x), atol=1e-6)
    assert model.seen[-1] == x.stride()


def test_a_backward_pass_that_refuses_the_layout() -> None:
    def backward(inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
        return gradients[0].view(-1).view_as(inputs[0])

    model = nn.Sequential(BPDA(lambda x: x * 1.0, backward), Watched("reshape")).eval()
    assert LinfPGD(eps=0.1, steps=2)(model, images()).shape == images().shape


def test_no_probe_where_passes_count_or_change_the_model() -> None:
    model = Recorder(Watched().eval())
    assert int(Square(eps=0.1, queries=5).run(model, images()).num_queries.sum()) == model.points
    training = nn.Sequential(nn.BatchNorm2d(3), Watched())
    LinfPGD(eps=0.1, steps=1, model_mode="keep", keep="last")(training, images(), torch.zeros(4, dtype=torch.int64))
    assert int(training[0].num_batches_tracked) == 1
    for wrapper in (FiniteDifference, NESGradient):
        inner = Watched().eval()
        Oracle(wrapper(inner), images(), probe=False)(images())
        assert len(inner.seen) == 1


def test_the_probe_moves_no_random_numbers() -> None:
    class Noisy(Watched):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.01 * torch.randn(x.shape))

    torch.manual_seed(5)
    first = FGSM(eps=0.1, keep="last")(Noisy().eval(), images())
    torch.manual_seed(5)
    plain = Noisy().eval()
    assert torch.allclose(first, FGSM(eps=0.1, keep="last")(lambda x: plain(x), images()), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_of_a_half_model_stay_half(dtype: torch.dtype) -> None:
    model = Watched().eval().to(dtype)
    adversarial = LinfPGD(eps=0.1, steps=3, step_size=0.05)(model, images().to(dtype))
    assert {*model.types, adversarial.dtype} == {dtype}


def test_an_error_of_the_model_itself_is_the_models() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        LinfPGD()(nn.Linear(3, 2).bfloat16(), torch.rand(2, 4))


@dataclass
class Output:
    logits: Any


Pair = namedtuple("Pair", ["loss", "logits"])


@pytest.mark.parametrize(
    "wrap",
    [
        Output,
        lambda logits: OrderedDict(loss=None, logits=logits),
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: Pair(None, logits),
    ],
)
def test_answers_that_hold_logits(wrap: Any) -> None:
    torch.manual_seed(0)
    net, x, attack = nn.Linear(4, 3), torch.rand(5, 4), LinfPGD(eps=0.1, steps=3)

    def model(z: Tensor) -> Any:
        return wrap(net(z))

    assert torch.equal(attack(model, x), attack(net, x))
    for wrapper in (EOT(model, num_samples=2), FiniteDifference(model), NESGradient(model)):
        assert attack(wrapper, x).shape == x.shape


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        ((torch.zeros(2, 3),), "got tuple; wrap it, as in"),
        ({"scores": torch.zeros(2, 3)}, "got dict with 'scores'"),
        (Output([0.0]), "got Output"),
    ],
)
def test_answers_without_logits_are_refused_in_a_sentence(answer: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"must give a tensor of logits, or an object or mapping .* {got}"):
        take_logits(answer)


def test_a_transformers_model() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    x = torch.rand(3, 3, 8, 8)
    result = LinfPGD(eps=0.5, steps=3, step_size=0.2).run(model, x)
    assert torch.equal(model(result.adversarial).logits.argmax(1) != model(x).logits.argmax(1), result.success)
