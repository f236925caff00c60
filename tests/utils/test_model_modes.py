"""Context managers: every flag comes back, at the right time, also after an exception."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import EOT, LinfPGD
from lit_modules.defenses import BPDA
from lit_modules.utils.model_modes import evaluation_mode, modules_of, no_parameter_gradients


def network() -> nn.Sequential:
    """A training network with a frozen batch normalisation and a frozen weight."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Linear(4, 3))
    model.train()
    model[1][0].eval()
    model[0].weight.requires_grad_(False)
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


def test_each_module_gets_its_mode_back() -> None:
    model = network()
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before
    assert not model[1][0].training
    assert model[1].training


def test_each_parameter_gets_its_flag_back() -> None:
    model = network()
    before = flags(model)
    with no_parameter_gradients(model):
        assert not any(flags(model))
    assert flags(model) == before
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad


@pytest.mark.parametrize(("manager", "state"), [(evaluation_mode, modes), (no_parameter_gradients, flags)])
def test_exceptions_pass_and_leave_nothing_behind(
    manager: Callable[[object], AbstractContextManager[None]], state: Callable[[nn.Module], list[bool]]
) -> None:
    model = network()
    before = state(model)
    with pytest.raises(KeyError), manager(model):
        raise KeyError
    assert state(model) == before


@pytest.mark.parametrize(("manager", "state"), [(evaluation_mode, modes), (no_parameter_gradients, flags)])
def test_nothing_happens_before_entry(
    manager: Callable[[object], AbstractContextManager[None]], state: Callable[[nn.Module], list[bool]]
) -> None:
    model = network()
    before = state(model)
    context = manager(model)
    assert state(model) == before
    model.eval()
    model.requires_grad_(True)
    entered = state(model)
    with context:
        assert not any(state(model))
    assert state(model) == entered


@pytest.mark.parametrize(("manager", "state"), [(evaluation_mode, modes), (no_parameter_gradients, flags)])
def test_nested(
    manager: Callable[[object], AbstractContextManager[None]], state: Callable[[nn.Module], list[bool]]
) -> None:
    model = network()
    before = state(model)
    with manager(model):
        with manager(model):
            assert not any(state(model))
        assert not any(state(model))
    assert state(model) == before


def test_shared_modules_and_parameters() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with evaluation_mode(model), no_parameter_gradients(model):
        assert not layer.training
        assert not layer.weight.requires_grad
    assert layer.training
    assert layer.weight.requires_grad


def test_other_callables_are_left_alone() -> None:
    with evaluation_mode(torch.relu), no_parameter_gradients(torch.relu):
        pass


def test_batch_statistics_do_not_move() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).train()
    with evaluation_mode(model):
        model(torch.randn(8, 4))
    assert int(model[0].num_batches_tracked) == 0


GLOBAL_NETWORK = network()


class Holder:
    """A classifier that is no module."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.nets = {"one": [net]}

    def answer(self, x: Tensor) -> Tensor:
        return self.net(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.nets["one"][0](x)


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def hide(how: str, net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Hide a module in a callable."""
    holder = Holder(net)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "closure": lambda x: net(x * 1.0),
        "default": lambda x, net=net: net(x),
        "inner function": lambda x: (lambda z: net(z))(x),
        "list": lambda x, nets=(net,): sum(one(x) for one in nets),
        "bound method": holder.answer,
        "method of the module": net.forward,
        "object": holder,
        "closure over an object": lambda x: holder.net(x),
        "partial": partial(lambda net, x: net(x), net),
        "partial of a keyword": partial(lambda x, net: net(x), net=net),
        "module": Wrapped(lambda x: net(x)),
        "mean": EOT(lambda x: net(x), num_samples=2),
        "BPDA": nn.Sequential(BPDA(lambda x: net(x))),
    }
    return ways[how]


WAYS = [
    *("closure", "default", "inner function", "list", "bound method", "method of the module", "object"),
    *("closure over an object", "partial", "partial of a keyword", "module", "mean", "BPDA"),
]


@pytest.mark.parametrize("how", WAYS)
def test_a_hidden_module_is_found(how: str) -> None:
    model = network()
    hidden, before = hide(how, model), (modes(model), flags(model))
    assert set(model.modules()) <= set(modules_of(hidden))
    with evaluation_mode(hidden), no_parameter_gradients(hidden):
        assert not any(modes(model) + flags(model))
    assert (modes(model), flags(model)) == before


def test_a_global_module_is_found() -> None:
    assert GLOBAL_NETWORK in modules_of(lambda x: GLOBAL_NETWORK(x))
    assert modules_of(torch.relu) == modules_of(lambda x: x) == modules_of(None) == []


@pytest.mark.parametrize("how", [way for way in WAYS if way != "BPDA"])
def test_a_hidden_training_network_is_attacked_as_it_is_tested(how: str) -> None:
    torch.manual_seed(0)
    model, x = network(), torch.rand(6, 4)
    model[1][0].train()
    model[1][0].running_mean.fill_(0.3)
    mean = model[1][0].running_mean.clone()
    attack = LinfPGD(eps=0.3, steps=3, step_size=0.1)
    expected = attack.run(model.eval(), x)
    model.train()
    result = attack.run(hide(how, model), x)
    assert torch.equal(model[1][0].running_mean, mean)
    assert model.training
    assert torch.allclose(result.adversarial, expected.adversarial, atol=1e-6)
    with pytest.raises(ValueError, match="in training mode and answers the same samples differently"):
        LinfPGD(model_mode="keep")(lambda z: model(z), x)
