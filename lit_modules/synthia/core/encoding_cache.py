"""Encodings of prompts and images, kept in memory and on disk under a hash of what they were made from."""

import hashlib
import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_modules.utils.files import write_whole

Encoding = dict[str, Tensor]
_KEY = re.compile(r"[0-9a-f]{64}")


def text_key(identity: str, prompt: str) -> str:
    """Return the key of a prompt's encoding: a hash of the prompt and of what encodes it.

    Args:
        identity: What encodes it, such as ``Backbone.identity("text")``.
        prompt: The prompt.
    """
    return _hash(json.dumps(["text", identity, prompt]).encode())


def image_key(identity: str, image: Tensor) -> str:
    """Return the key of an image's encoding: a hash of the pixels and of what encodes them.

    Args:
        identity: What encodes it, such as ``Backbone.identity("images")``.
        image: uint8, as it is encoded: resized, cropped and flipped.

    Raises:
        TypeError: If the image is not uint8.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, as its bytes are the key, got {image.dtype}.")
    return _hash(json.dumps(["image", identity, list(image.shape)]).encode(), image)


class EncodingCache:
    """Keep encodings, dicts of tensors, under keys that are hashes of what they were made from.

    On disk an encoding is a safetensors file, in a subfolder of the first two letters of its key. It is written beside
    its place and then moved there, so several processes may share a folder. It carries a hash of its key and tensors: a
    file that is damaged, cut off or misplaced is told by it, mentioned in a warning, and made again. What was used last
    is kept in memory too.

    Args:
        folder: Folder of the files; it is made. ``None`` keeps encodings in memory alone, and makes anew what the bound
            drops.
        memory_bytes: Bound of the tensors in memory, in bytes.

    Attributes:
        hits: Encodings that were there.
        misses: Encodings that were made.

    Raises:
        ValueError: If ``memory_bytes`` is negative.

    Example:
        >>> cache = EncodingCache(None)
        >>> keys = [text_key("lengths", prompt) for prompt in ("sit", "store", "sit")]
        >>> rows = cache.get_many(keys, lambda places: [{"length": torch.tensor(place)} for place in places])
        >>> [int(row["length"]) for row in rows], cache.misses
        ([0, 1, 0], 2)
    """

    def __init__(self, folder: str | None = None, memory_bytes: int = 2**31) -> None:
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes must not be negative, got {memory_bytes}.")
        self.folder = None if folder is None else Path(folder)
        self.memory_bytes = memory_bytes
        self.hits = 0
        self.misses = 0
        self._memory: OrderedDict[str, Encoding] = OrderedDict()
        self._used = 0
        self._warned = False

    def get_many(self, keys: Sequence[str], missing: Callable[[list[int]], list[Encoding]]) -> list[Encoding]:
        """Return the encodings of keys; those that are not there are made, all in one call.

        Args:
            keys: Keys, as :func:`text_key` and :func:`image_key` return them; they may repeat.
            missing: Takes the places in ``keys`` of what is to be made, each key once, and returns the encodings.

        Returns:
            An encoding for each key, on the CPU; they are shared, so do not change them in place.

        Raises:
            ValueError: If a key is no hash, or ``missing`` returns another number of encodings than it was asked for.
            OSError: If the folder cannot be read or written, as the disk is full or the folder is read-only.
        """
        found: dict[str, Encoding] = {}
        wanted: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key in found or key in wanted:
                continue
            encoding = self._find(key)
            if encoding is None:
                wanted[key] = place
            else:
                found[key] = encoding
        self.hits += len(found)
        if wanted:
            self._prepare(list(wanted))
            made = missing(list(wanted.values()))
            if len(made) != len(wanted):
                raise ValueError(f"missing must return {len(wanted)} encodings, one for each place, got {len(made)}.")
            self.misses += len(made)
            for key, encoding in zip(wanted, made, strict=True):
                # a row of a batch would keep the whole batch in memory
                own = {
                    name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for name, value in encoding.items()
                }
                found[key] = own
                self._write(key, own)
                self._remember(key, own)
        return [found[key] for key in keys]

    def _find(self, key: str) -> Encoding | None:
        if not _KEY.fullmatch(key):
            raise ValueError(f"A key must be 64 hexadecimal digits, as text_key and image_key return, got {key!r}.")
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        encoding = self._read(key)
        if encoding is not None:
            self._remember(key, encoding)
        return encoding

    def _remember(self, key: str, encoding: Encoding) -> None:
        size = _size(encoding)
        if size > self.memory_bytes:
            return
        self._memory[key] = encoding
        self._used += size
        while self._used > self.memory_bytes:
            _, dropped = self._memory.popitem(last=False)
            self._used -= _size(dropped)

    def _path(self, folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Encoding | None:
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(self._refusal("read", error)) from error
        encoding = _parsed(data, key)
        if encoding is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{path} is damaged and is made again; so is every other damaged file of this cache, without a word.",
                stacklevel=4,
            )
        return encoding

    def _prepare(self, keys: list[str]) -> None:
        """Make the folders before the work, so that what cannot be kept is not made."""
        if self.folder is None:
            return
        try:
            for key in keys:
                folder = self._path(self.folder, key).parent
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise OSError(self._refusal("written to", error)) from error

    def _write(self, key: str, encoding: Encoding) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save

        path = self._path(self.folder, key)
        data = save(encoding, {"key": key, "sha256": _digest(key, encoding)})
        try:
            write_whole(path, data)
        except OSError as error:
            raise OSError(self._refusal("written to", error)) from error

    def _refusal(self, verb: str, error: OSError) -> str:
        reason = error.strerror or str(error)
        return (
            f"The cache of encodings in {self.folder} cannot be {verb}: {reason}. Choose another folder for it, or "
            "none to keep encodings in memory."
        )


def _parsed(data: bytes, key: str) -> Encoding | None:
    """Return the tensors of a file, or ``None`` if they are not what was written under the key."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        said = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"]
        encoding: Encoding = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return encoding if said == _digest(key, encoding) else None


def _digest(key: str, encoding: Encoding) -> str:
    names = sorted(encoding)
    facts = [[name, str(encoding[name].dtype), list(encoding[name].shape)] for name in names]
    return _hash(json.dumps([key, facts]).encode(), *(encoding[name] for name in names))


def _hash(text: bytes, *tensors: Tensor) -> str:
    found = hashlib.sha256(text)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _size(encoding: Encoding) -> int:
    return sum(value.numel() * value.element_size() for value in encoding.values())
