"""BPDA: which backward pass counts, registration, several inputs, pickling, compilation; and transforms in a model."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.pgd import LinfPGD
from lit_modules.defenses import BPDA, BitSqueezing, MeanSmoothing, Preprocess

X = torch.tensor([[0.2, 0.7, 1.4]])
ONES = torch.ones_like(X)


def scaled_round(x: Tensor, scale: float = 1.0) -> Tensor:
    return (x * scale).round()


def scaled(x: Tensor, scale: float = 1.0) -> Tensor:
    return x * scale


def tenfold(inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    return gradients[0] * 10


def gradient(module: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(point, **arguments).sum(), point)
    return slope


@pytest.mark.parametrize(
    ("layer", "arguments", "expected"),
    [
        (BPDA(scaled_round), {}, ONES),
        (BPDA(scaled_round, substitute=torch.sin), {}, X.cos()),
        (BPDA(scaled_round, backward=tenfold), {}, 10 * ONES),
        (BPDA(scaled_round, backward=tenfold, substitute=torch.sin), {}, 10 * ONES),
        (BPDA(scaled_round, substitute=scaled), {"scale": 3.0}, 3 * ONES),
        (BPDA(lambda x: x.view(3), backward=lambda inputs, gradients: gradients[0].view(1, 3)), {}, ONES),
    ],
)
def test_precedence_and_keyword_arguments(layer: BPDA, arguments: dict[str, float], expected: Tensor) -> None:
    assert torch.equal(layer(X, **arguments), layer.function(X, **arguments))
    assert torch.equal(gradient(layer, X, **arguments), expected)


def test_several_inputs_and_outputs() -> None:
    a, b = X.clone().requires_grad_(), (X * 2).requires_grad_()
    BPDA(lambda a, b: (a + b).round())(a, b).sum().backward()
    assert torch.equal(a.grad, ONES)
    assert torch.equal(b.grad, ONES)
    layer = BPDA(lambda a, b: (a.round(), b.round()), substitute=lambda a, b: (a * b, a - b))
    first, second = layer(a, b)
    slopes = torch.autograd.grad(first.sum() + 2 * second.sum(), (a, b))
    assert torch.allclose(slopes[0], b + 2)
    assert torch.allclose(slopes[1], a - 2)


def test_unused_and_integer_inputs_get_no_gradient() -> None:
    a = X.clone().requires_grad_()
    layer = BPDA(lambda a, index: a[:, index].round(), substitute=lambda a, index: a[:, index] * 3)
    layer(a, torch.tensor([2, 0])).sum().backward()
    assert a.grad.tolist() == [[3.0, 0.0, 3.0]]


def test_modules_are_registered_and_their_parameters_receive_no_gradient() -> None:
    layer = BPDA(nn.Linear(3, 3), substitute=nn.Linear(3, 3))
    assert set(layer.state_dict()) == {f"{m}.{p}" for m in ("function", "substitute") for p in ("weight", "bias")}
    assert layer.to(torch.float64).function.weight.dtype == torch.float64
    assert not layer.eval().function.training
    x = X.double().requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.substitute.weight.sum(0, keepdim=True))
    assert all(p.grad is None for p in layer.parameters())


def test_pickles() -> None:
    layer = BPDA(scaled_round, substitute=scaled)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(gradient(again, X, scale=2.0), gradient(layer, X, scale=2.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [BPDA(scaled_round), BPDA(BitSqueezing(2)), BPDA(scaled_round, substitute=scaled), BPDA(scaled_round, tenfold)],
    ids=["identity", "module", "substitute", "backward"],
)
def test_compiles(layer: BPDA) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.rand(2, 1, 3, 4)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert torch.allclose(gradient(compiled, x), gradient(model, x), atol=1e-6)


def test_inputs_returned_as_they_are() -> None:
    x = X.clone().requires_grad_()
    y = BPDA(lambda x: x)(x)
    assert torch.equal(y, x)
    assert y is not x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BPDA(3), TypeError, "forward of BPDA must be callable, got int"),  # type: ignore[arg-type]
        (lambda: BPDA(torch.round, substitute="x"), TypeError, "substitute of BPDA must be callable, got str"),  # type: ignore[arg-type]
        (lambda: Preprocess(None, nn.Identity()), TypeError, "transform must be callable, got NoneType"),  # type: ignore[arg-type]
        (
            lambda: gradient(BPDA(lambda x: x[:, :2]), X),
            ValueError,
            r"shape \(1, 2\) for an input of shape \(1, 3\).*backward= or substitute=",
        ),
        (
            lambda: gradient(BPDA(torch.round, backward=lambda i, g: (g[0], g[0])), X),
            ValueError,
            "gave 2 gradients for 1 inputs",
        ),
        (
            lambda: gradient(BPDA(torch.round, substitute=lambda x: x[:, :2]), X),
            ValueError,
            r"substitute of BPDA gives shapes \[\(1, 2\)\]",
        ),
    ],
)
def test_refusals(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_preprocess_puts_a_transform_in_the_model() -> None:
    classifier, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4)
    model = Preprocess(torch.sin, classifier)
    assert torch.equal(model(x), classifier(x.sin()))
    assert set(model.state_dict()) == {"classifier.1.weight", "classifier.1.bias"}
    assert "transform.kernel" in Preprocess(MeanSmoothing(3), classifier).state_dict()
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_attack_passes_a_wrapped_transform() -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x = 0.5 + 0.02 * torch.randn(16, 1, 4, 4)
    attack = LinfPGD(eps=0.4, steps=5, step_size=0.1)
    through = attack.run(Preprocess(BitSqueezing(8), classifier, bpda=True), x)
    plain = attack.run(classifier, x)
    assert bool(plain.success.any())
    assert torch.equal(through.success, plain.success)
