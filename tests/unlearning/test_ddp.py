"""Two gloo processes equal one process."""

import runpy
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("method", ["NGDiff", "GradientDifference", "GradientAscent"])
def test_two_processes_equal_one(method: str, two_processes: Path, repository: Path) -> None:
    first, second = (torch.load(two_processes / f"{rank}.pt", weights_only=True)[method] for rank in range(2))
    one = runpy.run_path(str(repository / "tests" / "two_processes.py"))["unlearn"](two_processes, 1, method)
    assert one["steps"] == first["steps"] == second["steps"] > 0
    assert one["accepted"] == first["accepted"] == second["accepted"]
    for name, weight in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=0)
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert first["record"]["mia_loss_acc"] == one["record"]["mia_loss_acc"]
    assert first["record"]["forget-set"] == one["record"]["forget-set"]
