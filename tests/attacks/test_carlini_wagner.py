"""The attack of Carlini and Wagner, elastic net, and what attacks by optimisation share."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import LBFGS, Attack, CarliniWagner, CarliniWagnerLinf, ElasticNet
from lit_modules.attacks.engine.losses import margin
from tests.attacks.helpers import images


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5))
    with torch.no_grad():
        model[0].weight *= 3
        model[2].weight *= 6
    return model.eval()


def samples(count: int = 12) -> Tensor:
    return images(count, 16) * 0.4 + 0.3


def test_nearest_boundary_beats_the_largest_logit() -> None:
    weight = torch.tensor([[3.0, 3.0], [2.0, 3.0], [2.0, -12.0]])  # class 1 has the larger logit, 2 the nearer boundary
    x = torch.tensor([[0.6, 0.1]])
    assert (x @ weight.T).argsort(descending=True).tolist() == [[0, 1, 2]]
    result = CarliniWagner(bounds=None, steps=300).run(lambda z: z @ weight.T, x)
    away = weight[0] - weight[2]
    assert float(result.distance) == pytest.approx(float(x[0] @ away / away.norm()), rel=0.01)


def test_confidence_is_kept() -> None:
    model, x = network(), samples()
    result, plain = (CarliniWagner(confidence=confidence, steps=60).run(model, x) for confidence in (1.0, 0.0))
    lead = margin(model(result.adversarial), model(x).argmax(1))[result.success]
    assert bool(result.success.any())
    assert bool(((lead >= 1) & (lead < 2)).all())
    assert float((result.distance - plain.distance)[result.success].min()) > 0


def test_images_of_black_and_white_reach_a_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = (torch.rand(8, 1, 8, 8) > 0.5).float()
    target = model(x).topk(2).indices[:, 1]
    assert torch.equal(model(CarliniWagner(targeted=True, steps=200)(model, x, target)).argmax(1), target)


def test_more_rounds_or_no_abort_are_no_worse() -> None:
    model, x = network(), samples()
    few, many = (CarliniWagner(steps=100, search_steps=n).run(model, x) for n in (4, 9))
    assert bool((many.success >= few.success).all())
    assert float((many.distance - few.distance)[few.success].max()) <= 1e-6
    patient = CarliniWagner(steps=100, abort_early=False).run(model, x)
    assert float(patient.distance.median()) <= float(many.distance.median()) * 1.001
    assert int(many.num_queries.sum()) < int(patient.num_queries.sum())
    assert int(patient.num_queries.max()) == 100 * 9 + 2


def test_infinite_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs finite bounds.*bounds=None"):
        CarliniWagner(bounds=(0.0, float("inf")))(network(), samples())


def test_l1_rule_keeps_a_sparser_sample() -> None:
    model, x = network(), samples(24)
    en, l1 = (ElasticNet(steps=100, decision=rule).run(model, x) for rule in ("en", "l1"))  # type: ignore[arg-type]
    assert torch.equal(en.success, l1.success)
    assert float((l1.distance - en.distance).max()) <= 1e-6
    elastic = [move.square().sum(1) + 0.01 * move.abs().sum(1) for move in (en.adversarial - x, l1.adversarial - x)]
    assert float((elastic[0] - elastic[1]).max()) <= 1e-6
    assert float(l1.distance.median()) < float(en.distance.median())


@pytest.mark.parametrize(
    "attack",
    [
        *(CarliniWagner(steps=200), ElasticNet(steps=200, decision="l1"), LBFGS(steps=50)),
        CarliniWagnerLinf(steps=200, initial_const=0.1),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_class_that_only_seems_nearest_is_no_trap(attack: Attack) -> None:
    """The gradient of the second class is steep at the sample and ends soon; the third class is 0.3 away."""

    def model(x: Tensor) -> Tensor:
        steep = (100 * (x[:, 0] - 0.5)).clamp_max(2) - 9
        return torch.stack([torch.zeros_like(steep), steep, 10 * (x[:, 1] - 0.5) - 3], 1)

    result = attack.run(model, torch.full((1, 2), 0.5), torch.tensor([0]))
    assert bool(result.success.all())
    assert 0.3 <= float(result.distance) < 0.3 * (1.1 if isinstance(attack, CarliniWagnerLinf) else 1.02)
