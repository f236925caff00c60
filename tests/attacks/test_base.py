"""What every attack shares: one sentence for each bad input, and the bookkeeping of a run."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.apgd import APGD
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.attacks.ensembles import AutoAttack
from lit_modules.attacks.pgd import FGM, FGSM, L1PGD, L2PGD, LinfPGD
from lit_modules.attacks.square import Square
from lit_modules.attacks.wrappers import EOT


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
