"""Networks whose weights are sharded over processes by FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lit_modules.unlearning.core.gradients import local


def check_mesh(module: Any) -> None:
    """Refuse a ``ModelParallelStrategy`` that an unlearning module was not made for.

    Args:
        module: Module with ``device_mesh``, ``shardable`` and ``compile_network``.

    Raises:
        ValueError: If its weights cannot be sharded, or not so.
    """
    if module.device_mesh is None:
        return
    name = type(module).__name__
    if not module.shardable:
        raise ValueError(f"{name} needs its weights whole, which ModelParallelStrategy shards; use strategy 'ddp'.")
    tensor, data = (module.device_mesh[part].size() for part in ("tensor_parallel", "data_parallel"))
    if tensor > 1:
        raise ValueError(
            f"{name} shards its weights over data_parallel_size processes, and has no tensor parallelism, got "
            f"tensor_parallel_size {tensor}; give ModelParallelStrategy(data_parallel_size={tensor * data}, "
            "tensor_parallel_size=1)."
        )
    if module.compile_network:
        raise ValueError(f"{name}(compile=True) was not tried under ModelParallelStrategy; leave one of the two out.")


def shard(network: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Shard the weights of a network in place with FSDP2: each of its blocks, then what is left.

    Blocks are the modules that transformers' ``_no_split_modules`` names, else the members of the network's module
    lists. Weights are gathered before each block runs and freed after it, those outside of the blocks too: what changes
    the weights between two forward passes, as ``callbacks.AdaptiveLR`` does, must find nothing gathered.

    Args:
        network: A network whose weights are whole, on any device.
        mesh: One-dimensional mesh of the processes that share the weights.
        compute_dtype: Type in which weights are gathered and computed with; gradients are summed in float32, and what
            a process holds keeps its own type. ``None`` gathers weights as they are.
    """
    policy = MixedPrecisionPolicy()
    if compute_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(network, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    network.register_forward_pre_hook(_before_forward, prepend=True)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a network, outermost ones only.

    Example:
        >>> from lit_modules.networks import small_llama
        >>> [type(block).__name__ for block in blocks_of(small_llama(64, 16, num_layers=2, num_heads=2))]
        ['LlamaDecoderLayer', 'LlamaDecoderLayer']
    """
    names = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    if not blocks:
        blocks = [block for module in network.modules() if isinstance(module, nn.ModuleList) for block in module]
    nested = {id(part) for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if id(block) not in nested]


def is_sharded(network: nn.Module) -> bool:
    """Return whether this process holds only a part of a network's weights."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def whole_state(network: nn.Module) -> dict[str, Any]:
    """Return the state dict of a sharded network, gathered on the CPU of the first rank; all ranks must call it.

    Returns:
        Whole tensors on rank 0, elsewhere nothing.
    """
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


@contextmanager
def in_step(network: nn.Module) -> Iterator[None]:
    """Let a sharded network be called a different number of times on each rank, as generation does.

    Each call gathers weights from all ranks, so a rank that has ended goes on calling, on a token, until all have. All
    ranks must enter and leave. Without shards this does nothing.
    """
    if not is_sharded(network):
        yield
        return
    _gather_once(network)

    def any_rank_calls(own: int) -> bool:
        ranks = torch.full((), own, device=_device(network))
        dist.all_reduce(ranks)
        return bool(ranks)

    def announce(module: nn.Module, args: Any) -> None:
        any_rank_calls(1)

    handle = network.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    with torch.no_grad():
        while any_rank_calls(0):
            _call(network)


_GATHERED: WeakSet[nn.Module] = WeakSet()


def _before_forward(network: nn.Module, args: Any) -> None:
    """Let a first pass in inference mode, such as that of a validation, follow one outside of it."""
    if torch.is_inference_mode_enabled():
        _gather_once(network)
    else:
        _GATHERED.add(network)


def _gather_once(network: nn.Module) -> None:
    """Gather weights outside of inference mode, unless they were: FSDP2 keeps the buffers that the first pass makes.

    Buffers made in inference mode could not be written to by the passes of training.
    """
    if network not in _GATHERED:
        _GATHERED.add(network)
        with torch.inference_mode(False), torch.no_grad():
            _call(network)


def _call(network: nn.Module) -> None:
    network(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=_device(network)), use_cache=False)


def _device(network: nn.Module) -> torch.device:
    return next(local(parameter).device for parameter in network.parameters())
