"""Hashes of the behaviour of objects: class and code, attributes, tensors."""

import copyreg
import enum
import functools
import hashlib
import logging
import random
import site
import struct
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

_OWN = ("lit_modules", "datamodules", "callbacks")
_LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {*site.getsitepackages()}
)
_PLAIN = (type(None), bool, int, complex, str, bytes, bytearray, type(Ellipsis), type(NotImplemented))
_CLASS_BOOKKEEPING = {"__dict__", "__doc__", "__module__", "__weakref__", "__firstlineno__", "__static_attributes__"}


class UnidentifiableError(ValueError):
    """An object without a hash: its place and the reason."""


def identify(value: object, name: str = "value") -> str:
    """Return a hash of the behaviour of an object, the same in every process.

    Plain values and tensors count by value, containers by their items, other objects by their class and all their
    attributes. Functions and classes of the user count by their code, with defaults, closures and the global names
    that they use; those of an installed library by name and version, those of this project by the sources of their
    package. Modules of torch count by parameters, buffers (also those that a checkpoint leaves out), submodules, hooks
    and plain attributes, not by mode, device, or whether a parameter is trained.

    Args:
        value: Object, such as a model or an attack.
        name: What errors call it.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnidentifiableError: If something in it cannot be told from another: a random generator, an open file or
            connection, an object of a compiled library that does not say what it is made of.

    Example:
        >>> first, second = (lambda x, k=k: x * k for k in (1, 2))
        >>> identify(first) == identify(second)
        False
    """
    try:
        return _Walk().digest(value, name).hex()
    except RecursionError:
        raise UnidentifiableError(f"{name} is nested too deeply to be told from another.") from None


class _Walk:
    """One walk through an object, whose methods yield its parts; a part that was met before is not walked again."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[object, bytes]] = {}  # the object is kept, so that its id stays its own
        self.open: dict[int, int] = {}

    def digest(self, value: object, path: str) -> bytes:
        if isinstance(value, _PLAIN) or type(value) is float:
            text = struct.pack("d", value) if type(value) is float else repr(value).encode()
            return _hash(type(value).__qualname__, text)
        key = id(value)
        if key in self.done:
            return self.done[key][1]
        if key in self.open:
            return _hash("above", str(len(self.open) - self.open[key]))
        self.open[key] = len(self.open)
        digest = _hash(*self.parts(value, path))
        del self.open[key]
        self.done[key] = (value, digest)
        return digest

    def parts(self, value: Any, path: str) -> Iterator[str | bytes]:
        import torch

        if isinstance(value, torch.Tensor):
            yield from _tensor(value, path)
        elif isinstance(value, (torch.Generator, random.Random)):
            raise UnidentifiableError(f"{path} is a random generator, whose next numbers depend on what was drawn.")
        elif isinstance(value, torch.nn.Module):
            yield from self.module(value, path)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif isinstance(value, logging.Logger):
            yield value.name
        elif isinstance(value, PurePath):
            yield str(value)
        elif isinstance(value, enum.Enum):
            yield self.digest(type(value), path)
            yield value.name
        elif isinstance(value, type):
            yield from self.type(value, path)
        elif isinstance(value, types.FunctionType):
            yield from self.function(value, path)
        elif isinstance(value, types.MethodType):
            yield from (self.digest(value.__func__, path), self.digest(value.__self__, path))
        elif isinstance(value, (staticmethod, classmethod)):
            yield from (type(value).__name__, self.digest(value.__func__, path))
        elif isinstance(value, property):
            yield "property"
            yield from (self.digest(part, path) for part in (value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.partial):
            yield from ("partial", self.digest((value.func, value.args, value.keywords), path))
        elif isinstance(value, types.CodeType):
            yield from self.code(value, path)
        elif isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            yield from (str(value.__module__), value.__qualname__)
            yield b"" if owner is None or isinstance(owner, types.ModuleType) else self.digest(owner, path)
        elif isinstance(value, dict):
            yield from self.object_of(value, path)
            for number, (key, item) in enumerate(value.items()):
                yield self.digest(key, f"{path} key {number}")
                yield self.digest(item, f"{path}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            yield from self.object_of(value, path)
            yield from (self.digest(item, f"{path}[{number}]") for number, item in enumerate(value))
        elif isinstance(value, (set, frozenset)):
            yield from self.object_of(value, path)
            yield from sorted(self.digest(item, f"item of {path}") for item in value)
        else:
            yield from self.other(value, path)

    def module(self, value: Any, path: str) -> Iterator[str | bytes]:
        import torch

        if isinstance(value, torch.jit.ScriptModule):
            raise UnidentifiableError(f"{path} is compiled by TorchScript, whose code is not looked at.")
        inner = value._modules.get("_orig_mod")
        if inner is not None and type(value).__module__.startswith("torch."):
            yield from ("compiled", self.digest(inner, path))  # torch.compile keeps what the module computes
            return
        if isinstance(value, torch.fx.GraphModule):
            yield from ("graph", value.code)  # all that it computes; its nodes carry notes of how it was made
            yield from self.state(value, path)
            return
        yield self.digest(type(value), path)
        yield from self.state(value, path)
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            for number, hook in enumerate(getattr(value, kind).values()):
                yield from (kind, self.digest(hook, f"{path}.{kind}[{number}]"))
        lightning: Any = sys.modules.get("lightning.pytorch")
        is_lightning = lightning is not None and isinstance(value, lightning.LightningModule)
        yield from self.attributes(value, path, _bookkeeping(is_lightning))

    def state(self, value: Any, path: str) -> Iterator[str | bytes]:
        """Yield names and values of a module's parameters, buffers and submodules."""
        for kind in ("_parameters", "_buffers", "_modules"):
            for name, item in getattr(value, kind).items():
                if name != "_guards_fn":  # of torch.export: it checks the shape of the input
                    yield from (name, self.digest(item, f"{path}.{name}"))

    def object_of(self, value: object, path: str) -> Iterator[str | bytes]:
        yield self.digest(type(value), path)
        yield from self.attributes(value, path)

    def other(self, value: Any, path: str) -> Iterator[str | bytes]:
        kind = type(value)
        if isinstance(value, types.GenericAlias) or kind.__module__ == "typing":
            yield repr(value)
        elif isinstance(value, types.MappingProxyType):
            yield self.digest(dict(value), path)
        elif isinstance(value, Iterator) or kind.__module__.startswith("numpy.random"):
            raise UnidentifiableError(f"{path} is a {kind.__qualname__}, which gives something else each time.")
        elif hasattr(value, "__dict__") and _written_in_python(kind):
            yield self.digest(kind, path)
            yield from self.attributes(value, path)
        elif hasattr(value, "__wrapped__"):  # functools.cache
            yield from (kind.__qualname__, self.digest(value.__wrapped__, path))
        else:
            yield from self.reduced(value, path)

    def reduced(self, value: Any, path: str) -> Iterator[str | bytes]:
        """Yield the parts by which an object of a compiled class is copied."""
        kind = type(value)
        try:
            registered = copyreg.dispatch_table.get(kind)
            reduced = registered(value) if registered is not None else value.__reduce_ex__(2)
        except Exception:  # whatever a foreign class raises where it cannot be copied
            raise UnidentifiableError(
                f"{path} is of {kind.__module__}.{kind.__qualname__}, which does not say what it is made of."
            ) from None
        if isinstance(reduced, str):
            yield from (str(getattr(value, "__module__", None) or kind.__module__), reduced)
            return
        for part in reduced:
            whole = tuple(part) if isinstance(part, Iterator) else part
            yield self.digest(whole, f"{path} ({kind.__name__})")

    def attributes(self, value: object, path: str, without: Iterable[str] = ()) -> Iterator[str | bytes]:
        """Yield names and values of an object's attributes, in the order of their names."""
        attributes = dict(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    attributes[name] = getattr(value, name)
        for name in sorted(attributes.keys() - set(without)):
            yield from (name, self.digest(attributes[name], f"{path}.{name}"))

    def type(self, value: type, path: str) -> Iterator[str | bytes]:
        yield from (value.__module__, value.__qualname__)
        version = _version(value.__module__)
        if version is not None:
            yield version
            return
        yield from (self.digest(base, path) for base in value.__bases__)
        for name, item in sorted(value.__dict__.items()):
            if (
                name in _CLASS_BOOKKEEPING
                or name.startswith("_abc_")
                or isinstance(item, (types.MemberDescriptorType, types.GetSetDescriptorType))
            ):
                continue
            yield from (name, self.digest(item, f"{value.__qualname__}.{name}"))

    def function(self, value: types.FunctionType, path: str) -> Iterator[str | bytes]:
        yield from (str(value.__module__), value.__qualname__)
        version = _version(str(value.__module__))
        if version is None:
            yield self.digest(value.__code__, path)
            yield from self.globals(value)
        else:
            yield version
        yield self.digest((value.__defaults__, value.__kwdefaults__), f"defaults of {path}")
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            yield from (name, self.digest(content, f"{name} in {path}"))
        yield from self.attributes(value, path)

    def globals(self, value: types.FunctionType) -> Iterator[str | bytes]:
        """Yield the global values that the code of a function names, also those of the user's modules."""
        names = _names(value.__code__)
        for name in sorted(names & value.__globals__.keys()):
            item = value.__globals__[name]
            yield from (name, self.digest(item, name))
            if isinstance(item, types.ModuleType) and _version(item.__name__) is None:
                inner = vars(item)
                yield from (self.digest(inner[part], f"{name}.{part}") for part in sorted(names & inner.keys()))

    def code(self, value: types.CodeType, path: str) -> Iterator[str | bytes]:
        yield from (str(sys.implementation.cache_tag), value.co_code, value.co_exceptiontable)
        yield from (" ".join(value.co_names), " ".join(value.co_varnames))
        yield from (self.digest(constant, path) for constant in value.co_consts)


def _hash(*parts: str | bytes) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)
    return total.digest()


def _tensor(value: Any, path: str) -> Iterator[str | bytes]:
    import torch

    tensor = value.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UnidentifiableError(f"{path} is a tensor without plain values, {tensor.layout} {tensor.dtype}.")
    yield from (str(tensor.dtype), str(tuple(tensor.shape)))
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    yield memoryview(plain.view(torch.uint8).numpy())  # type: ignore[misc]


def _names(code: types.CodeType) -> set[str]:
    """Return the global and attribute names of code and of the functions within it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _written_in_python(kind: type) -> bool:
    """Return whether all that objects of a class hold lies in their attributes."""
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & (1 << 9) or isinstance(base.__dict__.get("__new__"), types.BuiltinFunctionType):
            return False
    return True


@functools.cache
def _bookkeeping(lightning: bool) -> frozenset[str]:
    """Return the names of the attributes of every module, which say nothing of what it computes."""
    import torch

    base: Any = torch.nn.Module
    if lightning:
        from lightning.pytorch import LightningModule

        base = LightningModule
    compiled = {
        "_compiled_call_impl",
        "_is_torch_compile",
        "_compile_kwargs",
    }  # by torch, and by lightning's torch.compile
    return frozenset({*vars(base()), *compiled})


@functools.cache
def _version(module: str) -> str | None:
    """Return the version of a module's code; ``None`` for the user's, whose code is hashed itself."""
    top = module.partition(".")[0]
    if top in _OWN and module in sys.modules:
        folder = Path(str(sys.modules[module].__file__)).parent
        return _hash(*(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hex()
    loaded = sys.modules.get(top)
    file = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
    if file is None:
        return sys.version if top in sys.stdlib_module_names else None
    return str(getattr(loaded, "__version__", sys.version)) if file.startswith(_LIBRARIES) else None
