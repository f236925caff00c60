"""Base of the attacks: checks of input and output, texts, and faults of earlier toolboxes."""

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import (
    APGD,
    EOT,
    FAB,
    FGM,
    FGSM,
    JSMA,
    L1PGD,
    L2BIM,
    L2PGD,
    Attack,
    AutoAttack,
    BestOf,
    L2Momentum,
    LinfBIM,
    LinfMomentum,
    LinfPGD,
    SparseL1Descent,
    Square,
)
from lit_modules.attacks.engine.checks import audit_perturbation
from lit_modules.attacks.engine.losses import cross_entropy, margin
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.utils.fingerprint import identify
from tests.attacks.helpers import Recorder, linear, opposed

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize(
    ("x", "y", "arguments", "error", "message"),
    [
        ((X * 255).byte(), Y, {}, TypeError, r"floating-point tensor, got torch\.uint8; divide 8-bit images"),
        (X[0], Y, {}, ValueError, r"shape \(batch, \.\.\.\), got \(8,\)"),
        (X * float("nan"), Y, {}, ValueError, "x holds NaN or infinite values in 4 samples"),
        (X * 2 - 1, Y, {}, ValueError, r"outside the bounds 0 to 1; normalise inside the model, or pass bounds="),
        (X, Y, {"bounds": (1.0, 0.0)}, ValueError, "lower bound must not be above the upper one"),
        (X, Y, {"bounds": (0.0, torch.ones(3))}, ValueError, r"bounds of shape \(3,\) do not broadcast to x, \(4, 8\)"),
        (X, Y, {"eps": torch.rand(3)}, ValueError, "eps has 3 values for a batch of 4; give one number, or one per"),
        (X, Y, {"step_size": torch.ones(3)}, ValueError, "step_size has 3 values for a batch of 4"),
        (X, Y[:3], {}, ValueError, r"y must hold one integer class per sample, shape \(4,\).*\(3,\)"),
        (X, Y.float(), {}, ValueError, r"one integer class per sample.*torch\.float32"),
        (X, Y + 1, {}, ValueError, "y must be from 0 to 2, the model's classes, got 1 to 3"),
        (X, Y - 1, {}, ValueError, "y must be from 0 to 2, the model's classes, got -1 to 1"),
    ],
)
def test_bad_samples_and_labels(x: Any, y: Any, arguments: dict[str, Any], error: Any, message: str, keep: Any) -> None:
    with pytest.raises(error, match=message):
        LinfPGD(keep=keep, steps=1, **arguments)(linear(3, 8), x, y)


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)), "gives probabilities.*need logits: leave out the softmax"),
        (nn.Linear(8, 1), r"at least 2 classes, got \(4, 1\)"),
        (nn.Unflatten(1, (2, 4)), r"logits of shape \(4, classes\).* got \(4, 2, 4\)"),
        (nn.Sequential(nn.Linear(8, 3), nn.Threshold(1e9, float("nan"))), "NaN or infinite logits for 4 of 4 samples"),
    ],
)
def test_bad_models(model: nn.Module, message: str, keep: Any) -> None:
    with pytest.raises(ValueError, match=message):
        LinfPGD(keep=keep, steps=1)(model, X, torch.zeros(4, dtype=torch.int64))


def test_random_model_in_training_mode() -> None:
    model = nn.Sequential(linear(3, 8), nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"training mode and answers the same samples differently; call model\.eval"):
        LinfPGD(model_mode="keep")(model, X)
    LinfPGD(steps=2)(model, X)
    LinfPGD(steps=2, model_mode="keep")(model.eval(), X)
    LinfPGD(steps=2, model_mode="keep")(EOT(model, num_samples=3).train(), X)


@pytest.mark.parametrize("attack", [LinfPGD(), FAB(), JSMA()], ids=lambda attack: type(attack).__name__)
def test_model_without_gradient_points_to_bpda(attack: Attack) -> None:
    model = linear(3, 8)
    with pytest.raises(ValueError, match=r"no gradient with respect to its input.*BPDA.*Square"):
        attack(lambda x: model(x.detach()), X)
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        attack(lambda x: model.requires_grad_(False)(x.detach()), X)


@pytest.mark.parametrize(
    ("shift", "norm", "eps", "bounds", "message"),
    [
        (0.5, "linf", 0.1, None, "The attack broke its radius: linf distance"),
        (float("nan"), "linf", 0.1, None, "not finite"),
        (0.5, None, None, (0.0, 1.0), r"The attack left the bounds by .* on sample \d, with values from"),
    ],
)
def test_an_attack_that_cheats_is_caught(shift: float, norm: Any, eps: Any, bounds: Any, message: str) -> None:
    class Cheat(Attack):
        def attack(self, state: AttackState) -> Outcome:
            x = state.x + shift
            return Outcome(x, torch.ones(len(x), dtype=torch.bool), torch.zeros(len(x)))

    attack = Cheat(bounds=bounds)
    attack.norm, attack.eps = norm, eps
    with pytest.raises(RuntimeError, match=message):
        attack(linear(3, 8), X)


@pytest.mark.parametrize("keep", ["first", "best", "last"])
def test_queries_are_the_points_that_the_model_saw(keep: Any) -> None:
    model = Recorder(linear(3, 8))
    result = LinfPGD(eps=0.2, steps=5, step_size=0.05, keep=keep, restarts=2, eot_samples=2).run(model, X)
    assert int(result.num_queries.sum()) == model.points


@pytest.mark.parametrize("keep", ["first", "last"])
def test_answers_replace_missing_labels(keep: Any) -> None:
    model = linear(3, 8)
    attack = LinfPGD(eps=0.2, steps=3, step_size=0.1, keep=keep)
    assert torch.equal(attack(model, X), attack(model, X, model(X).argmax(1)))


@pytest.mark.parametrize("kind", [LinfPGD, FGSM, APGD, Square, AutoAttack])
def test_a_radius_in_levels_of_255_is_doubted(kind: Any) -> None:
    with pytest.warns(UserWarning, match=r"eps=8 is larger than any linf distance within the bounds, 1; .* 8/255\?"):
        kind(eps=8)


def test_a_radius_beyond_the_bounds_is_doubted_in_any_norm() -> None:
    for kind, largest in ((L2PGD, 8**0.5), (L1PGD, 8.0)):
        with pytest.warns(UserWarning, match=r"is larger than any l[12] distance within the bounds"):
            kind(eps=largest * 1.01, steps=1)(linear(3, 8), X)
    with pytest.warns(UserWarning, match=r"larger than any linf distance within the bounds, 2; .* 8/255\?"):
        LinfPGD(eps=8, steps=1, bounds=(-torch.ones(8), torch.ones(8)))(linear(3, 8), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attack in (L2PGD(eps=8**0.5 * 0.99, steps=1), L1PGD(eps=7.9, steps=1), LinfPGD(eps=1.0, steps=1)):
            attack(linear(3, 8), X)
        LinfPGD(eps=8, bounds=(0, 255))
        LinfPGD(eps=8, bounds=None)


@pytest.mark.parametrize("kind", [FGSM, FGM])
def test_training_moves_misclassified_samples_and_a_record_does_not(kind: Any) -> None:
    model = linear(3, 8)
    y = (model(X).argmax(1) + 1) % 3
    attack = kind(eps=0.1, keep="last")
    assert bool((attack(model, X, y) != X).any(1).all())
    assert torch.equal(attack.run(model, X, y).adversarial, X)
    assert torch.equal(kind(eps=0.1)(model, X, y), X)


def test_norms_in_float64() -> None:
    x = torch.full((2, 3), 0.5)
    moved = x + torch.tensor([[0.25, 0.0, -0.25], [0.125, 0.0, 0.0]])
    for norm, expected in (("linf", [0.25, 0.125]), ("l1", [0.5, 0.125]), ("l0", [2, 1]), (None, [0.125**0.5, 0.125])):
        distance = audit_perturbation(x, moved, norm=norm, bounds=(0, 1))
        torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_sample_beyond_its_radius_is_named(dtype: torch.dtype, norm: str) -> None:
    x = torch.full((3, 4), 0.5, dtype=dtype)
    moved = x.clone()
    moved[1, :2] += 0.25
    size = float(audit_perturbation(x, moved, norm=norm)[1])
    audit_perturbation(x, moved, norm=norm, eps=size)
    with pytest.raises(RuntimeError, match=rf"^'mine' broke its radius: {norm} distance {size:.8g} of sample 41,"):
        audit_perturbation(x, moved, norm=norm, eps=size * 0.9999, name="'mine'", samples=[40, 41, 42])
    with pytest.raises(RuntimeError, match=r"of sample 1, allowed 0\.1"):
        audit_perturbation(x, moved, norm=norm, eps=torch.tensor([0.0, 0.1, 0.0]))


def test_bounds_are_exact_in_the_samples_precision() -> None:
    x, upper = torch.full((2, 2), 0.05), torch.full((2, 2), 0.1)  # the float32 nearest to 0.1 lies above it
    audit_perturbation(x, upper, bounds=(0.0, 0.1))
    with pytest.raises(RuntimeError, match=r"left the bounds by 7\.45.*e-09 on sample 0, with values from 0"):
        audit_perturbation(x, torch.nextafter(upper, torch.ones(2, 2)), bounds=(0.0, 0.1))
    with pytest.raises(RuntimeError, match=r"left the bounds by 0\.05\d* on sample 0"):
        audit_perturbation(x, torch.zeros(2, 2), bounds=(torch.tensor([[0.0, 0.05]]), torch.ones(1, 2)))


def test_samples_of_another_shape_or_not_finite() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"gave samples of shape \(2, 1\) for \(2, 3\)"):
        audit_perturbation(x, x[:, :1])
    with pytest.raises(RuntimeError, match="values that are not finite, for sample 1"):
        audit_perturbation(x, torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]]))


@pytest.mark.parametrize(
    ("attack", "shape", "scale"),
    [
        (LinfPGD(eps=1.0, steps=3, step_size=0.5, bounds=(0, 255)), (3, 32, 32), 255.0),
        (LinfPGD(eps=0.1, steps=3, bounds=None), (3, 32, 32), 20.0),
        (LinfPGD(eps=0.2, steps=5, step_size=0.3, bounds=(0, 1000)), (784,), 1000.0),
        (L2PGD(eps=0.1, steps=3, step_size=0.05), (3, 64, 64), 1.0),
        (L2PGD(eps=0.5, steps=5, step_size=0.3, bounds=(0, 1000)), (784,), 1000.0),
        (L1PGD(eps=0.1, steps=3, step_size=0.03), (3, 32, 32), 1.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3, sparsity=0.0), (3, 64, 64), 1.0),
        (L1PGD(eps=1.0, steps=5, step_size=0.3, bounds=(0, 1000)), (784,), 1000.0),
        (Square(norm="l2", eps=0.5, queries=20), (3, 32, 32), 1.0),
        (APGD(norm="l1", eps=12.0, steps=10), (3, 32, 32), 1.0),
    ],
    ids=str,
)
def test_rounding_to_float32_is_no_cheating(attack: Any, shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, *shape) * scale
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    result = attack.run(lambda z: net(z / scale), x)
    assert bool((result.distance <= attack.eps * 1.01).all())
    again = audit_perturbation(x, result.adversarial, norm=attack.norm, eps=attack.eps, bounds=attack.bounds)
    assert torch.equal(again, result.distance)


class Factor:
    """A loss that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.factor * margin(logits, label)


def closure(factor: float) -> Any:
    return lambda logits, label: factor * margin(logits, label)


def scaled(logits: Tensor, label: Tensor, factor: float) -> Tensor:
    return factor * margin(logits, label)


CrossEntropy = functools.partial(nn.CrossEntropyLoss, reduction="none")
RADII = torch.full((40,), 0.1)
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": ({"loss": "margin"}, {"loss": "dlr"}),
    "function": ({"loss": margin}, {"loss": closure(1.0)}),
    "closure": ({"loss": closure(1.0)}, {"loss": closure(2.0)}),
    "partial": ({"loss": functools.partial(scaled, factor=1)}, {"loss": functools.partial(scaled, factor=2)}),
    "object": ({"loss": Factor(1.0)}, {"loss": Factor(2.0)}),
    "method": ({"loss": Factor(1.0).__call__}, {"loss": Factor(2.0).__call__}),
    "module": ({"loss": CrossEntropy()}, {"loss": CrossEntropy(label_smoothing=0.3)}),
    "weight": ({"loss": CrossEntropy(torch.ones(40))}, {"loss": CrossEntropy(torch.ones(40) * 2)}),
    "radii": ({"eps": RADII}, {"eps": RADII.index_fill(0, torch.tensor([39]), 0.2)}),
    "bounds": ({"bounds": (0.0, torch.ones(3, 1, 1))}, {"bounds": (0.0, torch.ones(3))}),
    "number": ({"bounds": (0.0, torch.tensor(1.0))}, {}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_other_settings_have_another_text(kind: str) -> None:
    first, second = PAIRS[kind]
    assert repr(BestOf(attacks=[LinfPGD(**first)])) != repr(BestOf(attacks=[LinfPGD(**second)]))
    assert repr(LinfPGD(**first)) == repr(LinfPGD(**first)) != repr(LinfPGD(**second))
    assert " at 0x" not in repr(LinfPGD(**first))
    assert identify(LinfPGD(**first)) != identify(LinfPGD(**second))


def test_texts() -> None:
    for kind in (SparseL1Descent, LinfBIM, L2BIM):  # arguments of the bases
        assert repr(kind(eot_samples=3)).endswith("eot_samples=3)")
        assert "random_start" not in repr(kind())
    assert repr(FGSM()) == "FGSM(eps=0.3, loss='cross_entropy', keep='first', eot_samples=1)"
    standard = "AutoAttack(norm='linf', eps=0.3, version='standard', attacks=None, check=True, seed=2)"
    assert repr(AutoAttack(seed=2)) == standard
    first, second = Factor(1.0), Factor(1.0)
    first.factor, second.factor = torch.Generator(), torch.Generator()  # type: ignore[assignment]  # have no hash
    assert repr(LinfPGD(loss=first)) != repr(LinfPGD(loss=second))


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD, L1PGD, SparseL1Descent, FGSM, FGM, LinfMomentum, L2Momentum])
def test_untouched_coordinates_give_no_nan(kind: Any) -> None:
    start = {"random_start": False} if kind in (LinfPGD, L2PGD, L1PGD) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversarial = kind(eps=0.3, keep="last", **start)(opposed(torch.eye(8)[0], -0.5), X)
    assert bool(torch.isfinite(adversarial).all())
    assert bool((adversarial[:, 0] != X[:, 0]).all())
    assert torch.equal(adversarial[:, 1:], X[:, 1:])
    with pytest.warns(UserWarning, match="gradient of the loss is exactly zero for all 4 samples"):
        still = kind(eps=0.3, keep="last", **start)(lambda x: x[:, :2] * 0 + torch.tensor([2.0, 0.0]), X)
    assert torch.equal(still, X)


@pytest.mark.parametrize("keep", ["first", "best"])
def test_the_iterate_that_fooled_comes_back(keep: Any) -> None:
    def sawtooth(x: Tensor) -> Tensor:
        """Fooled by 0.55, not by 0.6 and more: the last step of a walk up is classified correctly again."""
        bump = 0.03 - (x.mean(1) - 0.55).abs()
        return torch.stack([torch.zeros_like(bump), bump], 1)

    attack = LinfPGD(eps=0.1, step_size=0.05, steps=6, random_start=False, loss=cross_entropy, keep=keep)
    result = attack.run(sawtooth, torch.full((1, 4), 0.5), torch.tensor([0]))
    assert bool(result.success.all())
    assert int(sawtooth(result.adversarial).argmax()) == 1
