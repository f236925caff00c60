"""Two gloo processes equal one process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("run_ddp.py")


@pytest.mark.slow
def test_two_processes_equal_one(drawn_curriculum: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_curriculum, tmp_path, dirs_exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_", "NODE_"))}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path), str(devices)],
            env=environment | {"PYTHONPATH": str(SCRIPT.parents[2])},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name in one:
        for key, weight in one[name]["weights"].items():
            assert torch.equal(first[name]["weights"][key], second[name]["weights"][key])
            torch.testing.assert_close(first[name]["weights"][key], weight, atol=2e-5, rtol=0)
        assert first[name]["results"] == second[name]["results"]
        assert first[name]["results"]["count"] == one[name]["results"]["count"] == 4
        assert first[name]["results"]["total"] == pytest.approx(one[name]["results"]["total"], rel=1e-4)
        assert first[name]["logged"] == pytest.approx(one[name]["logged"], rel=1e-4)
