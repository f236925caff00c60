"""AutoAttack and the strongest of several attacks."""

import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    SpatialTransform,
    Square,
)
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.attacks.pgd import GradientAttack

NAMES = {
    ("linf", "standard"): ["clean", "apgd-ce", "apgd-t", "fab-t", "square"],
    ("l2", "standard"): ["clean", "apgd-ce", "apgd-t", "fab-t", "square"],
    ("l1", "standard"): ["clean", "apgd-ce", "apgd-t", "fab-t", "square"],
    ("linf", "plus"): ["clean", "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    ("linf", "rand"): ["clean", "apgd-ce", "apgd-dlr"],
}


def network(classes: int = 5) -> nn.Module:
    """A random network whose answers are spread over the classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    with torch.no_grad():
        model[-1].bias -= model(torch.rand(200, 48)).mean(0)
    return model


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 2, 4, 6, generator=torch.Generator().manual_seed(1))


def few(eps: Any = 0.02, attacks: list[Attack] | None = None, **arguments: Any) -> AutoAttack:
    """An ensemble of short attacks."""
    if attacks is None:
        attacks = [APGD(steps=5), APGDT(steps=5), FAB(steps=5), Square(queries=20)]
    return AutoAttack(eps=eps, version="custom", attacks=attacks, **arguments)


@pytest.mark.parametrize(("norm", "version"), NAMES)
def test_attacks_of_the_versions_in_their_order(norm: Any, version: Any) -> None:
    model, x = network(), images()
    attack = AutoAttack(norm=norm, eps={"linf": 0.3, "l2": 2.0, "l1": 12.0}[norm], version=version)
    result = attack.run(model, x)
    assert list(result.robust) == NAMES[norm, version]
    counts = list(result.robust.values())
    assert counts[0] == 12
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == int((~result.success).sum())
    assert counts[-1] < 6
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)
    assert result.flags == ()


def test_settings_of_the_versions() -> None:
    standard, plus, rand, l1 = (
        AutoAttack(version=version, norm=norm)._members  # type: ignore[arg-type]
        for version, norm in (("standard", "linf"), ("plus", "linf"), ("rand", "linf"), ("standard", "l1"))
    )

    def facts(attack: Any, *names: str) -> list[Any]:
        return [getattr(attack, name) for name in names]

    assert facts(standard["apgd-ce"], "steps", "restarts", "loss", "rho") == [100, 1, "cross_entropy", 0.75]
    assert facts(standard["apgd-t"], "steps", "targets", "restarts") == [100, 9, 1]
    assert facts(standard["fab-t"], "steps", "n_targets", "alpha_max", "eta", "beta") == [100, 9, 0.1, 1.05, 0.9]
    assert facts(standard["square"], "queries", "start_area", "rescale", "loss") == [5000, 0.8, False, "margin"]
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    assert plus["apgd-dlr"].loss == "dlr"  # type: ignore[attr-defined]
    assert [facts(attack, "eot_samples", "loss") for attack in rand.values()] == [[20, "cross_entropy"], [20, "dlr"]]
    assert facts(l1["apgd-ce"], "restarts", "larger_eps", "norm") == [5, True, "l1"]
    assert facts(l1["apgd-t"], "targets", "larger_eps") == [5, True]
    assert facts(l1["fab-t"], "steps", "n_targets", "norm") == [100, 9, "l1"]
    assert facts(l1["square"], "queries", "start_area", "rescale", "norm") == [5000, 0.8, False, "l1"]


def test_counts_record_and_log(caplog: pytest.LogCaptureFixture) -> None:
    model, x = network(), images(60)
    y = model(x).argmax(1)
    y[:7] = (y[:7] + 1) % 5
    seen = 0

    def count(x: Tensor) -> Any:
        nonlocal seen
        seen += len(x)
        return model(x)

    with caplog.at_level(logging.INFO, "lit_modules"):
        result = few().run(count, x, y)
    assert list(result.robust) == ["clean", "apgd", "apgdt", "fab", "square"]
    assert result.robust["clean"] == 53
    assert 0 < result.robust["square"] < 53
    assert int(result.num_queries.sum()) == seen
    assert bool(result.already[:7].all())
    assert torch.equal(result.adversarial[:7], x[:7])
    assert bool((result.distance <= 0.02 * (1 + 1e-6) + 1e-6).all())
    assert torch.equal(result.distance, lp_norm((result.adversarial - x).double(), "linf"))
    assert "apgd: " in caplog.text
    assert "of 60 samples robust" in caplog.text
    assert torch.equal(few()(model, x, y), result.adversarial)


def test_each_attack_meets_only_what_is_left() -> None:
    seen: list[int] = []

    class Spy(GradientAttack):
        norm = "linf"

        def attack(self, state: Any) -> Any:
            seen.append(len(state))
            return LinfPGD(steps=3, step_size=0.02).attack(state)

        def step(self, *arguments: Any) -> Any:
            raise AssertionError

    spy = Spy(eps=1.0, steps=1, random_start=True, loss="margin", keep="first")
    result = few(attacks=[APGD(steps=5), spy, spy]).run(network(), images(40))
    assert list(result.robust) == ["clean", "apgd", "spy", "spy-2"]
    assert seen == [result.robust["apgd"], result.robust["spy"]]


def test_radius_is_that_of_the_ensemble() -> None:
    model, x = network(), images(20)
    result = few(attacks=[APGD(eps=0.5, steps=5), LinfPGD(eps=0.5, steps=3, step_size=0.1)]).run(model, x)
    assert bool((result.distance <= 0.02 * (1 + 1e-6) + 1e-6).all())
    eps = torch.linspace(0, 0.1, 20)
    result = few(eps=eps).run(model, x)
    assert bool((result.distance <= eps.double() * (1 + 1e-6) + 1e-6).all())
    assert bool(result.success.any())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_smallest_perturbations_beyond_the_radius_do_not_count(norm: Any) -> None:
    model, x = network(), images(30)
    distance = FAB(norm=norm, steps=10).run(model, x).distance
    eps = float(distance.median())
    result = AutoAttack(norm=norm, eps=eps, version="custom", attacks=[FAB(norm=norm, steps=10)]).run(model, x)
    assert bool((result.distance <= eps * (1 + 1e-6) + 1e-6).all())
    assert bool(result.success[distance <= eps * 0.999].all())
    assert not bool(result.success[distance > eps * 1.05].any())
    assert result.robust["fab"] == int((~result.success).sum()) > 0


def test_well_behaved_model_has_no_flags() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert few().run(network(), images(40)).flags == ()


def test_flag_of_random_answers() -> None:
    model = network()

    def noisy(x: Tensor) -> Any:
        return model(x) + 0.1 * torch.randn(len(x), 5)

    with pytest.warns(UserWarning, match="answers at random"):
        result = few().run(noisy, images())
    assert any("use version='rand'" in flag for flag in result.flags)
    assert not AutoAttack(eps=0.3, version="rand").run(noisy, images(4)).flags
    assert not any("at random" in flag for flag in few(check=False).run(noisy, images()).flags)


def test_flags_of_hidden_gradients() -> None:
    model = network()

    def masked(x: Tensor) -> Any:
        return model((x.detach() * 32).round() / 32) + 0 * x.sum()

    attacks = [APGD(steps=5), Square(queries=100)]
    with pytest.warns(UserWarning, match="zero for all|zero for 20 of 20|hide its gradients") as caught:
        result = few(eps=0.1, attacks=attacks).run(masked, images(20))
    messages = [str(warning.message) for warning in caught]
    assert any("gradient of the cross-entropy is exactly zero for 20 of 20 samples" in m for m in messages)
    points = 100 * (result.robust["apgd"] - result.robust["square"]) / 20
    assert points > 0.2
    assert any(f"Square lowers the robust accuracy by {points:.2f} points more" in m for m in messages)
    assert len(result.flags) == 2


def test_square_alone_is_no_sign_of_hidden_gradients() -> None:
    result = few(eps=0.2, attacks=[Square(queries=20), APGD(steps=5)]).run(network(), images(20))
    assert result.robust["square"] < 20
    assert result.flags == ()


@pytest.mark.parametrize("call", ["grad", "backward"])
def test_flag_of_a_backward_pass_inside_the_model(call: str) -> None:
    model = network()

    def purify(x: Tensor) -> Any:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = model(point).logsumexp(1).sum()
            if call == "grad":
                (gradient,) = torch.autograd.grad(energy, point)
            else:
                energy.backward()
                assert point.grad is not None
                gradient = point.grad
        return model(x + 1e-4 * gradient)

    with pytest.warns(UserWarning, match="runs a backward pass inside its forward pass"):
        result = few().run(purify, images())
    assert len(result.flags) == 1


@pytest.mark.parametrize(
    ("version", "classes", "need"), [("standard", 3, 4), ("standard", 2, 4), ("plus", 3, 4), ("rand", 2, 3)]
)
def test_too_few_classes(version: Any, classes: int, need: int) -> None:
    with pytest.raises(
        ValueError, match=f"needs at least {need} classes for the DLR loss, got {classes}; use version="
    ):
        AutoAttack(version=version)(network(classes), images())


def test_two_classes_with_a_custom_ensemble() -> None:
    result = few(eps=0.1, attacks=[APGD(steps=5), FAB(steps=5), Square(queries=20)]).run(network(2), images())
    assert bool(result.success.any())


class Sum(nn.Module):
    """Says 1 where the values sum to more than 0."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total], 1)


class Push(Attack):
    """Subtract a constant: the smallest perturbation if told to be minimal."""

    def __init__(self, by: float, minimal: bool = True, norm: str = "linf", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.by, self.minimum_norm, self.norm = by, minimal, norm
        self.seen: list[int] = []

    def attack(self, state: AttackState) -> Outcome:
        self.seen += state.index.tolist()
        x = state.clamp(state.x - self.by)
        success = state.fooled(state.logits(x))
        if not self.minimum_norm:
            return Outcome(x, success, -x.sum(1))
        score = torch.where(success, -(x - state.x).abs().amax(1), float("-inf"))
        return Outcome(torch.where(success[:, None], x, state.x), success, score)


@dataclass
class Case:
    x: Tensor = field(default_factory=lambda: torch.tensor([[0.1] * 4, [0.3] * 4, [0.5] * 4, [-0.2] * 4]))
    y: Tensor = field(default_factory=lambda: torch.ones(4, dtype=torch.int64))


BOX = (-1.0, 1.0)


def test_first_stops_each_sample_at_its_first_success() -> None:
    case, first, second = Case(), Push(0.4, bounds=BOX), Push(0.2, bounds=BOX)
    result = BestOf(attacks=[first, second]).run(Sum(), case.x, case.y)
    assert first.seen == [0, 1, 2]
    assert second.seen == [2]
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.4, 0.4, float("inf"), 0], abs=1e-6)


def test_best_keeps_the_smallest_distance_and_never_zeros() -> None:
    case = Case()
    attacks = [Push(0.4, bounds=BOX), Push(0.2, bounds=BOX), Push(0.35, bounds=BOX)]
    result = BestOf(attacks=attacks, keep="best").run(Sum(), case.x, case.y)
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.2, 0.35, float("inf"), 0], abs=1e-6)
    assert torch.equal(result.adversarial[2], case.x[2])
    assert all(attack.seen == [0, 1, 2] for attack in attacks)


def test_failures_return_the_best_attempt() -> None:
    case = Case()
    attacks = [
        Push(0.1, minimal=False, bounds=BOX),
        Push(0.2, minimal=False, bounds=BOX),
        Push(-0.1, False, bounds=BOX),
    ]
    result = BestOf(attacks=attacks).run(Sum(), case.x, case.y)
    assert result.success.tolist() == [True, False, False, True]
    assert torch.allclose(result.adversarial[2], case.x[2] - 0.2)
    backwards = BestOf(attacks=[Push(-0.1, False, bounds=BOX)]).run(Sum(), case.x, case.y)
    assert torch.equal(backwards.adversarial, case.x)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_at_least_as_strong_as_each_member() -> None:
    model, x = linear(), torch.rand(40, 16)
    members = [FGSM(eps=0.05), LinfPGD(eps=0.08, steps=5, step_size=0.03), L2PGD(eps=0.3, steps=5, step_size=0.1)]
    result = BestOf(attacks=members).run(model, x)
    each = torch.stack([member.run(model, x).success for member in members])
    assert torch.equal(result.success, each.any(0))
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)
    assert bool(result.success.any())
    assert not bool(result.success.all())


def test_radius_of_each_sample_follows_the_samples_left() -> None:
    model, x = linear(), torch.rand(6, 16)
    eps = torch.linspace(0, 0.3, 6)
    attack = BestOf(attacks=[FGSM(eps=eps / 4), LinfPGD(eps=eps, steps=5, step_size=0.1)], keep="best")
    result = attack.run(model, x)
    assert bool((result.distance <= eps + 1e-6).all())
    alone = torch.cat(
        [
            BestOf(attacks=[FGSM(eps=e / 4), LinfPGD(eps=e, steps=5, step_size=0.1)], keep="best")(model, x[i : i + 1])
            for i, e in enumerate(eps.tolist())
        ]
    )
    assert torch.allclose(result.adversarial, alone, atol=1e-6)


def test_norm_and_radius_where_all_agree() -> None:
    same = BestOf(attacks=[FGSM(eps=0.1), LinfPGD(eps=0.1)])
    assert (same.norm, same.eps, same.minimum_norm) == ("linf", 0.1, False)
    mixed = BestOf(attacks=[FGSM(eps=0.1), L2PGD(eps=0.1)])
    assert (mixed.norm, mixed.eps) == (None, None)
    assert BestOf(attacks=[Push(0.1), Push(0.2)]).minimum_norm
    assert BestOf(attacks=[FGSM(eps=0.1), FGSM(eps=0.2)]).eps is None


def test_holds_each_member_to_its_radius() -> None:
    class Cheat(FGSM):
        def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: dict[str, Tensor]) -> Tensor:
            return state.clamp(x + 2 * state.radius * gradient.sign())

    with pytest.raises(RuntimeError, match="The attack broke its radius"):
        BestOf(attacks=[LinfPGD(eps=1e-4, steps=1), Cheat(eps=0.01)])(linear(), torch.rand(4, 16))


def test_mixes_spatial_and_bounded_attacks() -> None:
    x = torch.rand(4, 1, 4, 4)
    attack = BestOf(attacks=[LinfPGD(eps=1e-3, steps=2, step_size=1e-3), SpatialTransform(steps=30, step_size=0.2)])
    result = attack.run(linear(), x)
    alone = SpatialTransform(steps=30, step_size=0.2).run(linear(), x)
    assert bool((result.success >= alone.success).all())
    assert bool((result.adversarial.flatten(1).abs().sum(1) > 0).all())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one attack, got none"):
        BestOf(attacks=[])
    with pytest.raises(TypeError, match=r"attacks of lit_modules\.attacks, got function"):
        BestOf(attacks=[linear])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="BestOf gives its attacks labels; FastFeature takes something else"):
        BestOf(attacks=[FastFeature(eps=0.1)])
    with pytest.raises(ValueError, match="same targeted, got True in FGSM and False"):
        BestOf(attacks=[FGSM(), FGSM(targeted=True)])
    with pytest.raises(ValueError, match="same bounds"):
        BestOf(attacks=[FGSM(), FGSM(bounds=(0.0, torch.tensor([1.0, 2.0])))])
    with pytest.raises(TypeError, match="bounds"):
        BestOf(attacks=[FGSM()], bounds=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="keep must be 'first' or 'best', got 'last'"):
        BestOf(attacks=[FGSM()], keep="last")  # type: ignore[arg-type]
