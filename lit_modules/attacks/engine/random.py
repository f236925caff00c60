"""Random numbers that belong to a sample, not to a batch.

Each sample has a key made of its values and a seed; its numbers are a hash of key and position. So a sample meets the
same numbers alone, in any batch and at any place in it, on any device, and no global generator is read or moved.

References:
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): counter-based generators.
    Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): the mixing function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _mix(z: Tensor) -> Tensor:
    """Scramble int64 values; a bijection (the finaliser of SplitMix64). Changes ``z`` in place."""
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _FIRST
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _SECOND
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def sample_keys(x: Tensor) -> Tensor:
    """Return a 64-bit hash of each sample's float32 values, shape ``(batch,)``."""
    bits = x.detach().float().reshape(len(x), -1).contiguous().view(torch.int32).to(torch.int64)
    multipliers = _mix(torch.arange(1, bits.shape[1] + 1, device=x.device) * _GOLDEN) | 1
    return _mix((bits * multipliers).sum(1))


class SampleRandom:
    """Streams of random numbers, one for each sample.

    Draws follow each other: two equal calls give different numbers, the same calls after the same seed give the same.

    Args:
        keys: int64 key of each sample, ``(batch,)``.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self.position = 0

    @classmethod
    def of(cls, x: Tensor, seed: int) -> SampleRandom:
        """Make the streams of the samples ``x`` under a seed."""
        return cls(sample_keys(x)).fork(seed)

    def fork(self, number: int) -> SampleRandom:
        """Return independent streams for the same samples, from their start."""
        salt = _mix(torch.tensor([number * 2 + 1], dtype=torch.int64, device=self.keys.device) * _GOLDEN)
        return SampleRandom(_mix(self.keys ^ salt))

    def select(self, index: Tensor) -> SampleRandom:
        """Return the streams of some of the samples, at the place where they stand."""
        chosen = SampleRandom(self.keys[index])
        chosen.position = self.position
        return chosen

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        counters = torch.arange(self.position, self.position + count, device=self.keys.device) * _GOLDEN
        self.position += count
        return _mix(self.keys[:, None] + counters).reshape(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 numbers strictly between 0 and 1, ``(batch, *shape)``."""
        return (((self._bits(shape) >> 41) & 0x7FFFFF).float() + 0.5) * 2**-23

    def normal(self, *shape: int) -> Tensor:
        """Return float32 standard normal numbers (Box-Muller), ``(batch, *shape)``."""
        bits = self._bits(shape)
        radius = ((((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2**-23).log_().mul_(-2).sqrt_()
        angle = (((bits >> 9) & 0x7FFFFF).float() + 0.5) * (2 * math.pi * 2**-23)
        return radius * angle.cos_()

    def sign(self, *shape: int) -> Tensor:
        """Return -1 or 1 with equal chance, float32, ``(batch, *shape)``."""
        return ((self._bits(shape) >> 63) * 2 + 1).float()

    def laplace(self, *shape: int) -> Tensor:
        """Return float32 standard Laplace numbers, ``(batch, *shape)``."""
        u = self.uniform(*shape) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return int64 numbers from 0 to ``high`` - 1, ``(batch, *shape)``."""
        return (self.uniform(*shape).double() * high).long()

    def permutation(self, length: int) -> Tensor:
        """Return a permutation of ``length`` places for each sample, int64 ``(batch, length)``."""
        return self.uniform(length).argsort(dim=1)
