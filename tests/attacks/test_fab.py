"""FAB and FAB-T: targets, chunks, leaving together, and the distances of another implementation."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.boundary import FAB, FABT


def model_and_samples(n: int = 10, classes: int = 6) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, classes))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


def test_chunks_do_not_change_the_result() -> None:
    model, x = model_and_samples()
    whole = FABT(steps=10).run(model, x)
    for max_batch in (1, 12):
        parts = FABT(steps=10, max_batch=max_batch).run(model, x)
        torch.testing.assert_close(parts.adversarial, whole.adversarial, atol=2e-5, rtol=0)
        assert torch.equal(parts.num_queries, whole.num_queries)


def test_targets_are_the_likely_classes() -> None:
    model, x = model_and_samples()
    attack = FABT(n_targets=2)
    state = attack.prepare(model, x, None, None)
    order = model(x).argsort(1, descending=True)
    assert torch.equal(attack.targets(state), order[:, 1:3])
    assert FABT(n_targets=99).targets(state).shape == (10, 5)


def test_more_targets_are_never_worse() -> None:
    model, x = model_and_samples()
    one, all_ = (FABT(steps=30, n_targets=n, search_steps=0).run(model, x).distance for n in (1, 5))
    assert (all_ <= one + 1e-6).all()
    assert (all_ < one - 1e-6).any()


def test_all_targets_of_a_sample_leave_together() -> None:
    """With a radius that the first step reaches, each of the 5 targets has cost two passes."""
    model, x = model_and_samples()
    result = FABT(stop_radius=1.0).run(model, x)
    assert result.success.all()
    assert (result.num_queries <= 1 + 5 * 3).all()
    assert (result.num_queries == 1 + 5 * 2).any()


def test_last_search_only_improves() -> None:
    model, x = model_and_samples()
    plain, searched = (FAB(norm="l2", steps=4, search_steps=n).run(model, x).distance for n in (0, 3))
    assert (searched <= plain).all()
    assert searched.sum() < plain.sum()


def test_float64_and_bf16() -> None:
    model, x = model_and_samples()
    double = FABT(steps=10).run(model.double(), x.double())
    assert double.adversarial.dtype == torch.float64
    assert torch.equal(double.success, model(double.adversarial).argmax(1) != model(x.double()).argmax(1))
    half = FABT(steps=10, precision="bf16").run(model.float(), x)
    assert half.adversarial.dtype == torch.float32
    assert half.success.all()


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="n_targets must be an integer of at least 1, got 0"):
        FABT(n_targets=0)
    with pytest.raises(ValueError, match="max_batch must be an integer of at least 1, got 0"):
        FABT(max_batch=0)


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2"), ("l1", "L1")])
def test_distances_are_no_worse_than_another_implementation(norm: str, name: str) -> None:
    peer = pytest.importorskip("pyautoattack.fab_pt")
    model, x = model_and_samples(16)
    y = model(x).argmax(1)
    other = peer.FABAttack_PT(model, norm=name, n_iter=50, n_restarts=1, eps=1e9, seed=0, device="cpu").perturb(x, y)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    theirs = (other - x).flatten(1).norm(order, dim=1)
    for attack in (FAB(norm=norm, steps=50), FABT(norm=norm, steps=50)):
        ours = attack.run(model, x, y)
        assert ours.success.all()
        assert ours.distance.median() <= 1.02 * theirs.median()
