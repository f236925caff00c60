"""FAB and FAB-T: targets, chunks, leaving together, and the distances of another implementation."""

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
