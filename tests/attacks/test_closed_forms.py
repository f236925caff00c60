"""Attacks on data whose robust accuracy is known: the Gaussian pair, the cube, the sphere, and linear models."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lit_modules import attacks
from lit_modules.attacks.engine.norms import lp_norm

NORMS = ["linf", "l2", "l1"]
GRADIENT = [
    *(("linf", name) for name in ("FGSM", "LinfBIM", "LinfPGD", "LinfMomentum", "BestOf")),
    *(("l2", name) for name in ("FGM", "L2BIM", "L2PGD", "L2Momentum")),
    *(("l1", name) for name in ("L1PGD", "SparseL1Descent")),
    *((norm, name) for norm in NORMS for name in ("APGD", "APGDT", "AutoAttack")),
]


def sum_model(x: Tensor) -> Tensor:
    """The Bayes classifier of the Gaussian pair, with two classes that are never likely."""
    total = x.flatten(1).sum(1)
    never = torch.full_like(total, -1e3)
    return torch.stack([-total / 4, total / 4, never, never], 1)


def first(x: Tensor) -> Tensor:
    """The Bayes classifier of the cube: the first coordinate against one half."""
    never = torch.full_like(x[:, 0], -1e3)
    return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5, never, never], 1) * 10


def make(name: str, norm: str, eps: float, **changes: Any) -> attacks.Attack:
    """An attack of a radius whose steps reach its border."""
    kind: Any = getattr(attacks, name)
    if name == "AutoAttack":
        return kind(norm=norm, eps=eps, version="custom", attacks=[make("APGD", norm, eps)], **changes)  # type: ignore[no-any-return]
    if name == "BestOf":
        return kind(attacks=[make(member, norm, eps, **changes) for member in ("FGSM", "LinfPGD")])  # type: ignore[no-any-return]
    if name in ("APGD", "APGDT"):
        changes |= {"steps": 20, "norm": norm}
    elif name not in ("FGSM", "FGM"):
        changes |= {"steps": 8, "step_size": max(eps / 2, 1e-3)}
    return kind(eps=eps, **changes)  # type: ignore[no-any-return]


def gaussian_pair(count: int, size: int, mean: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=generator)
    return torch.randn(count, size, generator=generator) + mean * (2 * y - 1)[:, None], y


def assert_share(share: float, truth: float, count: int) -> None:
    """Hold a share of samples to its expectation, within four standard deviations."""
    assert abs(share - truth) <= 4 * math.sqrt(truth * (1 - truth) / count) + 1e-9


@pytest.mark.filterwarnings("ignore:The gradient of the loss")  # APGD-T towards the classes that are never likely
@pytest.mark.parametrize(("norm", "name"), GRADIENT)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_gaussian_pair(norm: str, name: str, share: float) -> None:
    """Robust accuracy is Phi((m - eps) sqrt(d) / s) in Linf; in other norms by the distance of the plane."""
    count, size, mean = 500, 100, 0.2
    x, y = gaussian_pair(count, size, mean)
    reach = {"linf": size, "l2": size**0.5, "l1": 1.0}[norm]  # change of the sum by a radius of 1
    eps = share * mean * size / reach
    success = make(name, norm, eps, bounds=None).run(sum_model, x, y).success
    assert_share(float((~success).double().mean()), stats.norm.cdf((1 - share) * mean * size**0.5), count)
    total = x.double().sum(1) * (2 * y - 1)  # a sample falls exactly when the radius reaches the plane
    sure = (total - eps * reach).abs() > 1e-2 * max(1.0, eps * reach)
    assert torch.equal(success[sure], (total <= eps * reach)[sure])


@pytest.mark.filterwarnings("ignore:The gradient of the loss")
@pytest.mark.parametrize(("norm", "name"), GRADIENT)
def test_uniform_cube(norm: str, name: str) -> None:
    """The first coordinate decides: robust error is min(1, 2 eps) for any norm and dimension."""
    count, eps = 1000, 0.15
    x = torch.rand(count, 30, generator=torch.Generator().manual_seed(0))
    success = make(name, norm, eps).run(first, x).success
    assert_share(float(success.double().mean()), 2 * eps, count)
    distance = (x[:, 0] - 0.5).abs()
    sure = (distance - eps).abs() > 2e-3
    assert torch.equal(success[sure], (distance < eps)[sure])


@pytest.mark.parametrize(("size", "error"), [(3, 0.1), (100, 0.6803)])
def test_sphere(size: int, error: float) -> None:
    """x_1 decides on the unit sphere: L2-robust error is I_{eps^2}(1/2, (d - 1) / 2), the table of the theory."""
    count, eps = 2000, 0.1
    x = nn.functional.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(0)))
    truth = float(stats.beta.cdf(eps**2, 0.5, (size - 1) / 2))
    assert truth == pytest.approx(error, abs=1e-4)
    for name in ("FGM", "L2PGD", "APGD"):
        attack = make(name, "l2", eps, bounds=None)
        success = attack.run(lambda x: torch.stack([-x[:, 0], x[:, 0]], 1), x).success
        assert_share(float(success.double().mean()), truth, count)


def label(value: object) -> str:
    """The names of a case, without its arguments."""
    return value if isinstance(value, str) else ""


MINIMAL: list[tuple[str, str, dict[str, Any]]] = [
    *((norm, "DeepFool", {"norm": norm}) for norm in ("linf", "l2")),
    *((norm, name, {"norm": norm, "steps": 30}) for norm in NORMS for name in ("FAB", "FABT")),
    *((norm, "FMN", {"norm": norm, "steps": 200}) for norm in NORMS),
    *((norm, "FMN", {"norm": norm, "steps": 200, "start": "sample"}) for norm in NORMS),
    *((norm, "ALMA", {"norm": norm, "steps": 300}) for norm in ("l2", "l1")),
    ("l2", "PDGD", {"steps": 300}),
    *((norm, "PDPGD", {"norm": norm, "steps": 300}) for norm in NORMS),
    *((norm, "TrustRegion", {"norm": norm}) for norm in ("linf", "l2")),
    ("linf", "CarliniWagnerLinf", {"steps": 200, "initial_const": 0.1}),
    ("l2", "DDN", {"steps": 300, "loss": "margin"}),
    ("l2", "CarliniWagner", {"steps": 200}),
    ("l2", "LBFGS", {"steps": 20, "search_steps": 6}),
    ("l1", "ElasticNet", {"steps": 300, "beta": 0.1, "decision": "l1"}),
]


@pytest.mark.parametrize(
    ("norm", "name", "arguments", "classes"),
    [(*case, classes) for case in MINIMAL for classes in (2, 4) if case[1] != "ElasticNet" or classes > 2],
    ids=label,
)
def test_smallest_perturbations_of_linear_models(norm: str, name: str, arguments: dict[str, Any], classes: int) -> None:
    """Within one per cent of the distance of the nearest plane.

    DDN, FMN and the attacks on a Lagrangian follow the likely class, with more than one other not always the nearest;
    ElasticNet mixes L1 with L2.
    """
    torch.manual_seed(0)
    model = nn.Linear(12, classes).double()
    x = torch.rand(40, 12, dtype=torch.float64) * 0.3 + 0.35
    with torch.no_grad():
        model.weight *= 5
        model.bias.copy_(-model.weight.sum(1) / 2)  # boundaries meet in the middle of the box
        answer = model(x).argmax(1)
        gaps = model(x).gather(1, answer[:, None]) - model(x)
        dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
        lengths = torch.linalg.vector_norm(model.weight[answer][:, None] - model.weight, dual, dim=2)
        truth = (gaps / lengths).nan_to_num(float("inf")).amin(1)
    x, truth = x[truth > 0.02], truth[truth > 0.02]
    result = getattr(attacks, name)(**arguments).run(model, x)
    assert bool(result.success.all())
    ratio = lp_norm(result.adversarial - x, norm) / truth
    assert float(ratio.min()) >= 1 - 1e-6
    if name == "ElasticNet":
        assert float(ratio.median()) <= 1.02
        assert float(ratio.max()) <= 1.1
    elif name == "CarliniWagnerLinf":  # a round begins a tenth lower, and ends where the sample fools
        assert float(ratio.max()) <= 1.1
    elif name in ("PDGD", "PDPGD"):  # their weight of the norm swings around the right one
        assert float(ratio.median()) <= 1.02
        assert classes > 2 or float(ratio.max()) <= 1.05
    elif classes > 2 and name in ("DDN", "FMN", "ALMA"):
        assert float(ratio.median()) <= 1.01
    else:
        assert float(ratio.max()) <= 1.01
