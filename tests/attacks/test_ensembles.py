"""AutoAttack and the strongest of several attacks."""

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.attacks import (
    APGD,
    APGDT,
    FAB,
    FGSM,
    L2PGD,
    Attack,
    AutoAttack,
    BestOf,
    FastFeature,
    LinfPGD,
    Square,
)
from lit_modules.attacks.engine.state import AttackState, Outcome
from tests.attacks.helpers import Recorder, images, linear, spread


def few(eps: Any = 0.02, attacks: list[Attack] | None = None, **arguments: Any) -> AutoAttack:
    """An ensemble of short attacks."""
    if attacks is None:
        attacks = [APGD(steps=5), APGDT(steps=5), FAB(steps=5), Square(queries=20)]
    return AutoAttack(eps=eps, version="custom", attacks=attacks, **arguments)


@pytest.mark.parametrize(
    ("norm", "version", "eps", "names"),
    [
        ("linf", "standard", 0.3, "apgd-ce apgd-t fab-t square"),
        ("l2", "standard", 2.0, "apgd-ce apgd-t fab-t square"),
        ("l1", "standard", 12.0, "apgd-ce apgd-t fab-t square"),
        ("linf", "plus", 0.3, "apgd-ce apgd-dlr fab square apgd-t fab-t"),
        ("linf", "rand", 0.3, "apgd-ce apgd-dlr"),
    ],
)
def test_attacks_of_the_versions_in_their_order(norm: Any, version: Any, eps: float, names: str) -> None:
    result = AutoAttack(norm=norm, eps=eps, version=version).run(spread(), images())
    assert list(result.robust) == ["clean", *names.split()]
    counts = list(result.robust.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 12
    assert counts[-1] == int((~result.success).sum()) < 6
    assert result.flags == ()


def test_settings_of_the_versions() -> None:
    def facts(version: Any, norm: Any, member: str, *names: str) -> list[Any]:
        return [getattr(AutoAttack(version=version, norm=norm)._members[member], name) for name in names]

    assert facts("standard", "linf", "apgd-ce", "steps", "restarts", "loss", "rho") == [100, 1, "cross_entropy", 0.75]
    assert facts("standard", "linf", "apgd-t", "steps", "targets", "restarts") == [100, 9, 1]
    fab = facts("standard", "linf", "fab-t", "steps", "n_targets", "alpha_max", "eta", "beta")
    assert fab == [100, 9, 0.1, 1.05, 0.9]
    square = facts("standard", "linf", "square", "queries", "start_area", "rescale", "loss")
    assert square == [5000, 0.8, False, "margin"]
    assert facts("plus", "linf", "apgd-ce", "restarts") == facts("plus", "linf", "fab", "restarts") == [5]
    assert facts("plus", "linf", "apgd-dlr", "restarts", "loss") == [5, "dlr"]
    assert facts("rand", "linf", "apgd-ce", "eot_samples", "loss") == [20, "cross_entropy"]
    assert facts("rand", "linf", "apgd-dlr", "eot_samples", "loss") == [20, "dlr"]
    assert facts("standard", "l1", "apgd-ce", "restarts", "larger_eps", "norm") == [5, True, "l1"]
    assert facts("standard", "l1", "apgd-t", "targets", "larger_eps") == [5, True]
    assert facts("standard", "l1", "fab-t", "steps", "n_targets", "norm") == [100, 9, "l1"]
    assert facts("standard", "l1", "square", "queries", "start_area", "rescale", "norm") == [5000, 0.8, False, "l1"]


def test_counts_record_and_log(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Recorder(spread()), images(60)
    y = model.model(x).argmax(1)
    y[:7] = (y[:7] + 1) % 5
    with caplog.at_level(logging.INFO, "lit_modules"), warnings.catch_warnings():
        warnings.simplefilter("error")  # a well-behaved model has no flags
        result = few().run(model, x, y)
    assert int(result.num_queries.sum()) == model.points
    assert list(result.robust) == ["clean", "apgd", "apgdt", "fab", "square"]
    assert result.robust["clean"] == 53 > result.robust["square"] > 0
    assert result.flags == ()
    assert "apgd: " in caplog.text
    assert "of 60 samples robust" in caplog.text


def test_each_attack_meets_only_what_is_left() -> None:
    seen: list[int] = []

    class Spy(LinfPGD):
        def attack(self, state: AttackState) -> Outcome:
            seen.append(len(state))
            return super().attack(state)

    spy = Spy(steps=3, step_size=0.02)
    result = few(attacks=[APGD(steps=5), spy, spy]).run(spread(), images(40))
    assert list(result.robust) == ["clean", "apgd", "spy", "spy-2"]
    assert seen == [result.robust["apgd"], result.robust["spy"]]


def test_radius_is_that_of_the_ensemble() -> None:
    model, x, eps = spread(), images(20), torch.linspace(0, 0.1, 20)
    wide = few(attacks=[APGD(eps=0.5, steps=5), LinfPGD(eps=0.5, steps=3, step_size=0.1)]).run(model, x)
    assert bool((wide.distance <= 0.02 * (1 + 1e-6) + 1e-6).all())
    each = few(eps=eps).run(model, x)
    assert bool((each.distance <= eps.double() * (1 + 1e-6) + 1e-6).all())
    assert bool(each.success.any())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_smallest_perturbations_beyond_the_radius_do_not_count(norm: Any) -> None:
    model, x, fab = spread(), images(30), FAB(norm=norm, steps=10)
    distance = fab.run(model, x).distance
    eps = float(distance.median())
    result = AutoAttack(norm=norm, eps=eps, version="custom", attacks=[fab]).run(model, x)
    assert bool((result.distance <= eps * (1 + 1e-6) + 1e-6).all())
    assert bool(result.success[distance <= eps * 0.999].all())
    assert not bool(result.success[distance > eps * 1.05].any())
    assert result.robust["fab"] == int((~result.success).sum()) > 0


def test_flag_of_random_answers() -> None:
    model = spread()

    def noisy(x: Tensor) -> Any:
        return model(x) + 0.1 * torch.randn(len(x), 5)

    with pytest.warns(UserWarning, match="answers at random"):
        result = few().run(noisy, images())
    assert any("use version='rand'" in flag for flag in result.flags)
    assert not AutoAttack(eps=0.3, version="rand").run(noisy, images(4)).flags
    assert not any("at random" in flag for flag in few(check=False).run(noisy, images()).flags)


def test_flags_of_hidden_gradients() -> None:
    model = spread()

    def masked(x: Tensor) -> Any:
        return model((x.detach() * 32).round() / 32) + 0 * x.sum()

    with pytest.warns(UserWarning, match="zero for all|zero for 20 of 20|hide its gradients"):
        result = few(eps=0.1, attacks=[APGD(steps=5), Square(queries=100)]).run(masked, images(20))
    points = 100 * (result.robust["apgd"] - result.robust["square"]) / 20
    assert points > 0.2
    gradient, square = result.flags
    assert "gradient of the cross-entropy is exactly zero for 20 of 20 samples" in gradient
    assert f"Square lowers the robust accuracy by {points:.2f} points more" in square
    alone = few(eps=0.2, attacks=[Square(queries=20), APGD(steps=5)]).run(model, images(20))
    assert alone.robust["square"] < 20
    assert alone.flags == ()


@pytest.mark.parametrize("call", ["grad", "backward"])
def test_flag_of_a_backward_pass_inside_the_model(call: str) -> None:
    model = spread()

    def purify(x: Tensor) -> Any:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = model(point).logsumexp(1).sum()
            if call == "grad":
                (gradient,) = torch.autograd.grad(energy, point)
            else:
                energy.backward()
                gradient = point.grad
        return model(x + 1e-4 * gradient)

    with pytest.warns(UserWarning, match="runs a backward pass inside its forward pass"):
        assert len(few().run(purify, images()).flags) == 1


@pytest.mark.parametrize(("version", "classes", "least"), [("standard", 3, 4), ("plus", 3, 4), ("rand", 2, 3)])
def test_too_few_classes(version: Any, classes: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"at least {least} classes for the DLR loss, got {classes}; use version="):
        AutoAttack(version=version)(spread(classes), images())
    assert bool(few(eps=0.1, attacks=[APGD(steps=5), FAB(steps=5)]).run(spread(classes), images()).success.any())


def by_sum(x: Tensor) -> Tensor:
    """Say 1 where the values sum to more than 0."""
    total = x.flatten(1).sum(1)
    return torch.stack([-total, total], 1)


class Push(Attack):
    """Subtract a constant: the smallest perturbation if told to be minimal."""

    def __init__(self, by: float, minimal: bool = True) -> None:
        super().__init__(bounds=(-1.0, 1.0))
        self.by, self.minimum_norm, self.norm = by, minimal, "linf"
        self.seen: list[int] = []

    def attack(self, state: AttackState) -> Outcome:
        self.seen += state.index.tolist()
        x = state.clamp(state.x - self.by)
        success = state.fooled(state.logits(x))
        if not self.minimum_norm:
            return Outcome(x, success, -x.sum(1))
        score = torch.where(success, -(x - state.x).abs().amax(1), float("-inf"))
        return Outcome(torch.where(success[:, None], x, state.x), success, score)


X = torch.tensor([[0.1] * 4, [0.3] * 4, [0.5] * 4, [-0.2] * 4])
ONES = torch.ones(4, dtype=torch.int64)


def test_first_stops_each_sample_at_its_first_success() -> None:
    first, second = Push(0.4), Push(0.2)
    result = BestOf(attacks=[first, second]).run(by_sum, X, ONES)
    assert (first.seen, second.seen) == ([0, 1, 2], [2])
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.4, 0.4, float("inf"), 0], abs=1e-6)


def test_best_keeps_the_smallest_distance_and_never_zeros() -> None:
    attacks = [Push(0.4), Push(0.2), Push(0.35)]
    result = BestOf(attacks=attacks, keep="best").run(by_sum, X, ONES)
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.2, 0.35, float("inf"), 0], abs=1e-6)
    assert torch.equal(result.adversarial[2], X[2])
    assert all(attack.seen == [0, 1, 2] for attack in attacks)


def test_failures_return_the_best_attempt() -> None:
    result = BestOf(attacks=[Push(by, minimal=False) for by in (0.1, 0.2, -0.1)]).run(by_sum, X, ONES)
    assert result.success.tolist() == [True, False, False, True]
    assert torch.allclose(result.adversarial[2], X[2] - 0.2)
    assert torch.equal(BestOf(attacks=[Push(-0.1, minimal=False)])(by_sum, X, ONES), X)


def test_at_least_as_strong_as_each_member() -> None:
    model, x = linear(3, 16), images(40, 16)
    members = [FGSM(eps=0.05), LinfPGD(eps=0.08, steps=5, step_size=0.03), L2PGD(eps=0.3, steps=5, step_size=0.1)]
    result = BestOf(attacks=members).run(model, x)
    assert torch.equal(result.success, torch.stack([member.run(model, x).success for member in members]).any(0))
    assert bool(result.success.any())
    assert not bool(result.success.all())


def test_radius_of_each_sample_follows_the_samples_left() -> None:
    model, x, eps = linear(3, 16), images(6, 16), torch.linspace(0, 0.3, 6)

    def run(eps: Any, x: Tensor) -> Any:
        members = [FGSM(eps=eps / 4), LinfPGD(eps=eps, steps=5, step_size=0.1)]
        return BestOf(attacks=members, keep="best").run(model, x)

    result = run(eps, x)
    assert bool((result.distance <= eps + 1e-6).all())
    alone = torch.cat([run(e, x[i : i + 1]).adversarial for i, e in enumerate(eps.tolist())])
    assert torch.allclose(result.adversarial, alone, atol=1e-6)


def test_norm_and_radius_where_all_agree() -> None:
    same, mixed = BestOf(attacks=[FGSM(eps=0.1), LinfPGD(eps=0.1)]), BestOf(attacks=[FGSM(eps=0.1), L2PGD(eps=0.1)])
    assert (same.norm, same.eps, same.minimum_norm) == ("linf", 0.1, False)
    assert (mixed.norm, mixed.eps) == (None, None)
    assert BestOf(attacks=[Push(0.1), Push(0.2)]).minimum_norm
    assert BestOf(attacks=[FGSM(eps=0.1), FGSM(eps=0.2)]).eps is None


def test_holds_each_member_to_its_radius() -> None:
    class Cheat(FGSM):
        def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: dict[str, Tensor]) -> Tensor:
            return state.clamp(x + 2 * state.radius * gradient.sign())

    with pytest.raises(RuntimeError, match="The attack broke its radius"):
        BestOf(attacks=[LinfPGD(eps=1e-4, steps=1), Cheat(eps=0.01)])(linear(3, 16), images(4, 16))


@pytest.mark.parametrize(
    ("attacks", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "at least one attack, got none"),
        ([linear], {}, TypeError, r"attacks of lit_modules\.attacks, got function"),
        ([FastFeature()], {}, TypeError, "BestOf gives its attacks labels; FastFeature takes something else"),
        ([FGSM(), FGSM(targeted=True)], {}, ValueError, "same targeted, got True in FGSM and False"),
        ([FGSM(), FGSM(bounds=(0.0, torch.tensor([1.0, 2.0])))], {}, ValueError, "same bounds"),
        ([FGSM()], {"bounds": None}, TypeError, "bounds"),
        ([FGSM()], {"keep": "last"}, ValueError, "keep must be 'first' or 'best', got 'last'"),
    ],
)
def test_refusals(attacks: Any, arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        BestOf(attacks=attacks, **arguments)
