"""The elastic-net attack: truth on linear models, its decision rules, and its peer."""

import torch
from torch import Tensor, nn

from lit_modules.attacks.carlini_wagner import CarliniWagner, ElasticNet
from lit_modules.attacks.engine.norms import lp_norm


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
