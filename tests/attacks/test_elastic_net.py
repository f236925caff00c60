"""The elastic-net attack: truth on linear models, its decision rules, and its peer."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.carlini_wagner import CarliniWagner, ElasticNet
from lit_modules.attacks.engine.norms import lp_norm

Rule = Literal["en", "l1"]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5))
    with torch.no_grad():
        model[0].weight *= 3
        model[2].weight *= 6
    return model.eval()


def samples(count: int = 24, size: int = 16) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3


def elastic(delta: Tensor, beta: float = 0.01) -> Tensor:
    return delta.square().sum(1) + beta * delta.abs().sum(1)


@pytest.mark.parametrize(("classes", "median", "most"), [(2, 1.005, 1.01), (4, 1.02, 1.07)])
def test_least_l1_norm_on_a_linear_model(classes: int, median: float, most: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, classes), samples()
    with torch.no_grad():
        model.weight *= 3
    logits = model(x).detach()
    label = logits.argmax(1)
    gap = logits.gather(1, label[:, None]) - logits
    length = (model.weight[label][:, None] - model.weight[None]).detach().abs().amax(2)
    truth = (gap / length).scatter(1, label[:, None], float("inf")).amin(1)
    result = ElasticNet(beta=0.1, decision="l1", steps=300, bounds=None).run(model, x)
    assert bool(result.success.all())
    ratio = (result.distance / truth)[truth > 0.05]
    assert float(ratio.min()) > 0.9999
    assert float(ratio.median()) < median
    assert float(ratio.max()) < most


def test_l1_rule_keeps_a_sparser_sample() -> None:
    model, x = network(), samples()
    en, l1 = (ElasticNet(steps=100, decision=rule).run(model, x) for rule in ("en", "l1"))
    assert bool((en.success == l1.success).all())
    assert float((l1.distance - en.distance).max()) <= 1e-6
    assert float((elastic(en.adversarial - x) - elastic(l1.adversarial - x)).max()) <= 1e-6
    assert float(l1.distance.median()) < float(en.distance.median())
    assert torch.allclose(l1.distance, lp_norm((l1.adversarial - x).double(), "l1"))


def test_smaller_l1_and_larger_l2_than_carlini_wagner() -> None:
    model, x = network(), samples()
    sparse, plain = ElasticNet(steps=100, decision="l1")(model, x) - x, CarliniWagner(steps=100)(model, x) - x
    assert float(lp_norm(sparse, "l1").median()) < float(lp_norm(plain, "l1").median())
    assert float(lp_norm(sparse, "l2").median()) > float(lp_norm(plain, "l2").median())
    assert int((sparse == 0).sum()) > int((plain == 0).sum())


def test_one_pass_for_each_step() -> None:
    result = ElasticNet(steps=20, search_steps=3).run(network(), samples())
    assert result.num_queries.unique().tolist() == [20 * 3 + 2]  # the clean pass, and that of the class gradients


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, "beta must be finite and at least 0, got -0.1"),
        ({"decision": "l2"}, "decision must be 'en' or 'l1', got 'l2'"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticNet(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["en", "l1"])
def test_no_farther_than_foolbox_with_as_many_passes(rule: Rule) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = network(), samples()
    label = model(x).argmax(1)
    peer = foolbox.attacks.EADAttack(steps=50, abort_early=False, decision_rule=rule.upper())  # two passes a step
    _, found, fooled = peer(foolbox.PyTorchModel(model, bounds=(0, 1)), x, label, epsilons=None)
    ours = ElasticNet(steps=100, decision=rule).run(model, x, label)
    assert bool((ours.success >= fooled).all())
    measure = elastic if rule == "en" else lambda delta: lp_norm(delta, "l1")
    mine, theirs = measure(ours.adversarial - x)[fooled], measure(found - x)[fooled]
    assert float(mine.median()) <= 1.02 * float(theirs.median())
