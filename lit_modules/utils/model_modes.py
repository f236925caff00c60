"""Contexts that change the mode of a model and leave it as they found it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType

from torch import nn
from torch.fx import GraphModule

_LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names}


def modules_of(model: object) -> list[nn.Module]:
    """Return the modules that a model calls, each once, those inside others included.

    A model that is no module itself may call some: the owner of a bound method, what a function closes over, takes as
    a default or finds among the globals of its file, the parts of a ``functools.partial``, the attributes of an object.
    A module's attributes that are functions are searched too.

    Args:
        model: Module, or any callable.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> modules_of(lambda x: net(x / 255))
        [Linear(in_features=4, out_features=3, bias=True)]
    """
    modules: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            for module in part.modules():
                modules.setdefault(id(module), module)
                seen.add(id(module))
                waiting += [value for value in vars(module).values() if _is_plain_callable(value)]
        elif isinstance(part, MethodType):
            waiting += [part.__self__, part.__func__]
        elif isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, FunctionType):
            if str(part.__module__).partition(".")[0] not in _LIBRARIES:
                waiting += _references(part)
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif not isinstance(part, type | ModuleType):
            values = getattr(part, "__dict__", {}).values()
            waiting += values if callable(part) else [value for value in values if isinstance(value, nn.Module)]
    return list(modules.values())


def _references(function: FunctionType) -> Iterator[object]:
    """Yield what a function finds outside itself: closure, defaults, and the globals that its code names."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _is_plain_callable(value: object) -> bool:
    return callable(value) and not isinstance(value, type | nn.Module)


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a model, or any callable (see :func:`modules_of`), in evaluation mode; on exit each module has its own again.

    A frozen batch normalisation inside a training network stays frozen.
    """
    modes = [(module, module.training) for module in modules_of(model)]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def release_modes(model: nn.Module) -> None:
    """Let the programs of ``torch.export`` in a model take ``train()`` and ``eval()``, which torch refuses them.

    A program computes the same in both modes, so that only flags change.
    """
    for module in model.modules():
        if isinstance(module, GraphModule):  # torch.export hides the methods of the class behind some that raise
            for name in ("train", "eval"):
                vars(module).pop(name, None)


@contextmanager
def no_parameter_gradients(model: object) -> Iterator[None]:
    """Let no parameter of a model or callable ask for a gradient; on exit give each the flag it had."""
    flags = [(p, p.requires_grad) for module in modules_of(model) for p in module.parameters(recurse=False)]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
