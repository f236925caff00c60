"""Base of the attacks: checks of input and output, texts, and faults of earlier toolboxes."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import (
    APGD,
    EOT,
    FGM,
    FGSM,
    L1PGD,
    L2BIM,
    L2PGD,
    Attack,
    AutoAttack,
    BestOf,
    LinfBIM,
    LinfPGD,
    SparseL1Descent,
    SpatialTransform,
    Square,
)
from lit_modules.attacks.engine.checks import audit_perturbation
from lit_modules.attacks.engine.losses import cross_entropy, margin
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.utils.fingerprint import identify


def linear(classes: int = 3, size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize(
    ("x", "y", "arguments", "error", "message"),
    [
        (
            (X * 255).byte(),
            Y,
            {},
            TypeError,
            r"x must be a floating-point tensor, got torch\.uint8; divide 8-bit images",
        ),
        (X.numpy(), Y, {}, TypeError, "got ndarray"),
        (X[0], Y, {}, ValueError, r"shape \(batch, \.\.\.\), got \(8,\)"),
        (X[:, :0], Y, {}, ValueError, r"a batch of samples.*got \(4, 0\)"),
        (X * float("nan"), Y, {}, ValueError, "x holds NaN or infinite values in 4 samples"),
        (
            X * 2 - 1,
            Y,
            {},
            ValueError,
            r"outside the bounds 0 to 1; normalise inside the model, or pass bounds=",
        ),
        (X, Y, {"bounds": (1.0, 0.0)}, ValueError, "lower bound must not be above the upper one"),
        (X, Y, {"bounds": (0.0, torch.ones(3))}, ValueError, r"bounds of shape \(3,\) do not broadcast to x, \(4, 8\)"),
        (
            X,
            Y,
            {"eps": torch.rand(3)},
            ValueError,
            "eps has 3 values for a batch of 4; give one number, or one per sample",
        ),
        (X, Y[:3], {}, ValueError, r"y must hold one integer class per sample, shape \(4,\).*\(3,\)"),
        (X, Y.float(), {}, ValueError, r"one integer class per sample.*torch\.float32"),
        (X, [0, 1, 2, 0], {}, ValueError, "one integer class per sample.*got list"),
        (X, Y + 1, {}, ValueError, "y must be from 0 to 2, the model's classes, got 1 to 3"),
        (X, Y - 1, {}, ValueError, "y must be from 0 to 2, the model's classes, got -1 to 1"),
        (X, Y - 100, {}, ValueError, "y must be from 0 to 2, the model's classes, got -100 to -98"),
        (X, None, {"targeted": True}, ValueError, "A targeted attack needs y"),
    ],
)
def test_bad_samples_and_labels(x: Any, y: Any, arguments: dict[str, Any], error: Any, message: str, keep: Any) -> None:
    with pytest.raises(error, match=message):
        LinfPGD(keep=keep, steps=1, **arguments)(linear(), x, y)


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)),
            "gives probabilities.*attacks need logits: leave out the softmax",
        ),
        (nn.Linear(8, 1), r"at least 2 classes, got \(4, 1\)"),
        (nn.Unflatten(1, (2, 4)), r"logits of shape \(4, classes\).* got \(4, 2, 4\)"),
        (nn.Sequential(nn.Linear(8, 3), nn.Threshold(1e9, float("nan"))), "NaN or infinite logits for 4 of 4 samples"),
    ],
)
def test_bad_models(model: nn.Module, message: str, keep: Any) -> None:
    with pytest.raises(ValueError, match=message):
        LinfPGD(keep=keep, steps=1)(model, X, torch.zeros(4, dtype=torch.int64))


def test_step_size_of_the_wrong_length() -> None:
    with pytest.raises(ValueError, match="step_size has 3 values for a batch of 4"):
        LinfPGD(step_size=torch.rand(3) + 0.1)(linear(), X)
    one = LinfPGD(step_size=torch.tensor([0.05]), random_start=False)(linear(), X)
    assert torch.equal(one, LinfPGD(step_size=0.05, random_start=False)(linear(), X))


def test_random_model_in_training_mode() -> None:
    model = nn.Sequential(linear(), nn.Dropout(0.5))
    with pytest.raises(
        ValueError, match=r"in training mode and answers the same samples differently; call model\.eval"
    ):
        LinfPGD(model_mode="keep")(model, X)
    LinfPGD(steps=2)(model, X)
    LinfPGD(steps=2, model_mode="keep")(model.eval(), X)
    LinfPGD(steps=2, model_mode="keep")(EOT(model, num_samples=3).train(), X)


def test_constant_model_warns() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([2.0, 0.0]).expand(len(x), 2) + 0 * x.sum(1, keepdim=True)

    with pytest.warns(UserWarning, match="gradient of the loss is exactly zero for all 4 samples"):
        result = LinfPGD(steps=2).run(Constant(), X)
    assert not bool(result.success.any())


def test_model_without_gradient_points_to_bpda() -> None:
    model = linear()
    for hidden in (model, model.requires_grad_(False)):
        with pytest.raises(ValueError, match=r"no gradient with respect to its input.*BPDA.*Square"):
            LinfPGD()(lambda x, hidden=hidden: hidden(x.detach()), X)


@pytest.mark.parametrize(
    ("shift", "message"), [(0.5, "The attack broke its radius: linf distance"), (float("nan"), "not finite")]
)
def test_an_attack_that_cheats_is_caught(shift: float, message: str) -> None:
    class Cheat(Attack):
        norm, eps = "linf", 0.1

        def attack(self, state: AttackState) -> Outcome:
            x = state.x + shift
            return Outcome(x, torch.ones(len(x), dtype=torch.bool), torch.zeros(len(x)))

    with pytest.raises(RuntimeError, match=message):
        Cheat(bounds=None)(linear(), X)

    class Leave(Cheat):
        norm, eps = None, None

    if shift == shift:
        with pytest.raises(RuntimeError, match=r"The attack left the bounds by .* on sample \d, with values from"):
            Leave()(linear(), X)


@pytest.mark.parametrize("attack", [LinfPGD(eps=0.2), L2PGD(eps=0.5), L1PGD(eps=1.0)], ids=lambda a: a.norm)
@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1000.0, 1000.0)])
def test_rounding_of_large_values_is_no_cheating(attack: Attack, bounds: tuple[float, float]) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 784) * (bounds[1] - bounds[0]) + bounds[0]
    attack = type(attack)(eps=attack.eps, steps=5, step_size=0.3, bounds=bounds, loss="margin")
    result = attack.run(linear(3, 784), x)
    assert bool((result.distance <= attack.eps * 1.01).all())


def test_forward_passes_are_those_that_the_model_saw() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen = linear(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.model(x)

    for keep in ("first", "best", "last"):
        model = Counter()
        result = LinfPGD(eps=0.2, steps=5, step_size=0.05, keep=keep, restarts=2, eot_samples=2).run(model, X)  # type: ignore[arg-type]
        assert int(result.num_queries.sum()) == model.seen


def test_answers_replace_missing_labels() -> None:
    model = linear()
    attack = LinfPGD(eps=0.2, steps=3, step_size=0.1)
    assert torch.equal(attack(model, X), attack(model, X, model(X).argmax(1)))
    last = LinfPGD(eps=0.2, steps=3, step_size=0.1, keep="last")
    assert torch.equal(last(model, X), last(model, X, model(X).argmax(1)))


@pytest.mark.parametrize("kind", [LinfPGD, FGSM, APGD, Square, AutoAttack])
def test_a_radius_in_levels_of_255_is_doubted(kind: type[Attack]) -> None:
    with pytest.warns(UserWarning, match=r"eps=8 is larger than any linf distance within the bounds, 1; .* 8/255\?"):
        kind(eps=8)  # type: ignore[call-arg]


def test_a_radius_beyond_the_bounds_is_doubted_in_any_norm() -> None:
    for kind, largest in ((L2PGD, 8**0.5), (L1PGD, 8.0)):
        with pytest.warns(UserWarning, match=r"is larger than any l[12] distance within the bounds"):
            kind(eps=largest * 1.01, steps=1)(linear(), X)
    with pytest.warns(UserWarning, match=r"larger than any linf distance within the bounds, 2; .* 8/255\?"):
        LinfPGD(eps=8, steps=1, bounds=(-torch.ones(8), torch.ones(8)))(linear(), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attack in (L2PGD(eps=8**0.5 * 0.99, steps=1), L1PGD(eps=7.9, steps=1), LinfPGD(eps=1.0, steps=1)):
            attack(linear(), X)
        LinfPGD(eps=8, bounds=(0, 255))
        LinfPGD(eps=8, bounds=None)


def test_a_called_fgsm_leaves_misclassified_samples_and_training_moves_them() -> None:
    model = linear()
    y = (model(X).argmax(1) + 1) % 3
    for kind in (FGSM, FGM):
        assert torch.equal(kind(eps=0.1)(model, X, y), X)
        moved = kind(eps=0.1, keep="last")
        assert bool((moved(model, X, y) != X).flatten(1).any(1).all())
        assert torch.equal(moved.run(model, X, y).adversarial, X)


def test_norms_in_float64() -> None:
    x = torch.full((2, 3), 0.5)
    moved = x + torch.tensor([[0.25, 0.0, -0.25], [0.125, 0.0, 0.0]])
    for norm, expected in (("linf", [0.25, 0.125]), ("l1", [0.5, 0.125]), ("l0", [2, 1]), (None, [0.125**0.5, 0.125])):
        distance = audit_perturbation(x, moved, norm=norm, bounds=(0, 1))
        torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_what_is_beyond_is_named(dtype: torch.dtype, norm: str) -> None:
    x = torch.full((3, 4), 0.5, dtype=dtype)
    moved = x.clone()
    moved[1, :2] += 0.25
    size = float(audit_perturbation(x, moved, norm=norm)[1])
    audit_perturbation(x, moved, norm=norm, eps=size)
    with pytest.raises(
        RuntimeError, match=rf"^'mine' broke its radius: {norm} distance {size:.8g} of sample 41, allow"
    ):
        audit_perturbation(x, moved, norm=norm, eps=size * 0.9999, name="'mine'", samples=[40, 41, 42])
    with pytest.raises(RuntimeError, match=r"of sample 1, allowed 0\.1"):
        audit_perturbation(x, moved, norm=norm, eps=torch.tensor([0.0, 0.1, 0.0]))


def test_bounds_are_exact_in_the_samples_precision() -> None:
    x, upper = torch.full((2, 2), 0.05), torch.full((2, 2), 0.1)  # the float32 nearest to 0.1 lies above it
    audit_perturbation(x, upper, bounds=(0.0, 0.1))
    with pytest.raises(
        RuntimeError, match=r"The attack left the bounds by 7\.45.*e-09 on sample 0, with values from 0"
    ):
        audit_perturbation(x, torch.nextafter(upper, torch.ones(2, 2)), bounds=(0.0, 0.1))
    lower = torch.tensor([[0.0, 0.05]])
    with pytest.raises(RuntimeError, match=r"left the bounds by 0\.05\d* on sample 0"):
        audit_perturbation(x, torch.zeros(2, 2), bounds=(lower, torch.ones(1, 2)))


def test_samples_of_another_shape_or_not_finite() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"gave samples of shape \(2, 1\) for \(2, 3\)"):
        audit_perturbation(x, x[:, :1])
    with pytest.raises(RuntimeError, match="values that are not finite, for sample 1"):
        audit_perturbation(x, torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]]))


class Scaled(nn.Module):
    """A linear classifier of samples in other units."""

    def __init__(self, values: int, scale: float) -> None:
        super().__init__()
        self.net, self.scale = nn.Sequential(nn.Flatten(), nn.Linear(values, 4)), scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x / self.scale)
        return logits


@pytest.mark.parametrize(
    ("attack", "side", "scale"),
    [
        (LinfPGD(eps=1.0, steps=3, step_size=0.5, bounds=(0, 255)), 32, 255.0),
        (LinfPGD(eps=0.1, steps=3, bounds=None), 32, 20.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3), 32, 1.0),
        (L1PGD(eps=0.1, steps=3, step_size=0.03), 32, 1.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3, sparsity=0.0), 64, 1.0),
        (L2PGD(eps=0.1, steps=3, step_size=0.05), 64, 1.0),
        (Square(norm="l2", eps=0.5, queries=20), 32, 1.0),
        (APGD(norm="l1", eps=12.0, steps=10), 32, 1.0),
    ],
    ids=str,
)
def test_rounding_to_float32_is_allowed(attack: Attack, side: int, scale: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, side, side) * scale
    model = Scaled(x[0].numel(), scale).eval()
    result = attack.run(model, x, model(x).argmax(1))
    again = audit_perturbation(x, result.adversarial, norm=attack.norm, eps=attack.eps, bounds=attack.bounds)
    assert torch.equal(again, result.distance)


def make_loss(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, label: Tensor) -> Tensor:
        return factor * margin(logits, label)

    return loss


def scaled(logits: Tensor, label: Tensor, factor: float) -> Tensor:
    return factor * margin(logits, label)


class ScaledDescribe:
    """A loss that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.factor * margin(logits, label)

    def method(self, logits: Tensor, label: Tensor) -> Tensor:
        return self(logits, label)


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": ({"loss": "margin"}, {"loss": "dlr"}),
    "function": ({"loss": margin}, {"loss": make_loss(1.0)}),
    "closure": ({"loss": make_loss(1.0)}, {"loss": make_loss(2.0)}),
    "lambda": ({"loss": lambda x, y: margin(x, y)}, {"loss": lambda x, y: -margin(x, y)}),
    "partial": ({"loss": functools.partial(scaled, factor=1)}, {"loss": functools.partial(scaled, factor=2)}),
    "object": ({"loss": ScaledDescribe(1.0)}, {"loss": ScaledDescribe(2.0)}),
    "method": ({"loss": ScaledDescribe(1.0).method}, {"loss": ScaledDescribe(2.0).method}),
    "module": (
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        {"loss": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)},
    ),
    "weight": (
        {"loss": nn.CrossEntropyLoss(torch.ones(40), reduction="none")},
        {"loss": nn.CrossEntropyLoss(torch.ones(40) * 2, reduction="none")},
    ),
    "radii": ({"eps": torch.full((40,), 0.1)}, {"eps": torch.full((40,), 0.1).index_fill(0, torch.tensor([39]), 0.2)}),
    "bounds": ({"bounds": (0.0, torch.ones(3, 1, 1))}, {"bounds": (0.0, torch.ones(3))}),
    "number": ({"bounds": (0.0, torch.tensor(1.0))}, {}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_other_settings_have_another_text(kind: str) -> None:
    first, second = PAIRS[kind]
    assert repr(LinfPGD(**first)) != repr(LinfPGD(**second))
    assert repr(BestOf(attacks=[LinfPGD(**first)])) != repr(BestOf(attacks=[LinfPGD(**second)]))
    assert repr(LinfPGD(**first)) == repr(LinfPGD(**first))
    assert " at 0x" not in repr(LinfPGD(**first))
    assert identify(LinfPGD(**first)) != identify(LinfPGD(**second))


def test_arguments_of_the_bases_are_shown() -> None:
    for kind in (SparseL1Descent, LinfBIM, L2BIM):
        assert repr(kind(eot_samples=3)).endswith("eot_samples=3)")
        assert "random_start" not in repr(kind())
    assert repr(FGSM()) == "FGSM(eps=0.3, loss='cross_entropy', keep='first', eot_samples=1)"
    assert (
        repr(AutoAttack(seed=2))
        == "AutoAttack(norm='linf', eps=0.3, version='standard', attacks=None, check=True, seed=2)"
    )


def test_what_cannot_be_told_has_its_own_text() -> None:
    class Drawn:
        def __init__(self) -> None:
            self.generator = torch.Generator()

        def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
            return margin(logits, label)

    assert repr(LinfPGD(loss=Drawn())) != repr(LinfPGD(loss=Drawn()))


BOUNDED = [LinfPGD, L2PGD, L1PGD, SparseL1Descent, FGSM, FGM]


def linear_regressions(classes: int = 4, size: int = 36) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "make", [SpatialTransform, lambda: BestOf(attacks=[SpatialTransform(steps=3), FGSM(eps=1e-6)])]
)
def test_failures_are_not_black(make) -> None:  # noqa: ANN001
    model = linear_regressions()
    with torch.no_grad():
        model[1].weight *= 1e-6
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    result = make().run(model, images())
    assert not bool(result.success.any())
    assert torch.allclose(result.adversarial, images(), atol=1e-5)


def test_untouched_coordinates_give_no_nan() -> None:
    class FirstPixel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x.flatten(1)[:, 0]
            return torch.stack([first - 0.5, 0.5 - first], 1)

    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in BOUNDED:
            adversarial = (
                kind(random_start=False)(FirstPixel(), x)
                if kind in (LinfPGD, L2PGD, L1PGD)
                else kind()(FirstPixel(), x)
            )
            assert bool(torch.isfinite(adversarial).all())
            assert torch.equal(adversarial.flatten(1)[:, 1:], x.flatten(1)[:, 1:])


def test_negative_logits_have_a_best_other() -> None:
    logits = torch.tensor([[-1.0, -5.0, -7.0]])
    assert margin(logits, torch.tensor([0])).tolist() == [-4.0]
    assert margin(logits, torch.tensor([2])).tolist() == [6.0]


def test_arguments_are_not_changed() -> None:
    x, y, eps = images(), torch.zeros(6, dtype=torch.int64), torch.full((6,), 0.2)
    lower, upper = torch.zeros(1, 6, 6), torch.ones(1, 6, 6)
    copies = [value.clone() for value in (x, y, eps, lower, upper)]
    for kind in BOUNDED:
        kind(eps=eps, bounds=(lower, upper))(linear_regressions(), x, y)
    for value, copy in zip((x, y, eps, lower, upper), copies, strict=True):
        assert torch.equal(value, copy)
        assert not value.requires_grad


class Sawtooth(nn.Module):
    """Fooled by 0.55, not by 0.6 and more: the last step of a walk up is classified correctly again."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1)
        bump = 0.03 - (value - 0.55).abs()
        return torch.stack([torch.zeros_like(bump), bump + 0 * value], 1)


def test_the_iterate_that_fooled_comes_back() -> None:
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    arguments = {"eps": 0.1, "step_size": 0.05, "steps": 6, "random_start": False, "loss": cross_entropy}
    for keep in ("first", "best"):
        result = LinfPGD(**arguments, keep=keep).run(Sawtooth(), x, y)  # type: ignore[arg-type]
        assert bool(result.success.all())
        assert int(Sawtooth()(result.adversarial).argmax()) == 1


def test_fooled_samples_leave() -> None:
    seen: list[int] = []
    model = linear_regressions()

    def spy(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model(x)

    LinfPGD(eps=0.1, steps=20, step_size=0.01, random_start=False)(spy, images(30))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0]
