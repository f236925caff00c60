"""Encodings of prompts and images: made once by the frozen encoders, then kept in memory and on disk."""

import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import hash_tensors, stable_hash

Encoding = dict[str, Tensor]
_KEY = re.compile(r"[0-9a-f]{64}")
_PREFILL = 16


class Encoder:
    """Encode through a cache, in memory or in a folder, and load an encoder only if something is missing from it."""

    def __init__(self, backbone: Backbone, folder: str | None = None) -> None:
        self.backbone = backbone
        self.cache = None if backbone.encoding_is_cheap else EncodingCache(folder)

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Return what the network is conditioned on for each prompt, ``(batch, ...)``, on the backbone's device.

        Text encoders that train are asked each time, with gradients where they are on, and nothing of it is kept.
        """
        if self.cache is None or self.backbone.text_encoders:
            return self.backbone.encode_prompt(prompts)
        return self._kept_conditions(self.cache, prompts)

    @torch.no_grad()
    def _kept_conditions(self, cache: "EncodingCache", prompts: Sequence[str]) -> Condition:
        backbone = self.backbone

        def encode(missing: list[int]) -> list[Condition]:
            backbone.load("text")
            return backbone.split(backbone.encode_prompt([prompts[index] for index in missing]))

        identity = self._identity("text")
        return backbone.stack(cache.get_many([text_key(identity, prompt) for prompt in prompts], encode))

    def keep_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts for later, and free the text encoder."""
        for start in range(0, len(prompts), _PREFILL):
            self.conditions(prompts[start : start + _PREFILL])
        self.backbone.free("text")

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, ``(n, channel, height, width)``.

        Images are floats in [-1, 1] that 8 bits hold exactly, ``(n, 3, height, width)``, on the backbone's device.
        """
        backbone = self.backbone
        if self.cache is None:
            backbone.load("images")
            return backbone.encode_image(images)

        def encode(missing: list[int]) -> list[Encoding]:
            backbone.load("images")
            mean, std = backbone.encode_image(images[missing])
            return [{"mean": mean[row], "std": std[row]} for row in range(len(missing))]

        identity = self._identity("images")
        pixels = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
        rows = self.cache.get_many([image_key(identity, image) for image in pixels], encode)
        mean, std = (torch.stack([row[name] for row in rows]).to(backbone.device) for name in ("mean", "std"))
        return mean, std

    def _identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings depend on; nothing else is met in memory, and a large folder takes long to hash."""
        shared = self.cache is not None and self.cache.folder is not None
        return self.backbone.identity(part) if shared else part


class EncodingCache:
    """Keep encodings, dicts of tensors, under keys that are hashes of what they were made from.

    On disk an encoding is a safetensors file, in a subfolder of the first two letters of its key. It appears whole or
    not at all, so several processes may share a folder. It carries a hash of its key and tensors: a file that is
    damaged, cut off or misplaced is found by it, mentioned in a warning, and made again. What was used last is kept in
    memory too.

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
        >>> rows = cache.get_many(keys, lambda missing: [{"length": torch.tensor(index)} for index in missing])
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

    def get_many(self, keys: Sequence[str], make: Callable[[list[int]], list[Encoding]]) -> list[Encoding]:
        """Return the encodings of keys; those that are not there are made, all in one call.

        Args:
            keys: Keys, as :func:`text_key` and :func:`image_key` return them; they may repeat.
            make: Takes the indices in ``keys`` of what is to be made, each key once, and returns the encodings.

        Returns:
            An encoding for each key, on the CPU; they are shared, so do not change them in place.

        Raises:
            ValueError: If a key is no hash, or ``make`` returns another number of encodings than it was asked for.
            OSError: If the folder cannot be read or written, as the disk is full or the folder is read-only.
        """
        encodings: dict[str, Encoding] = {}
        missing: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key in encodings or key in missing:
                continue
            encoding = self._find(key)
            if encoding is None:
                missing[key] = index
            else:
                encodings[key] = encoding
        self.hits += len(encodings)
        if missing:
            self._check_writable(list(missing))
            made = make(list(missing.values()))
            if len(made) != len(missing):
                raise ValueError(f"make must return {len(missing)} encodings, one for each index, got {len(made)}.")
            self.misses += len(made)
            for key, encoding in zip(missing, made, strict=True):
                # a row of a batch would keep the whole batch in memory
                own = {
                    name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for name, value in encoding.items()
                }
                encodings[key] = own
                self._write(key, own)
                self._remember(key, own)
        return [encodings[key] for key in keys]

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

    def _read(self, key: str) -> Encoding | None:
        if self.folder is None:
            return None
        path = _path(self.folder, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(self._refusal("read", error)) from error
        encoding = _parse(data, key)
        if encoding is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{path} is damaged and is made again; so is every other damaged file of this cache, without a word.",
                stacklevel=4,
            )
        return encoding

    def _check_writable(self, keys: list[str]) -> None:
        """Make the folders before the encodings, so that what cannot be kept is not made."""
        if self.folder is None:
            return
        try:
            for key in keys:
                folder = _path(self.folder, key).parent
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise OSError(self._refusal("written to", error)) from error

    def _write(self, key: str, encoding: Encoding) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save

        try:
            write_whole(_path(self.folder, key), save(encoding, {"key": key, "sha256": _checksum(key, encoding)}))
        except OSError as error:
            raise OSError(self._refusal("written to", error)) from error

    def _refusal(self, verb: str, error: OSError) -> str:
        reason = error.strerror or str(error)
        return (
            f"The cache of encodings in {self.folder} cannot be {verb}: {reason}. Choose another folder for it, or "
            "none to keep encodings in memory."
        )


def text_key(identity: str, prompt: str) -> str:
    """Return the key of a prompt's encoding: a hash of the prompt and of what encodes it (``Backbone.identity``)."""
    return stable_hash("text", identity, prompt)


def image_key(identity: str, image: Tensor) -> str:
    """Return the key of an image's encoding: a hash of the pixels, uint8, and of what encodes them."""
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, as its bytes are the key, got {image.dtype}.")
    return stable_hash("image", identity, hash_tensors({"image": image}))


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def _parse(data: bytes, key: str) -> Encoding | None:
    """Return the tensors of a file, or ``None`` if they are not what was written under the key."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        checksum = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"]
        encoding: Encoding = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return encoding if checksum == _checksum(key, encoding) else None


def _checksum(key: str, encoding: Encoding) -> str:
    return stable_hash(key, hash_tensors(sorted(encoding.items())))


def _size(encoding: Encoding) -> int:
    return sum(value.numel() * value.element_size() for value in encoding.values())
