"""Hashes of content, and seeds made of them, that are the same in every process and on every machine."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def stable_hash(*parts: object) -> str:
    """Return the SHA-256 of values, whatever process or machine asks.

    The values are written as JSON with sorted keys, so ``("a/b", "c")`` and ``("a", "b/c")`` differ.

    Args:
        parts: Texts, numbers, truth values, ``None``, and lists, tuples and mappings of these.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If a value is of another type, whose text may change from run to run.
        ValueError: If a number is not finite.

    Example:
        >>> stable_hash("Puff Adder", 3)[:16]
        '5c6b316982ea4e38'
    """
    text = json.dumps(_plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stable_seed(*parts: object) -> int:
    """Return a seed from values: the first 31 bits of their hash, which every generator and server takes.

    Example:
        >>> stable_seed(0, "pair", "direction", "visual", "images", 7)
        343857759
    """
    return int(stable_hash(*parts)[:8], 16) >> 1


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's whole content, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: str | Path) -> str:
    """Return the SHA-256 of the names and whole contents of a folder's files, hidden ones left out.

    All that lies below it counts; moving the folder does not change it.
    """
    root, total = Path(folder), hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()}\0{hash_file(path)}\n".encode())
    return total.hexdigest()


def hash_tensors(tensors: Mapping[str, "Tensor"] | Iterable[tuple[str, "Tensor"]]) -> str:
    """Return the SHA-256 of named tensors, such as a ``state_dict``: their order, names, types, shapes and values.

    Example:
        >>> import torch
        >>> hash_tensors({"x": torch.zeros(2)}) == hash_tensors({"x": torch.zeros(2, 1)})
        False
    """
    import torch

    total = hashlib.sha256()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"Keys must be texts to have a stable hash, got {sorted(map(repr, value))}.")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner) for inner in value]
    raise TypeError(
        f"Only texts, numbers, truth values, None, lists and mappings have a stable hash, got {type(value).__name__}; "
        "give its text or its bytes' hash."
    )
