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


MANAGERS = pytest.mark.parametrize(("manager", "state"), [(evaluation_mode, modes), (no_parameter_gradients, flags)])
Manager = Callable[[object], AbstractContextManager[None]]
State = Callable[[nn.Module], list[bool]]


@MANAGERS
def test_each_flag_comes_back_also_nested_and_after_an_exception(manager: Manager, state: State) -> None:
    model = network()
    before = state(model)
    assert len(set(before)) == 2
    with manager(model):
        with manager(model):
            assert not any(state(model))
        assert not any(state(model))
    assert state(model) == before
    with pytest.raises(KeyError), manager(model):
        raise KeyError
    assert state(model) == before


@MANAGERS
def test_nothing_happens_before_entry(manager: Manager, state: State) -> None:
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


def test_shared_layers_and_statistics_and_callables() -> None:
    layer = nn.BatchNorm1d(4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with evaluation_mode(model), no_parameter_gradients(model):
        model(torch.randn(8, 4))
        assert not layer.training
        assert not layer.weight.requires_grad
    assert layer.training
    assert layer.weight.requires_grad
    assert int(layer.num_batches_tracked) == 0
    with evaluation_mode(torch.relu), no_parameter_gradients(torch.relu):
        pass


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


def hidden(net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return callables that hide a module."""
    holder = Holder(net)
    return {
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


WAYS = list(hidden(network()))


@pytest.mark.parametrize("how", WAYS)
def test_a_hidden_module_is_found(how: str) -> None:
    model = network()
    function, before = hidden(model)[how], (modes(model), flags(model))
    assert set(model.modules()) <= set(modules_of(function))
    with evaluation_mode(function), no_parameter_gradients(function):
        assert not any(modes(model) + flags(model))
    assert (modes(model), flags(model)) == before


def test_a_global_module_is_found() -> None:
    assert GLOBAL_NETWORK in modules_of(lambda x: GLOBAL_NETWORK(x))
    assert modules_of(torch.relu) == modules_of(lambda x: x) == modules_of(None) == []


@pytest.mark.parametrize("how", ["closure", "object", "partial", "module", "mean"])
def test_a_hidden_training_network_is_attacked_as_it_is_tested(how: str) -> None:
    torch.manual_seed(0)
    model, x = network(), torch.rand(6, 4)
    model[1][0].train()
    model[1][0].running_mean.fill_(0.3)
    mean = model[1][0].running_mean.clone()
    attack = LinfPGD(eps=0.3, steps=3, step_size=0.1)
    expected = attack.run(model.eval(), x)
    model.train()
    result = attack.run(hidden(model)[how], x)
    assert torch.equal(model[1][0].running_mean, mean)
    assert model.training
    assert torch.allclose(result.adversarial, expected.adversarial, atol=1e-6)
    with pytest.raises(ValueError, match="in training mode and answers the same samples differently"):
        LinfPGD(model_mode="keep")(lambda z: model(z), x)
