"""What the tests of the callbacks share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_wandb_run_left() -> Iterator[None]:
    """End a run of W&B with its test, as the next logger would take it over."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()
