"""The attack of Carlini and Wagner, elastic net, and what attacks by optimisation share."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import CarliniWagner, ElasticNet
from lit_modules.attacks.carlini_wagner import ConstantSearch, class_scales, nearest_lead
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


def test_stretched_leads_are_right_where_plain_ones_are() -> None:
    model, x = network(), samples()
    state = CarliniWagner().prepare(model, x, None, 0)
    scale, logits = class_scales(state), model(torch.rand(12, 16))
    assert torch.equal(nearest_lead(logits, state.label, scale, 0.5) >= 0, margin(logits, state.label) >= 0.5)
    assert bool((scale != 1).any())
    assert torch.equal(class_scales(state, classes=1), torch.ones_like(scale))


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


def test_search_finds_the_threshold_of_each_sample() -> None:
    threshold = torch.tensor([3e-4, 0.004, 0.7, 42.0])
    search = ConstantSearch(torch.zeros(4, 1), 1e-3)
    for _ in range(25):
        search.advance(torch.arange(4), search.weight >= threshold)
    assert torch.allclose(search.upper, threshold, rtol=1e-3)
    assert bool((search.lower < search.upper).all())
    assert search.rounds.tolist() == [25] * 4


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


@pytest.mark.slow
def test_no_farther_than_art() -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    model, x = network(), samples(4)
    label = model(x).argmax(1)
    classifier = estimators.PyTorchClassifier(model, nn.CrossEntropyLoss(), (16,), 5, clip_values=(0.0, 1.0))
    attack = evasion.CarliniL2Method(classifier, max_iter=10, binary_search_steps=9, initial_const=1e-3, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy()))
    fooled = model(theirs).argmax(1) != label
    ours = CarliniWagner(steps=100).run(model, x, label)
    assert bool((ours.success >= fooled).all())
    assert float(ours.distance[fooled].median()) <= 1.02 * float((theirs - x).norm(dim=1)[fooled].median())


def test_l1_rule_keeps_a_sparser_sample() -> None:
    model, x = network(), samples(24)
    en, l1 = (ElasticNet(steps=100, decision=rule).run(model, x) for rule in ("en", "l1"))  # type: ignore[arg-type]
    assert torch.equal(en.success, l1.success)
    assert float((l1.distance - en.distance).max()) <= 1e-6
    elastic = [move.square().sum(1) + 0.01 * move.abs().sum(1) for move in (en.adversarial - x, l1.adversarial - x)]
    assert float((elastic[0] - elastic[1]).max()) <= 1e-6
    assert float(l1.distance.median()) < float(en.distance.median())


def test_elastic_net_takes_one_pass_for_each_step() -> None:
    result = ElasticNet(steps=20, search_steps=3).run(network(), samples(24))
    assert result.num_queries.unique().tolist() == [20 * 3 + 2]  # the clean pass, and that of the class gradients
