"""The PGD family: closed forms, peers' steps, and everything that its arguments promise."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.pgd import FGM, FGSM, L1PGD, L2BIM, L2PGD, LinfBIM, LinfPGD, SparseL1Descent

Keep = Any


class SumModel(nn.Module):
    """The Bayes classifier of the Gaussian pair: the sign of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.eot_samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.eot_samples += 1
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total], 1) / 4


def network(channels: int = 2, height: int = 4, width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * height * width, 5)
    ).eval()


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 2, 4, 6, generator=torch.Generator().manual_seed(1))


FAMILY: dict[str, Attack] = {
    "LinfPGD": LinfPGD(eps=0.1, steps=8, step_size=0.03),
    "L2PGD": L2PGD(eps=0.6, steps=8, step_size=0.2),
    "L1PGD": L1PGD(eps=3.0, steps=8, step_size=1.0),
    "SparseL1Descent": SparseL1Descent(eps=3.0, steps=8, step_size=1.0),
    "LinfBIM": LinfBIM(eps=0.1, steps=8, step_size=0.03),
    "L2BIM": L2BIM(eps=0.6, steps=8, step_size=0.2),
    "FGSM": FGSM(eps=0.1),
    "FGM": FGM(eps=0.6),
}


def make(name: str, **changes: Any) -> Attack:
    """The attack of that name, with some arguments changed."""
    attack = FAMILY[name]
    arguments: dict[str, Any] = {"eps": attack.eps}
    if name not in ("FGSM", "FGM"):
        arguments |= {"steps": attack.steps, "step_size": attack.step_size}  # type: ignore[attr-defined]
    return type(attack)(**{**arguments, **changes})


@pytest.mark.parametrize("name", ["LinfPGD", "LinfBIM", "FGSM"])
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.08, 0.1])
def test_gaussian_pair(name: str, eps: float) -> None:
    """Robust accuracy is Phi((m - eps) sqrt(d) / s), within the binomial interval."""
    size, mean, count = 784, 0.1, 4000
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=generator)
    x = torch.randn(count, size, generator=generator) + mean * (2 * y - 1)[:, None]
    changes = {} if name == "FGSM" else {"steps": 3, "step_size": max(eps, 1e-3)}
    result = make(name, eps=eps, bounds=None, **changes).run(SumModel(), x, y)
    robust = float((~result.success).double().mean())
    truth = float(stats.norm.cdf((mean - eps) * size**0.5))
    assert abs(robust - truth) < 4 * math.sqrt(truth * (1 - truth) / count) + 1e-3
    # a sum model falls exactly when eps d is at least the distance
    total = x.double().sum(1) * (2 * y - 1)
    sure = (total - eps * size).abs() > 1e-2
    assert torch.equal(result.success[sure], (total <= eps * size)[sure])


@pytest.mark.parametrize(("name", "norm"), [("L2PGD", "l2"), ("L2BIM", "l2"), ("FGM", "l2"), ("L1PGD", "l1")])
def test_linear_model_falls_at_its_distance(name: str, norm: str) -> None:
    model = nn.Linear(10, 2)
    x = torch.rand(200, 10, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45
    weight = (model.weight[1] - model.weight[0]).detach()
    dual = weight.norm() if norm == "l2" else weight.abs().max()
    margin = (model(x)[:, 0] - model(x)[:, 1]).abs().detach() / dual
    for factor, falls in ((0.98, False), (1.02, True)):
        changes: dict[str, Any] = {} if name == "FGM" else {"steps": 60, "step_size": float(margin.max()) / 5}
        if name == "L1PGD":
            changes["sparsity"] = 1.0
        result = make(name, eps=margin * factor, bounds=None, **changes).run(model, x)
        assert bool((result.success == falls).all())


def test_uniform_cube() -> None:
    """x_1 decides: robust error is min(1, 2 eps), for any norm."""

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)

    x = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    for attack in (FGSM(eps=0.1), FGM(eps=0.1), LinfPGD(eps=0.1, steps=5, step_size=0.1)):
        assert float(attack.run(First(), x).success.float().mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("shape", [(6, 48), (6, 2, 24), (6, 2, 4, 6)])
@pytest.mark.parametrize("keep", ["first", "best", "last"])
def test_stays_in_ball_and_box_for_any_shape(name: str, shape: tuple[int, ...], keep: Keep) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(shape)
    before = x.clone()
    attack = make(name, keep=keep)
    result = attack.run(model, x)
    assert torch.equal(x, before)
    assert result.adversarial.shape == x.shape
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1
    assert bool((lp_norm((result.adversarial - x).double(), str(attack.norm)) <= attack.eps * (1 + 1e-6) + 1e-6).all())
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)


@pytest.mark.parametrize("name", FAMILY)
def test_batch_and_order_do_not_matter(name: str) -> None:
    model, x = network(), images(6)
    for keep in ("first", "best", "last"):
        attack = make(name, keep=keep)
        together = attack(model, x)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        assert torch.allclose(attack(model, x[order]), together[order], atol=1e-5)
        alone = torch.cat([attack(model, x[i : i + 1]) for i in range(6)])
        assert torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_one_radius_per_sample(name: str) -> None:
    model, x = network(), images(6)
    scale = {"linf": 0.2, "l2": 1.0, "l1": 4.0}[str(FAMILY[name].norm)]
    eps = torch.linspace(0, scale, 6)
    result = make(name, eps=eps).run(model, x)
    assert bool((result.distance <= eps.double() * (1 + 1e-6) + 1e-6).all())
    for i in range(6):
        alone = make(name, eps=float(eps[i]))(model, x[i : i + 1])
        assert torch.allclose(alone[0], result.adversarial[i], atol=1e-5)


def test_one_step_size_per_sample() -> None:
    model, x = network(), images(6)
    sizes = torch.linspace(0.01, 0.1, 6)
    for kind in (LinfPGD, L2PGD):
        together = kind(eps=0.1, steps=4, step_size=sizes)(model, x)
        for i in range(6):
            alone = kind(eps=0.1, steps=4, step_size=float(sizes[i]))(model, x[i : i + 1])
            assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_whole_numbers_and_zero_as_radius(name: str) -> None:
    model, x = network(), images(3)
    assert bool((make(name, eps=1).run(model, x).distance > 0.1).all())
    assert torch.allclose(make(name, eps=0)(model, x), x, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_bounds_absent_or_of_each_pixel(name: str) -> None:
    model, x = network(), images(6)
    free = make(name, bounds=None)(model, x * 4 - 2)
    assert bool(torch.isfinite(free).all())
    lower, upper = (x[:1] - 0.02).clamp_min(0), torch.ones(2, 4, 6)
    upper[0] = 0.97
    inside = x.clamp(lower, upper)
    adversarial = make(name, bounds=(lower, upper))(model, inside)
    assert bool(((adversarial >= lower - 1e-6) & (adversarial <= upper + 1e-6)).all())
    each = torch.linspace(0.9, 1, 6)
    adversarial = make(name, bounds=(0.0, each))(model, x * 0.9)
    assert bool((adversarial.flatten(1).amax(1) <= each + 1e-6).all())


@pytest.mark.parametrize("name", FAMILY)
def test_targeted(name: str) -> None:
    model, x = network(), images()
    target = (model(x).argmax(1) + 1) % 5
    result = make(name, targeted=True, eps=torch.full((12,), float(FAMILY[name].eps) * 2)).run(model, x, target)  # type: ignore[arg-type]
    assert torch.equal(model(result.adversarial).argmax(1) == target, result.success)
    gain = nn.functional.cross_entropy(model(result.adversarial), target, reduction="none")
    assert float(gain.mean()) < float(nn.functional.cross_entropy(model(x), target))


def test_first_best_and_last() -> None:
    model, x = network(), images(40)
    label = model(x).argmax(1)

    def loss(adversarial: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(adversarial), label, reduction="none").detach()

    keeps: list[Keep] = ["first", "best", "last"]
    runs = {keep: LinfPGD(eps=0.18, steps=10, step_size=0.04, keep=keep).run(model, x) for keep in keeps}
    assert bool(runs["first"].success.any())
    assert not bool(runs["first"].success.all())
    assert torch.equal(runs["first"].success, runs["best"].success)
    assert bool((runs["best"].success >= runs["last"].success).all())
    same = runs["best"].success == runs["last"].success
    assert bool((loss(runs["best"].adversarial) >= loss(runs["last"].adversarial) - 1e-5)[same].all())
    assert bool((runs["first"].num_queries <= runs["best"].num_queries).all())
    assert bool((runs["best"].num_queries == 12).all())
    won = runs["first"].success
    assert float(runs["first"].num_queries[won].double().mean()) < 12


def test_last_costs_its_steps_and_no_more() -> None:
    model = SumModel()
    LinfPGD(eps=0.1, steps=7, step_size=0.1, keep="last")(model, images(3), torch.zeros(3, dtype=torch.int64))
    assert model.eot_samples == 7


def test_restarts_keep_the_best() -> None:
    model, x = network(), images(30)
    label = model(x).argmax(1)
    one = LinfPGD(eps=0.05, steps=2, step_size=0.02).run(model, x)
    ten = LinfPGD(eps=0.05, steps=2, step_size=0.02, restarts=10).run(model, x)
    assert bool((ten.success >= one.success).all())
    failed = ~ten.success
    loss = nn.CrossEntropyLoss(reduction="none")
    assert bool((loss(model(ten.adversarial), label) >= loss(model(one.adversarial), label) - 1e-6)[failed].all())
    assert not torch.equal(ten.adversarial[failed], one.adversarial[failed])
    assert bool((ten.num_queries[failed] > one.num_queries[failed]).all())


def test_restarts_hold_for_keep_last_too() -> None:
    model, x = network(), images(30)
    attack = LinfPGD(eps=0.05, steps=1, step_size=0.01, keep="last", restarts=5)
    assert torch.equal(attack(model, x), attack.run(model, x).adversarial)


def test_seeds_and_generators() -> None:
    model, x = network(), images(4)
    attack = LinfPGD(eps=0.01, steps=1, step_size=1e-4, keep="last", seed=3)
    assert torch.equal(attack(model, x), attack(model, x))
    assert torch.equal(
        attack(model, x, seed=4), LinfPGD(eps=0.01, steps=1, step_size=1e-4, keep="last", seed=4)(model, x)
    )
    assert not torch.equal(attack(model, x), attack(model, x, seed=4))
    generator = torch.Generator().manual_seed(0)
    first, second = attack(model, x, seed=generator), attack(model, x, seed=generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, attack(model, x, seed=torch.Generator().manual_seed(0)))
    state = torch.get_rng_state()
    attack(model, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_passes_average_a_random_model() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 2)

    def model(x: Tensor) -> Tensor:
        return linear(x) + 2 * (x @ torch.randn(20, 1)) * torch.tensor([1.0, -1.0])

    x = torch.rand(64, 20)
    truth = linear.weight[1] - linear.weight[0]
    label = torch.zeros(64, dtype=torch.int64)

    def gain(passes: int) -> float:
        moved = LinfPGD(
            eps=0.1, steps=1, step_size=0.1, random_start=False, bounds=None, keep="last", eot_samples=passes
        )
        return float(((moved(model, x, label) - x) @ truth).mean())

    assert gain(200) > gain(1)


def test_bf16_keeps_the_perturbation_in_float32() -> None:
    model, x = network(), images(40)
    full = LinfPGD(eps=0.06, steps=10, step_size=0.015).run(model, x)
    half = LinfPGD(eps=0.06, steps=10, step_size=0.015, precision="bf16").run(model, x)
    assert half.adversarial.dtype == torch.float32
    assert bool((half.distance <= 0.06 * (1 + 1e-6)).all())
    assert abs(float(full.success.float().mean() - half.success.float().mean())) <= 0.1
    assert not torch.equal(half.adversarial.bfloat16().float(), half.adversarial)


@pytest.mark.slow
def test_compiled_model() -> None:
    model, x = network(), images(12)
    torch._dynamo.reset()
    attack = LinfPGD(eps=0.06, steps=4, step_size=0.03)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    result = attack.run(compiled, x)
    assert torch.allclose(result.adversarial, attack.run(model, x).adversarial, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = nn.Sequential(network(), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    model[1].eval()
    model[0][0].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    make(name)(model, images(4))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "margin", "dlr", lambda logits, y: -logits.gather(1, y[:, None])[:, 0]]
)
def test_losses(loss: Any) -> None:
    result = LinfPGD(eps=0.1, steps=8, step_size=0.03, loss=loss).run(network(), images())
    assert bool(result.success.any())


def test_fgsm_and_fgm_by_hand() -> None:
    model, x = network(), images(5)
    label = model(x).argmax(1)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), label, reduction="sum"), point)
    assert torch.allclose(FGSM(eps=0.1)(model, x), (x + 0.1 * gradient.sign()).clamp(0, 1), atol=1e-6)
    unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(FGM(eps=0.4)(model, x), (x + 0.4 * unit).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_steps_equal_those_of_torchattacks(steps: int) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x = network(), images()
    label = model(x).argmax(1)
    label[0] = (label[0] + 1) % 5
    peers = {
        LinfPGD(eps=0.06, steps=steps, step_size=0.02, random_start=False, keep="last"): torchattacks.PGD(
            model, eps=0.06, alpha=0.02, steps=steps, random_start=False
        ),
        L2PGD(eps=0.6, steps=steps, step_size=0.2, random_start=False, keep="last"): torchattacks.PGDL2(
            model, eps=0.6, alpha=0.2, steps=steps, random_start=False
        ),
        FGSM(eps=0.06, keep="last"): torchattacks.FGSM(model, eps=0.06),
    }
    for attack, peer in peers.items():
        assert torch.allclose(attack(model, x, label), peer(x, label), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_steps_equal_those_of_foolbox(steps: int) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = network(), images()
    label = model(x).argmax(1)
    peer = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for attack, other, eps in (
        (LinfPGD, foolbox.attacks.LinfPGD, 0.06),
        (L2PGD, foolbox.attacks.L2PGD, 0.6),
    ):
        mine = attack(eps=eps, steps=steps, step_size=eps / 3, random_start=False, keep="last")(model, x, label)
        theirs = other(abs_stepsize=eps / 3, steps=steps, random_start=False)(peer, x, label, epsilons=eps)[1]
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_failures_are_never_worse_than_the_sample() -> None:
    class Peak(nn.Module):
        """Never fooled; the loss is largest at the sample itself."""

        def forward(self, x: Tensor) -> Tensor:
            away = (x - 0.5).abs().flatten(1).mean(1)
            return torch.stack([2 + away, torch.zeros_like(away)], 1)

    x = torch.full((3, 8), 0.5)
    for kind in (LinfPGD, L2PGD, L1PGD):
        assert torch.equal(kind(eps=0.2, steps=1, step_size=1e-3)(Peak(), x), x)
