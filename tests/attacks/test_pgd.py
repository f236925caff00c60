"""Gradient steps: PGD, one-step and momentum attacks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import (
    FGM,
    FGSM,
    L1PGD,
    L2BIM,
    L2PGD,
    Attack,
    L2Momentum,
    LinfBIM,
    LinfMomentum,
    LinfPGD,
    SparseL1Descent,
)
from lit_modules.attacks.engine.norms import lp_norm

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


def test_failures_are_never_worse_than_the_sample() -> None:
    class Peak(nn.Module):
        """Never fooled; the loss is largest at the sample itself."""

        def forward(self, x: Tensor) -> Tensor:
            away = (x - 0.5).abs().flatten(1).mean(1)
            return torch.stack([2 + away, torch.zeros_like(away)], 1)

    x = torch.full((3, 8), 0.5)
    for kind in (LinfPGD, L2PGD, L1PGD):
        assert torch.equal(kind(eps=0.2, steps=1, step_size=1e-3)(Peak(), x), x)


def network_momentum() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).eval()


def samples(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_momentum_is_the_sum_of_gradients_over_their_l1_norms() -> None:
    model, x, label = network_momentum(), samples(), torch.zeros(8, dtype=torch.int64)
    momentum, point = torch.zeros_like(x), x.clone()
    for _ in range(5):
        point.requires_grad_()
        loss = nn.functional.cross_entropy(model(point), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        momentum = 0.7 * momentum + gradient / lp_norm(gradient, "l1").view(-1, 1, 1, 1)
        point = (x + (point.detach() + 0.02 * momentum.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    attack = LinfMomentum(eps=0.05, steps=5, step_size=0.02, decay=0.7, keep="last")
    assert torch.allclose(attack(model, x, label), point, atol=1e-6)


@pytest.mark.parametrize(("momentum", "plain"), [(LinfMomentum, LinfBIM), (L2Momentum, L2BIM)])
def test_without_decay_it_is_the_basic_iterative_method(momentum: type[LinfMomentum], plain: type[LinfBIM]) -> None:
    model, x = network_momentum(), samples()
    arguments = {"eps": 0.3, "steps": 6, "step_size": 0.1, "keep": "last"}
    ours, theirs = momentum(decay=0.0, **arguments)(model, x), plain(**arguments)(model, x)  # type: ignore[arg-type]
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", [LinfMomentum, L2Momentum])
def test_coordinates_without_change_or_gradient_give_no_nan(kind: type[LinfMomentum]) -> None:
    model, x = network_momentum(), samples()
    with torch.no_grad():
        model[1].weight[:, :8] = 0  # half of the values have no gradient, so their change stays 0
    adversarial = kind(eps=0.3, steps=5, step_size=0.1, keep="last")(model, x)
    assert bool(torch.isfinite(adversarial).all())
    assert torch.equal(adversarial.flatten(1)[:, :8], x.flatten(1)[:, :8])
    with pytest.warns(UserWarning, match="exactly zero"):
        still = kind(steps=2, keep="last")(lambda z: z.flatten(1)[:, :2] * 0 + torch.tensor([2.0, 0.0]), x)
    assert torch.equal(still, x)


def test_steps_of_l2_have_their_length() -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    adversarial = L2Momentum(eps=9, steps=3, step_size=0.05, keep="last")(network_momentum(), x)
    assert torch.allclose(lp_norm(adversarial - x, "l2"), torch.full((3,), 0.15), rtol=0.05)


def test_same_points_as_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x = network_momentum(), samples()
    label = model(x).argmax(1)
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.02, steps=8, decay=1.0)(x, label)
    ours = LinfMomentum(eps=0.1, step_size=0.02, steps=8, keep="last")(model, x, label)
    assert torch.allclose(ours, theirs, atol=1e-5)
