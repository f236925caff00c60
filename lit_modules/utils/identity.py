"""Texts that tell values apart by what they are, and say when they cannot."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

_OURS = {"lit_modules", "callbacks", "datamodules"}
_LIBRARIES = {"torch", "torchvision", "torchmetrics", "lightning", "transformers", "numpy", *sys.stdlib_module_names}
_SHOWN = 16  # most numbers of a tensor that are written out


class Description(NamedTuple):
    """What a value is.

    Attributes:
        text: Text; of two values that differ in what is known of them, it differs.
        complete: Whether it says all that decides what the value does, in every process.
    """

    text: str
    complete: bool


@runtime_checkable
class Described(Protocol):
    """A value that describes itself."""

    def description(self) -> Description:
        """Return what the value is."""
        ...


def describe(value: object) -> Description:
    """Return what a value is: numbers, texts, containers, tensors, functions, modules, and objects made of these.

    Large tensors and weights are hashed. A function is told by its code and by what it finds outside itself (closure,
    defaults, globals), a class by its source; those of libraries by their names. What is built in C, open files,
    generators and the like are not told apart completely.

    Args:
        value: Any value.

    Example:
        >>> describe({"eps": 0.1, "bounds": (0, 1)})
        Description(text="{'eps': 0.1, 'bounds': (0, 1)}", complete=True)
        >>> describe(iter([])).complete
        False
    """
    return _Describer().describe(value)


def references(function: FunctionType) -> dict[str, object]:
    """Return by name what a function finds outside itself: closure, defaults, and globals, those of inner ones too.

    A global counts whose name stands in the code, be it as that of an attribute.
    """
    found: dict[str, object] = {}
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        found |= {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    found |= {f"default {number}": value for number, value in enumerate(function.__defaults__ or ())}
    return found | (function.__kwdefaults__ or {})


class _Describer:
    """One description; remembers what it is within, so that circles end."""

    def __init__(self) -> None:
        self.within: dict[int, object] = {}

    def describe(self, value: object) -> Description:
        if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str | bytes):
            return Description(repr(value), True)
        if id(value) in self.within:
            return Description("<again>", True)
        self.within[id(value)] = value
        try:
            return self._describe(value)
        finally:
            del self.within[id(value)]

    def _describe(self, value: object) -> Description:
        import torch

        if isinstance(value, Described) and not isinstance(value, type):
            return value.description()
        if isinstance(value, torch.Tensor):
            return Description(_tensor(value), True)
        if isinstance(value, torch.dtype | torch.device | torch.Size):
            return Description(str(value), True)
        if isinstance(value, list | tuple | set | frozenset):
            parts = [self.describe(part) for part in value]
            texts = [part.text for part in parts]
            if isinstance(value, list | tuple):
                left, right = "[]" if isinstance(value, list) else "()"
                inner = ", ".join(texts) + ("," if isinstance(value, tuple) and len(texts) == 1 else "")
            else:
                left, right, inner = "{", "}", ", ".join(sorted(texts))
            return Description(left + inner + right, all(part.complete for part in parts))
        if isinstance(value, Mapping):
            pairs = [(self.describe(key), self.describe(inner)) for key, inner in value.items()]
            text = ", ".join(f"{key.text}: {inner.text}" for key, inner in pairs)
            return Description(f"{{{text}}}", all(key.complete and inner.complete for key, inner in pairs))
        if isinstance(value, functools.partial):
            return self._call("partial", {"func": value.func, "args": value.args, "keywords": value.keywords})
        if isinstance(value, MethodType):
            owner = self.describe(value.__self__)
            return Description(f"{owner.text}.{value.__name__}", owner.complete)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, BuiltinFunctionType):
            known = isinstance(value.__self__, ModuleType | None)
            return Description(f"{value.__module__}.{value.__qualname__}", known)
        if isinstance(value, ModuleType):
            return Description(
                f"{value.__name__} {getattr(value, '__version__', '')}".strip(), _is_known(value.__name__)
            )
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        return self._object(value)

    def _call(self, name: str, parts: Mapping[str, object], known: bool = True) -> Description:
        described = {key: self.describe(part) for key, part in parts.items()}
        text = ", ".join(f"{key}={part.text}" for key, part in described.items())
        return Description(f"{name}({text})", known and all(part.complete for part in described.values()))

    def _function(self, function: FunctionType) -> Description:
        name = f"{function.__module__}.{function.__qualname__}"
        if _is_known(function.__module__) and "<" not in function.__qualname__:
            return Description(name, True)
        outside = self.describe(references(function))
        digest = hashlib.sha256(f"{_code(function.__code__)} {outside.text}".encode()).hexdigest()
        return Description(f"{name}#{digest[:16]}", outside.complete)

    def _class(self, kind: type) -> Description:
        name = f"{kind.__module__}.{kind.__qualname__}"
        texts, complete = [], True
        for base in kind.__mro__:
            if _is_known(base.__module__):
                continue
            try:
                texts.append(inspect.getsource(base))
            except (OSError, TypeError):  # typed in, or built in C
                complete = False
            methods = [part for part in vars(base).values() if isinstance(part, FunctionType)]
            for part in (self.describe(references(method)) for method in methods):
                texts.append(part.text)
                complete &= part.complete
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        return Description(f"{name}#{digest[:16]}" if texts else name, complete)

    def _module(self, module: object) -> Description:
        import torch

        assert isinstance(module, torch.nn.Module)
        kind = self.describe(type(module))
        own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        own |= dict(module.named_children())
        if not module.training:
            own["training"] = False
        own |= dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        hooks = any(vars(module).get(name) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
        return self._call(kind.text.removeprefix("torch.nn.modules."), own, known=kind.complete and not hooks)

    def _object(self, value: object) -> Description:
        kind = self.describe(type(value))
        ours = type(value).__module__.partition(".")[0]
        if not hasattr(value, "__dict__") or (_is_known(type(value).__module__) and ours not in _OURS):
            return Description(repr(value), False)
        return self._call(kind.text, vars(value), known=kind.complete)


def _is_known(module: str | None) -> bool:
    """Return whether a module's code belongs to a library, whose version decides it."""
    return str(module).partition(".")[0] in _LIBRARIES | _OURS and module != "__main__"


def _tensor(tensor: object) -> str:
    import torch

    from lit_modules.utils.hashing import hash_tensors

    assert isinstance(tensor, torch.Tensor)
    if tensor.numel() <= _SHOWN:
        return f"tensor({tensor.tolist()!r}, dtype={tensor.dtype})"
    return f"tensor(shape={tuple(tensor.shape)}, dtype={tensor.dtype}, sha256={hash_tensors({'': tensor})[:16]})"


def _code(code: CodeType) -> str:
    """Return what code does, without the places where it stands in a file."""
    constants = []
    for part in code.co_consts:
        if isinstance(part, CodeType):
            constants.append(_code(part))
        else:
            constants.append(repr(sorted(map(repr, part)) if isinstance(part, frozenset) else part))
    return " ".join([code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars, *constants])
