"""Auto-PGD: its checkpoints by hand, its three norms, and what its arguments promise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import APGD, APGDT, L1PGD, L2PGD, LinfPGD
from lit_modules.attacks.engine.losses import dlr, targeted_dlr
from lit_modules.attacks.engine.norms import lp_norm

EPS: dict[str, float] = {"linf": 0.06, "l2": 0.3, "l1": 2.0}
NORMS = list(EPS)


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6, classes)).eval()


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 2, 4, 6, generator=torch.Generator().manual_seed(1))


class Recorder(nn.Module):
    """One number per sample, never fooled; keeps the points it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(float(x.detach()[0, 0]))
        return torch.cat([10 + x, torch.zeros_like(x)], 1)


def walk(loss: Any, **arguments: Any) -> list[float]:
    """The iterates around 0 within radius 1 without bounds, turned so that the first is 1."""
    for seed in range(20):
        model = Recorder()
        APGD(eps=1, steps=10, loss=loss, bounds=None, keep="best", seed=seed, **arguments)(
            model, torch.zeros(1, 1), torch.tensor([0])
        )
        if model.points[1] > 0:
            return model.points[1:]
    raise AssertionError("no seed starts above")


def test_checkpoints_by_hand() -> None:
    """Ten steps: the first checkpoint after two, then one after each. The loss is highest at 0.3."""
    points = walk(lambda logits, y: -(logits[:, 0] - 10.3).abs())
    expected = [
        1.0,  # start on the sphere
        -1.0,  # a step of 2, clipped; no momentum in the first
        -1 + 0.75 * 2 + 0.25 * -2,  # 0: the loss rose once in two steps: halve to 1, stay at the best, 0
        0 + 0.75 * 1 + 0.25 * 1,  # 1: no rise: halve to 0.5, return to 0
        0.75 * 0.5,  # 0.375: a rise
        0.375 - 0.75 * 0.5 + 0.25 * 0.375,  # 0.09375: no rise: halve to 0.25, return to 0.375
        0.375 - 0.75 * 0.25,  # 0.1875: a rise over the step before, though not over the best
        0.1875 + 0.75 * 0.25 + 0.25 * (0.1875 - 0.375),  # 0.328125: the best
    ]
    assert points[: len(expected)] == pytest.approx(expected, abs=1e-5)
    assert len(points) == 11


def test_second_rule_of_the_checkpoints_by_hand() -> None:
    """Rises below the best halve the step too, unless it was halved at the checkpoint before."""
    values, signs = [0, 0, 1, 2, -5, -4, -3, -3, -3, -3, -3, -3], [1, -1, 1, -1, 1, 1, 1, 1, 1, 1, 1, 1]
    asked = iter(range(12))  # the clean sample, then the iterates

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        number = next(asked)
        return values[number] + signs[number] * (logits[:, 0] - logits[:, 0].detach())

    seed = next(s for s in range(20) if float(APGD(eps=1, bounds=None)._start(_state(s))) > 0)
    model = Recorder()
    APGD(eps=1, steps=10, loss=loss, bounds=None, keep="best", seed=seed)(model, torch.zeros(1, 1), torch.tensor([0]))
    expected = [
        1.0,
        -1.0,
        0.0,  # two rises: nothing changes
        0 - 0.75 + 0.25 * 1,  # -0.5: a fall: halve to 1, return to 0
        -0.75,  # a rise below the best, just after a halving: nothing changes
        -0.75 + 0.75 + 0.25 * -0.75,  # -0.1875: again a rise below the best: halve to 0.5, return to 0
        0 - 0.75 * 0.5 + 0.25 * 0.75,  # -0.1875
    ]
    assert model.points[1:8] == pytest.approx(expected, abs=1e-5)


def _state(seed: int) -> Any:
    """A state of one sample at 0, with the random numbers that the first restart gets."""
    with torch.no_grad():
        state = APGD(eps=1, bounds=None).prepare(Recorder(), torch.zeros(1, 1), torch.tensor([0]), seed)
    state.random = state.random.fork(0)
    return state


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_on_the_sphere(norm: str) -> None:
    seen: list[Tensor] = []
    model, x = network(), images()

    def spy(x: Tensor) -> Any:
        seen.append(x.detach().clone())
        return model(x)

    APGD(norm=norm, eps=0.2, steps=1, bounds=None)(spy, x)  # type: ignore[arg-type]
    assert torch.allclose(lp_norm(seen[1] - x, norm), torch.full((12,), 0.2), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_falls_at_its_distance(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 2)
    x = torch.rand(100, 10, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45
    weight = (model.weight[1] - model.weight[0]).detach()
    dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    margin = (model(x)[:, 0] - model(x)[:, 1]).abs().detach() / dual
    # in L1 a step moves two coordinates or more, here of weights 0.23 and 0.22
    for factor, falls in ((0.98, False), (1.1 if norm == "l1" else 1.02, True)):
        result = APGD(norm=norm, eps=margin * factor, bounds=None, steps=50).run(model, x)  # type: ignore[arg-type]
        assert bool((result.success == falls).all())


@pytest.mark.parametrize(("norm", "peer"), [("linf", LinfPGD), ("l2", L2PGD), ("l1", L1PGD)])
def test_loss_is_not_below_that_of_pgd(norm: str, peer: Any) -> None:
    model, x = network(), images(40)
    label = model(x).argmax(1)

    def loss(adversarial: Tensor) -> float:
        return float(nn.functional.cross_entropy(model(adversarial), label).detach())

    eps = EPS[norm]
    mine = APGD(norm=norm, eps=eps, steps=40, keep="best")(model, x)  # type: ignore[arg-type]
    theirs = peer(eps=eps, steps=40, step_size=eps / 5, keep="best")(model, x)
    assert loss(mine) >= loss(theirs) - 1e-3


def test_l1_perturbations_are_sparse() -> None:
    model, x = network(), images(20)
    changed = {
        norm: float(((APGD(norm=norm, eps=EPS[norm], keep="best")(model, x) - x).abs() > 1e-6).float().mean())
        for norm in ("l1", "l2")
    }
    assert changed["l1"] < 0.3 < changed["l2"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_few_steps(norm: str, steps: int) -> None:
    result = APGD(norm=norm, eps=EPS[norm], steps=steps, keep="best").run(network(), images())  # type: ignore[arg-type]
    assert bool((result.num_queries >= steps + 2).all())  # the clean sample, a start, and one after each step
    assert bool((result.distance <= EPS[norm] * (1 + 1e-6) + 1e-6).all())


@pytest.mark.parametrize("larger_eps", [True, False])
def test_larger_radii_come_first_in_l1(larger_eps: bool) -> None:
    seen: list[float] = []
    model, x = network(), images(4)

    def spy(point: Tensor) -> Any:
        seen.append(float(lp_norm(point.detach() - x, "l1").max()))
        return model(point)

    APGD(norm="l1", eps=2.0, steps=20, larger_eps=larger_eps, bounds=None, keep="best")(spy, x)
    assert max(seen) == pytest.approx(6 if larger_eps else 2, rel=1e-4)
    assert max(seen[15:]) <= 2.0001  # the clean sample, then 6, 6 and 8 steps from a start each


def test_best_takes_all_steps_and_first_leaves() -> None:
    model, x = network(), images(40)
    label = model(x).argmax(1)
    first = APGD(eps=0.06, steps=20).run(model, x)
    best = APGD(eps=0.06, steps=20, keep="best").run(model, x)
    assert bool(first.success.any())
    assert torch.equal(first.success, best.success)
    assert bool((best.num_queries == 22).all())  # the clean sample, the start, and one after each step
    assert bool((first.num_queries[first.success] < 22).any())
    loss = nn.CrossEntropyLoss(reduction="none")
    assert bool((loss(model(best.adversarial), label) >= loss(model(first.adversarial), label) - 1e-5).all())


def test_passes_are_averaged() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 2)
    truth = linear.weight[1] - linear.weight[0]
    x, label = torch.rand(64, 20), torch.zeros(64, dtype=torch.int64)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([50.0, 0.0]))

    def model(x: Tensor) -> Any:
        return linear(x) + 4 * (x @ torch.randn(20, 1)) * torch.tensor([1.0, -1.0])

    def gain(passes: int) -> float:
        attack = APGD(eps=0.1, steps=3, loss="margin", bounds=None, eot_samples=passes)
        result = attack.run(model, x, label)
        assert bool((result.num_queries == 1 + 3 * passes + 1).all())
        return float(((result.adversarial - x) @ truth.detach()).mean())

    assert gain(60) > gain(1)


def test_targets_of_apgdt_are_the_likely_classes_in_turn() -> None:
    model, x = network(), images(20)
    one = APGDT(eps=0.03, steps=6, targets=1).run(model, x)
    all_targets = APGDT(eps=0.03, steps=6, targets=9).run(model, x)  # there are but 4 others
    assert bool((all_targets.success >= one.success).all())
    assert bool((all_targets.num_queries[~all_targets.success] == 4 * 7 + 1).all())
    failed = ~one.success
    likely = model(x).argsort(1, descending=True)
    top, label = likely[:, 1], likely[:, 0]
    towards = targeted_dlr(model(one.adversarial), label, top) - targeted_dlr(model(x), label, top)
    assert bool((towards[failed] >= -1e-6).all())
    assert float(towards.mean()) > 0


def test_dlr_losses_by_hand() -> None:
    logits = torch.tensor([[4.0, 3.0, 1.0, 0.0]])
    assert float(dlr(logits, torch.tensor([0]))) == pytest.approx(-1 / 3)
    assert float(dlr(logits, torch.tensor([2]))) == pytest.approx(3 / 3)
    assert float(targeted_dlr(logits, torch.tensor([0]), torch.tensor([2]))) == pytest.approx(-3 / 3.5)
    assert torch.allclose(dlr(7 * logits + 2, torch.tensor([0])), dlr(logits, torch.tensor([0])))


@pytest.mark.parametrize(
    ("attack", "classes", "message"),
    [
        (APGD(loss="dlr"), 2, "DLR loss needs at least 3 classes, got 2; use loss='margin'"),
        (APGDT(), 3, "targeted DLR loss needs at least 4 classes, got 3"),
    ],
)
def test_too_few_classes(attack: APGD, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(network(classes), images())
