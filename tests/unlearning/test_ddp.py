"""Two gloo processes equal one process."""

import runpy
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = runpy.run_path(str(Path(__file__).resolve().parent.parent / "two_processes.py"))


@pytest.mark.parametrize("case", SCRIPT["TRAINED"])
def test_training_with_two_processes_equals_one(case: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"{rank}.pt", weights_only=True)[case] for rank in range(2))
    one = SCRIPT["train"](two_processes, 1, case)
    assert one["steps"] == first["steps"] == second["steps"] > 0
    start = SCRIPT["tiny"]().state_dict()
    moved = sum(float((weight - start[name]).norm()) for name, weight in one["weights"].items())
    apart = sum(float((weight - first["weights"][name]).norm()) for name, weight in one["weights"].items())
    assert moved > 0
    assert apart < 1e-4 * moved
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])


@pytest.mark.parametrize("method", ["NGDiff", "GradientDifference", "GradientAscent"])
def test_two_processes_equal_one(method: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"{rank}.pt", weights_only=True)[method] for rank in range(2))
    one = SCRIPT["unlearn"](two_processes, 1, method)
    assert one["steps"] == first["steps"] == second["steps"] > 0
    assert one["accepted"] == first["accepted"] == second["accepted"]
    for name, weight in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=0)
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert first["record"]["mia_loss_acc"] == one["record"]["mia_loss_acc"]
    assert first["record"]["forget-set"] == one["record"]["forget-set"]


def test_validation_of_a_set_that_one_process_does_not_see(two_processes: Path) -> None:
    one = SCRIPT["validate"](1, 0)
    assert set(one) == {"val/forget_loss", "val/retain_loss"}
    for rank in range(2):
        found = torch.load(two_processes / f"{rank}.pt", weights_only=True)["lopsided"]
        assert found == pytest.approx(one, rel=1e-6)
