"""Auto-PGD: its checkpoints by hand, its three norms, and what its arguments promise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import APGD, APGDT, L1PGD, L2PGD, LinfPGD
from lit_modules.attacks.engine.losses import targeted_dlr
from lit_modules.attacks.engine.norms import lp_norm
from tests.attacks.helpers import Recorder, convolutional, images

EPS: dict[str, float] = {"linf": 0.06, "l2": 0.3, "l1": 2.0}
norms: Any = pytest.mark.parametrize("norm", EPS)


def walk(make_loss: Any) -> list[float]:
    """The iterates around 0 within radius 1 without bounds, from the first seed whose start is 1."""
    for seed in range(20):
        model = Recorder(lambda x: torch.cat([10 + x, torch.zeros_like(x)], 1))  # never fooled
        attack = APGD(eps=1, steps=10, loss=make_loss(), bounds=None, keep="best", seed=seed)
        attack(model, torch.zeros(1, 1), torch.tensor([0]))
        if float(model.asked[1]) > 0:
            return [float(point) for point in model.asked[1:]]
    raise AssertionError("no seed starts above")


def test_checkpoints_by_hand() -> None:
    """Ten steps: the first checkpoint after two, then one after each. The loss is highest at 0.3."""
    points = walk(lambda: lambda logits, y: -(logits[:, 0] - 10.3).abs())
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

    def make_loss() -> Any:
        queries = iter(range(12))  # the clean sample, then the iterates

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            number = next(queries)
            return values[number] + signs[number] * (logits[:, 0] - logits[:, 0].detach())

        return loss

    expected = [
        1.0,
        -1.0,
        0.0,  # two rises: nothing changes
        0 - 0.75 + 0.25 * 1,  # -0.5: a fall: halve to 1, return to 0
        -0.75,  # a rise below the best, just after a halving: nothing changes
        -0.75 + 0.75 + 0.25 * -0.75,  # -0.1875: again a rise below the best: halve to 0.5, return to 0
        0 - 0.75 * 0.5 + 0.25 * 0.75,  # -0.1875
    ]
    assert walk(make_loss)[: len(expected)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_on_the_sphere(norm: Any) -> None:
    model, x = Recorder(convolutional()), images()
    APGD(norm=norm, eps=0.2, steps=1, bounds=None)(model, x)
    assert torch.allclose(lp_norm(model.asked[1] - x, norm), torch.full((12,), 0.2), atol=1e-5)


@norms
def test_linear_model_falls_at_its_distance(norm: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 2)
    x = images(100, 10, seed=0) * 0.1 + 0.45
    weight = (model.weight[1] - model.weight[0]).detach()
    dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    margin = (model(x)[:, 0] - model(x)[:, 1]).abs().detach() / dual
    # in L1 a step moves two coordinates or more, here of weights 0.23 and 0.22
    for factor, falls in ((0.98, False), (1.1 if norm == "l1" else 1.02, True)):
        result = APGD(norm=norm, eps=margin * factor, bounds=None, steps=50).run(model, x)
        assert bool((result.success == falls).all())


@pytest.mark.parametrize(("norm", "peer"), [("linf", LinfPGD), ("l2", L2PGD), ("l1", L1PGD)])
def test_loss_is_not_below_that_of_pgd(norm: Any, peer: Any) -> None:
    model, x, eps = convolutional(), images(40), EPS[norm]
    ours = APGD(norm=norm, eps=eps, steps=40, keep="best")
    theirs = peer(eps=eps, steps=40, step_size=eps / 5, keep="best")
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(a(model, x)), model(x).argmax(1)) for a in (ours, theirs)]
    assert losses[0] >= losses[1] - 1e-3


def test_l1_perturbations_are_sparse() -> None:
    model, x = convolutional(), images(20)
    l1, l2 = (APGD(norm=norm, eps=EPS[norm], keep="best")(model, x) - x for norm in ("l1", "l2"))  # type: ignore[arg-type]
    shares = [float((move.abs() > 1e-6).float().mean()) for move in (l1, l2)]
    assert shares[0] < 0.3 < shares[1]


@norms
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_few_steps(norm: Any, steps: int) -> None:
    result = APGD(norm=norm, eps=EPS[norm], steps=steps, keep="best").run(convolutional(), images())
    assert bool((result.num_queries >= steps + 2).all())  # the clean sample, a start, and one after each step
    assert bool((result.distance <= EPS[norm] * (1 + 1e-6) + 1e-6).all())


@pytest.mark.parametrize(("larger_eps", "largest"), [(True, 6), (False, 2)])
def test_larger_radii_come_first_in_l1(larger_eps: bool, largest: float) -> None:
    model, x = Recorder(convolutional()), images(4)
    APGD(norm="l1", eps=2.0, steps=20, larger_eps=larger_eps, bounds=None, keep="best")(model, x)
    sizes = [float(lp_norm(point - x, "l1").max()) for point in model.asked]
    assert max(sizes) == pytest.approx(largest, rel=1e-4)
    assert max(sizes[15:]) <= 2.0001  # the clean sample, then 6, 6 and 8 steps from a start each


def test_targets_of_apgdt_are_the_likely_classes_in_turn() -> None:
    model, x = convolutional(), images(20)
    one, every = (APGDT(eps=0.03, steps=6, targets=targets).run(model, x) for targets in (1, 9))  # there are but 4
    assert bool((every.success >= one.success).all())
    assert bool((every.num_queries[~every.success] == 4 * 7 + 1).all())
    label, top = model(x).topk(2).indices.T
    towards = (targeted_dlr(model(one.adversarial), label, top) - targeted_dlr(model(x), label, top)).detach()
    assert bool((towards[~one.success] >= -1e-6).all())
    assert float(towards.mean()) > 0
