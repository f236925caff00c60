"""Two gloo processes equal one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("run_ddp.py")


@pytest.mark.parametrize("method", ["NGDiff", "GradientDifference", "GradientAscent"])
def test_two_processes_equal_one(method: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_", "NODE_"))}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path), str(devices), method],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (
        torch.load(tmp_path / f"{method}-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    assert one["steps"] == first["steps"] == second["steps"] > 0
    assert one["accepted"] == first["accepted"] == second["accepted"]
    for name, weight in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=0)
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert first["record"]["mia_loss_acc"] == one["record"]["mia_loss_acc"]
    assert first["record"]["forget-set"] == one["record"]["forget-set"]
