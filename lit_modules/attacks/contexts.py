"""Context managers that leave a model as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a module in evaluation mode; on exit give each submodule the mode it had.

    A frozen batch normalisation inside a training network stays frozen. Anything that is no module is left alone.

    Args:
        model: Module, or any callable.
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def no_parameter_gradients(model: object) -> Iterator[None]:
    """Let no parameter ask for a gradient; on exit give each parameter the flag it had.

    Args:
        model: Module, or any callable.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()] if isinstance(model, nn.Module) else []
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
