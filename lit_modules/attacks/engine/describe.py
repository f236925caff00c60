"""Texts of arguments that differ where the arguments do."""

from __future__ import annotations

from types import FunctionType

from torch import Tensor, nn

from lit_modules.utils.fingerprint import UnidentifiableError, identify

_SHOWN = 16  # most numbers of a tensor that are written out


def describe(value: object) -> str:
    """Return the text of an argument; of arguments that act otherwise it differs.

    Numbers, texts, containers and small tensors are written out; losses, modules and large tensors carry the beginning
    of the hash of what they are. What cannot be told from another one keeps its own text.

    Args:
        value: Argument of an attack.

    Example:
        >>> import torch
        >>> describe((torch.tensor(0.5), 1.0))
        '(tensor(0.5, dtype=torch.float32), 1.0)'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Tensor):
        if value.numel() <= _SHOWN:
            return f"tensor({value.tolist()!r}, dtype={value.dtype})"
        return f"tensor(shape={tuple(value.shape)}, dtype={value.dtype}, hash={identify(value)[:16]})"
    if value is None or isinstance(value, bool | int | float | str) or type(value).__module__.startswith(__package__):
        return repr(value)
    kind = value if isinstance(value, FunctionType) else type(value)
    name = repr(value) if isinstance(value, nn.Module) else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return f"{name}#{identify(value)[:16]}"
    except UnidentifiableError:
        return repr(value)
