"""Two gloo processes equal one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("run_ddp.py")


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs between runs (seconds) or by rounding (hash, distances)."""
    names = ("robust_accuracy", "interval", "attacked", "successes", "flags")
    rows = {title: {name: row[name] for name in names} for title, row in record["attacks"].items()}
    return {**record, "weights": "", "attacks": rows}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_", "NODE_"))}
    for devices in (1, 2):
        command = [sys.executable, str(SCRIPT), str(tmp_path), str(devices)]
        environment["PYTHONPATH"] = str(SCRIPT.parents[2])
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name in one:
        for key, weight in one[name]["weights"].items():
            assert torch.equal(first[name]["weights"][key], second[name]["weights"][key])
            torch.testing.assert_close(first[name]["weights"][key], weight, atol=1e-5, rtol=0)
        assert first[name]["record"]["samples"] == 23
        assert first[name]["record"] == second[name]["record"]
        assert comparable(first[name]["record"]) == comparable(one[name]["record"])
        assert first[name]["pictures"] == second[name]["pictures"] == one[name]["pictures"]
        for key in ("test/accuracy", "test/robust_accuracy", "test/robust_accuracy/l2"):
            assert first[name]["logged"][key] == pytest.approx(one[name]["logged"][key])
    both, whole = (
        torch.load(tmp_path / f"FreeTraining-{n}.ckpt", weights_only=False)["lit_modules_delta"] for n in (2, 1)
    )
    assert both.shape == (2, 4, 1, 8, 8)
    assert whole.shape == (1, 8, 1, 8, 8)
    torch.testing.assert_close(torch.stack(list(both), 1).flatten(0, 1), whole[0])
