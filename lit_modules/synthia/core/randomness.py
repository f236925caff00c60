"""Random numbers that belong to a row: the same whatever batch, rank or device it is on, and after a resume."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_of(*key: object) -> torch.Generator:
    """Return a generator, on the CPU, that starts where the text of the key says: a seed, a step, the name of a row."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def row_noise(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str) -> Tensor:
    """Return standard normal noise, a row from each generator, ``(batch, *shape)``."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(device)
