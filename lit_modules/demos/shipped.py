"""Weights that the demonstrations start from: small, in float16, in ``weights/`` of this package, with checksums."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from lit_modules.utils.files import whole_file, write_whole
from lit_modules.utils.hashing import hash_file

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED = files("lit_modules.demos") / "weights"
CHECKSUMS = "SHA256SUMS"


def load_weights(name: str, folder: Path | None = None) -> "dict[str, Tensor]":
    """Load weights, in float32.

    Args:
        name: File without its suffix, such as ``synthia/base``.
        folder: Folder that :func:`save_weights` wrote to; the shipped ones by default.

    Returns:
        Tensors by name.

    Raises:
        ValueError: If the file is not the one that the checksum was made of.
    """
    from safetensors.torch import load_file

    with as_file(SHIPPED if folder is None else folder) as source:
        path = source / f"{name}.safetensors"
        expected = _read_checksums(source)[path.relative_to(source).as_posix()]
        if (got := hash_file(path)) != expected:
            raise ValueError(f"{path} has the SHA-256 {got}, {CHECKSUMS} says {expected}; install the package again.")
        return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}


def save_weights(weights: "Mapping[str, Tensor]", name: str, folder: Path) -> Path:
    """Save weights in float16, with their checksum, in the form of the shipped ones.

    Args:
        weights: Tensors by name; those that are not floating-point are kept as they are.
        name: File without its suffix.
        folder: Folder to write to.

    Returns:
        The file.
    """
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    small = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    with whole_file(path) as part:
        save_file({key: value.contiguous() for key, value in small.items()}, part)
    checksums = _read_checksums(folder) | {path.relative_to(folder).as_posix(): hash_file(path)}
    write_whole(folder / CHECKSUMS, "".join(f"{checksum}  {file}\n" for file, checksum in sorted(checksums.items())))
    return path


def _read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file; none if the folder has no list."""
    path = folder / CHECKSUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {file: checksum for checksum, file in (line.split("  ") for line in lines)}
