"""Checked opening of checkpoints, other files of torch, and pretrained weights; nothing in them is run."""

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
METADATA = ".metadata"
"""File in a folder of shards that tells what is where; torch unpickles it."""
_SHARD_TYPES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_PLAIN_TYPES = {("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("torch", "Size")}
_PLAIN_TYPES |= {("torch.serialization", "_get_layout")}
_KEYS = ("state_dict", "pytorch-lightning_version")


class DamagedFile(ValueError):
    """A file that is empty, cut off, or not one of torch."""


class UnsafeFile(ValueError):
    """A file that holds an object whose loading could run code."""


def load_plain(path: str | Path) -> Any:
    """Read a file that ``torch.save`` wrote, of tensors and plain values alone; nothing in it is run.

    Args:
        path: File on this machine; its tensors come to the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFile: If it is empty, cut off, or not a file of torch.
        UnsafeFile: If it holds an object whose loading could run code.
        ValueError: If it is an address or a folder.
    """
    if str(path).startswith(("http://", "https://")):
        raise ValueError(f"{path} is an address; download the file and give its path.")
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give a file in it{_beside(file)}.")
    if not file.exists():
        raise FileNotFoundError(f"There is no file {file}{_beside(file.parent)}.")
    if file.stat().st_size == 0:
        raise DamagedFile(f"{file} is empty, as of a run that was killed while it wrote; use another file.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        with file.open("rb") as content:
            start = content.read(2)
        if match is None and not zipfile.is_zipfile(file) and start[:1] != b"\x80":
            raise DamagedFile(f"{file} is not a file of torch; use another file.") from None
        what = f"an object of {match[1]}" if match else "objects"
        raise UnsafeFile(
            f"{file} holds {what}, whose loading could run code of whoever wrote the file, so nothing was loaded; save "
            "tensors and plain values alone."
        ) from None
    except Exception as error:  # torch raises many kinds for a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DamagedFile(f"{file} is damaged or not a file of torch ({reason[:150]}); use another file.") from error


def open_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning; nothing in it is run.

    Args:
        path: File on this machine; its tensors come to the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFile: If it is empty, cut off, or not a file of torch.
        UnsafeFile: If it holds an object whose loading could run code.
        ValueError: If it is no checkpoint, or one of another major version of Lightning.
    """
    content = load_plain(path)
    if not isinstance(content, dict) or any(key not in content for key in _KEYS):
        names = ", ".join(map(str, list(content)[:3])) if isinstance(content, Mapping) else ""
        what = f"a {type(content).__name__}" + (f" of {names} ..." if names else "")
        raise ValueError(
            f"{path} is no checkpoint of Lightning: it holds {what}, and not {' and '.join(_KEYS)}; give a file that a "
            "run wrote."
        )
    import lightning

    written, installed = str(content["pytorch-lightning_version"]), lightning.__version__
    if Version(written).major != Version(installed).major:
        raise ValueError(
            f"{path} was written by Lightning {written}, and {installed} is installed; use a version that begins with "
            f"{Version(written).major}, or train anew."
        )
    return content


def check_shards(folder: str | Path) -> None:
    """Check that what tells the places of a distributed checkpoint's shards holds no object that could run code.

    Raises:
        UnsafeFile: If it does.
        DamagedFile: If it cannot be read.
    """
    path = Path(folder) / METADATA
    try:
        with path.open("rb") as file:
            _ShardsUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise UnsafeFile(f"{path} {error}; nothing was loaded.") from None
    except Exception as error:  # a broken stream raises many kinds
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}); use another checkpoint.") from error


@contextmanager
def only_tensors(model: str) -> Iterator[None]:
    """Raise a ``ValueError`` where the weights of a model that is loaded inside are damaged or more than tensors."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weights of {model!r} are damaged, or a pickle of more than tensors, which could run anything; take a "
            "model whose weights are safetensors."
        ) from error


class _ShardsUnpickler(pickle.Unpickler):
    """Unpickler of the types alone that torch writes into the metadata of shards."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN_TYPES:
            return super().find_class(module, name)
        if module in (*_SHARD_TYPES, "torch") and "." not in name:  # a dot would reach into what the module imports
            value = super().find_class(module, name)
            own = isinstance(value, type) and value.__module__ == module != "torch"
            if own or isinstance(value, torch.dtype):
                return value
        raise pickle.UnpicklingError(f"holds an object of {module}.{name}, whose loading could run code")


def _beside(folder: Path) -> str:
    """Return the end of a sentence on a file that is not there: those that are."""
    names = sorted(path.name for path in folder.glob("*.ckpt")) if folder.is_dir() else []
    return f"; {folder} holds {', '.join(names[:5])}" if names else ""
