"""Blocks that recompute their activations in the backward pass, of networks that do not do it rightly themselves."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let each block keep its inputs alone, and run again in the backward pass."""
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Any, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
