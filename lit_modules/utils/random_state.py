"""State of torch's random generators: kept in checkpoints, and preserved around a computation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators, ``cpu`` and a list ``cuda``, as plain tensors for a checkpoint."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set torch's generators to a state of :func:`random_state`; the devices' only if as many are there."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


@contextmanager
def preserved_random_state(device: torch.device | str = "cpu", seed: int | None = None) -> Iterator[None]:
    """Give torch's generators of the CPU and of a device their state back on exit.

    Args:
        device: Device beside the CPU.
        seed: Seed within the block; ``None`` goes on from the present state.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield
