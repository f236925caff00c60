"""Context managers: every flag comes back, at the right time, also after an exception."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from lit_modules.attacks.contexts import evaluation_mode, no_parameter_gradients


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
