"""Other toolboxes as oracles on the handwritten digits: equal robust accuracy, distances that are not longer.

Each test asks one toolbox and is skipped without it.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lit_modules.attacks import (
    APGD,
    APGDT,
    DDN,
    FAB,
    FMN,
    L2PGD,
    Attack,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    ElasticNet,
    LinfPGD,
    Square,
)
from lit_modules.attacks.engine.norms import lp_norm

POINTS = 0.4  # largest difference of robust accuracies, in percentage points
LONGER = 1.02  # largest ratio of median distances
COUNT = 500
SEEDS = 4
EPS: dict[str, float] = {"linf": 0.12, "l2": 0.6, "l1": 2.5}


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained with noise on the first digits, and the last 500 of them."""
    data, target = load_digits(return_X_y=True)
    x = torch.from_numpy(data).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(target).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(150):
            batch = torch.randint(len(x) - COUNT, (128,))
            noise = 0.15 * torch.randn(128, 1, 8, 8)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model((x[batch] + noise).clamp(0, 1)), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    model.eval().requires_grad_(False)
    assert float((model(x[-COUNT:]).argmax(1) == y[-COUNT:]).float().mean()) > 0.9
    return model, x[-COUNT:], y[-COUNT:]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the global generator, which the peers seed, and their logs out of the other tests."""
    with torch.random.fork_rng(devices=[]):
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def robust(model: nn.Module, adversarial: Tensor, y: Tensor) -> float:
    """Robust accuracy in per cent."""
    return 100 * float((model(adversarial).argmax(1) == y).double().mean())


def compare(
    digits: tuple[nn.Module, Tensor, Tensor], mine: Attack, theirs: Callable[[int], Tensor], seeds: int
) -> None:
    """Hold the robust accuracies, means over some seeds, against each other."""
    model, x, y = digits
    ours = [robust(model, mine(model, x, y, seed=seed), y) for seed in range(seeds)]
    peers = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        peers.append(robust(model, theirs(seed), y))
    ours_mean, peers_mean = sum(ours) / seeds, sum(peers) / seeds
    assert 5 < peers_mean < 90
    assert abs(ours_mean - peers_mean) <= POINTS + 1e-9, (ours, peers)


def foolbox_model(model: nn.Module) -> Any:
    foolbox = pytest.importorskip("foolbox")
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


def art_classifier(model: nn.Module) -> Any:
    estimators = pytest.importorskip("art.estimators.classification")
    return estimators.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


@pytest.mark.parametrize(("norm", "kind"), [("linf", LinfPGD), pytest.param("l2", L2PGD, marks=pytest.mark.slow)])
def test_pgd_of_torchattacks(digits: Any, norm: str, kind: Any) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits
    eps = EPS[norm]
    peer = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm](model, eps=eps, alpha=eps / 10, steps=40)
    mine = kind(eps=eps, steps=40, step_size=eps / 10, keep="last")
    compare(digits, mine, lambda seed: peer(x, y), seeds=SEEDS)


@pytest.mark.parametrize(("norm", "kind"), [pytest.param("linf", LinfPGD, marks=pytest.mark.slow), ("l2", L2PGD)])
def test_pgd_of_foolbox(digits: Any, norm: str, kind: Any) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits
    eps = EPS[norm]
    peer = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm](abs_stepsize=eps / 10, steps=40)
    mine = kind(eps=eps, steps=40, step_size=eps / 10, keep="last")
    compare(digits, mine, lambda seed: peer(foolbox_model(model), x, y, epsilons=eps)[1], seeds=SEEDS)


@pytest.mark.parametrize(("norm", "kind"), [("linf", LinfPGD), pytest.param("l2", L2PGD, marks=pytest.mark.slow)])
def test_pgd_of_art(digits: Any, norm: str, kind: Any) -> None:
    """Without a random start the iterates are equal, not only the accuracy."""
    evasion = pytest.importorskip("art.attacks.evasion")
    model, x, y = digits
    eps = EPS[norm]

    def theirs(steps: int) -> Tensor:
        peer = evasion.ProjectedGradientDescent(
            art_classifier(model),
            norm=np.inf if norm == "linf" else 2,
            eps=eps,
            eps_step=eps / 10,
            max_iter=steps,
            batch_size=COUNT,
            verbose=False,
        )
        return torch.from_numpy(peer.generate(x.numpy(), y.numpy()))

    arguments = {"eps": eps, "step_size": eps / 10, "random_start": False, "keep": "last"}
    assert torch.allclose(kind(steps=3, **arguments)(model, x, y), theirs(3), atol=1e-5)
    compare(digits, kind(steps=40, **arguments), lambda seed: theirs(40), seeds=1)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("loss", "name", "seeds"), [("cross_entropy", "ce", SEEDS), pytest.param("dlr", "dlr", 16, marks=pytest.mark.slow)]
)
def test_apgd_of_torchattacks(digits: Any, norm: Any, loss: Any, name: str, seeds: int) -> None:
    """Results of the DLR loss vary more with the start."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits

    def theirs(seed: int) -> Tensor:
        peer = torchattacks.APGD(model, norm=norm.capitalize(), eps=EPS[norm], steps=50, loss=name, seed=seed)
        return peer(x, y)  # type: ignore[no-any-return]

    compare(digits, APGD(norm=norm, eps=EPS[norm], steps=50, loss=loss), theirs, seeds=seeds)


@pytest.mark.parametrize(
    "norm", [pytest.param("linf", marks=pytest.mark.slow), pytest.param("l2", marks=pytest.mark.slow), "l1"]
)
@pytest.mark.parametrize(("name", "seeds"), [("ce", SEEDS), ("t", 1)])
def test_apgd_of_pyautoattack(digits: Any, norm: Any, name: str, seeds: int) -> None:
    autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = digits
    kind = {"ce": autopgd.APGDAttack, "t": autopgd.APGDAttack_targeted}[name]
    arguments = {"n_iter": 30, "norm": norm.capitalize(), "eps": EPS[norm], "use_largereps": norm == "l1"}
    mine = {"ce": APGD, "t": APGDT}[name](norm=norm, eps=EPS[norm], steps=30)
    compare(digits, mine, lambda seed: kind(model, seed=seed, device="cpu", **arguments).perturb(x, y), seeds=seeds)


@pytest.mark.slow
def test_apgd_of_art(digits: Any) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    model, x, y = digits

    def theirs(seed: int) -> Tensor:
        np.random.seed(seed)
        peer = evasion.AutoProjectedGradientDescent(
            art_classifier(model),
            eps=EPS["linf"],
            eps_step=2 * EPS["linf"],
            max_iter=50,
            nb_random_init=1,
            batch_size=COUNT,
            loss_type="cross_entropy",
            verbose=False,
        )
        return torch.from_numpy(peer.generate(x.numpy(), y.numpy()))

    state = np.random.get_state()
    compare(digits, APGD(eps=EPS["linf"], steps=50), theirs, seeds=SEEDS)
    np.random.set_state(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "package"),
    [("linf", "pyautoattack"), ("l2", "pyautoattack"), ("l1", "pyautoattack"), ("linf", "torchattacks")],
)
def test_square(digits: Any, norm: Any, package: str) -> None:
    """The peers' windows never reach the last row and column, which matters in so small images; here they do."""
    model, x, y = digits
    arguments = {"norm": norm.capitalize(), "n_queries": 2000, "eps": EPS[norm], "resc_schedule": True}
    kind: Any
    if package == "pyautoattack":
        kind = pytest.importorskip("pyautoattack.square").SquareAttack
        arguments["device"] = "cpu"
    else:
        kind = pytest.importorskip("torchattacks").Square

    class Whole(kind):  # type: ignore[misc]
        def random_int(self, low: int = 0, high: int = 1, shape: Any = (1,)) -> Tensor:
            return super().random_int(low, high + 1, shape)  # type: ignore[no-any-return]

    def theirs(seed: int) -> Tensor:
        peer = Whole(model, seed=seed, **arguments)
        return peer.perturb(x, y)  # type: ignore[no-any-return]

    compare(digits, Square(norm=norm, eps=EPS[norm], queries=2000, rescale=True), theirs, seeds=SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_of_pyautoattack(digits: Any, norm: Any) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    model, x, y = digits
    peer = pyautoattack.AutoAttack(model, norm=norm.capitalize(), eps=EPS[norm], seed=0)
    compare(
        digits,
        AutoAttack(norm=norm, eps=EPS[norm]),
        lambda seed: peer.run_standard_evaluation(x, y, batch_size=COUNT)[0],
        seeds=1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_of_torchattacks(digits: Any, norm: Any) -> None:
    """Whose attacks with gradients take 10 steps each: no stronger than 100 steps."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits
    peer = torchattacks.AutoAttack(model, norm=norm.capitalize(), eps=EPS[norm], n_classes=10, seed=0)
    ours = robust(model, AutoAttack(norm=norm, eps=EPS[norm])(model, x, y), y)
    assert 5 < ours <= robust(model, peer(x, y), y) + POINTS


def shorter(digits: tuple[nn.Module, Tensor, Tensor], norm: str, mine: Attack, theirs: Tensor, count: int) -> None:
    """Hold the median distances against each other, over the samples that both fool and that need an attack."""
    model, x, y = digits[0], digits[1][:count], digits[2][:count]
    result = mine.run(model, x, y)
    fooled = model(theirs).argmax(1) != y
    assert int((result.success & ~result.already).sum()) >= int((fooled & ~result.already).sum())
    both = result.success & fooled & ~result.already
    assert int(both.sum()) > 0.7 * int((~result.already).sum())
    peer = lp_norm((theirs - x).double(), norm)[both].median()
    assert float(result.distance[both].median() / peer) <= LONGER


@pytest.mark.parametrize(
    ("norm", "mine", "theirs", "arguments", "count"),
    [
        ("l2", DDN(steps=100), "DDNAttack", {"steps": 100}, 500),
        ("l2", DeepFool(norm="l2"), "L2DeepFoolAttack", {}, 500),
        ("linf", DeepFool(norm="linf"), "LinfDeepFoolAttack", {}, 500),
        pytest.param("l1", FMN(norm="l1", steps=100), "L1FMNAttack", {"steps": 100}, 500, marks=pytest.mark.slow),
        ("l2", FMN(norm="l2", steps=100), "L2FMNAttack", {"steps": 100}, 500),
        pytest.param("linf", FMN(norm="linf", steps=100), "LInfFMNAttack", {"steps": 100}, 500, marks=pytest.mark.slow),
        pytest.param("l2", CarliniWagner(steps=150, search_steps=5, initial_const=0.1), "L2CarliniWagnerAttack",
                     {"steps": 150, "binary_search_steps": 5, "initial_const": 0.1}, 100, marks=pytest.mark.slow),
        pytest.param("l1", ElasticNet(steps=100, search_steps=5, initial_const=0.1, decision="l1"), "EADAttack",
                     {"steps": 100, "binary_search_steps": 5, "initial_const": 0.1, "decision_rule": "L1"}, 100,
                     marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_distances_of_foolbox(digits: Any, norm: str, mine: Attack, theirs: str, arguments: Any, count: int) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits
    peer = getattr(foolbox.attacks, theirs)(**arguments)
    adversarial = peer(foolbox_model(model), x[:count], y[:count], epsilons=None)[0]
    shorter(digits, norm, mine, adversarial, count)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_fab_of_pyautoattack(digits: Any, norm: str) -> None:
    fab = pytest.importorskip("pyautoattack.fab_pt")
    model, x, y = digits
    peer = fab.FABAttack_PT(model, norm=norm.capitalize(), n_iter=20, eps=100.0, device="cpu")
    shorter(digits, norm, FAB(norm=norm, steps=20), peer.perturb(x[:250], y[:250]), 250)


def test_distances_of_carlini_wagner_of_torchattacks(digits: Any) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits
    peer = torchattacks.CW(model, c=1, steps=100, lr=0.01)
    mine = CarliniWagner(steps=100, search_steps=1, initial_const=1.0, abort_early=False)
    shorter(digits, "l2", mine, peer(x, y).detach(), COUNT)


@pytest.mark.slow
def test_distances_of_deepfool_of_art(digits: Any) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    model, x, _ = digits
    peer = evasion.DeepFool(art_classifier(model), max_iter=50, epsilon=0.02, batch_size=100, verbose=False)
    shorter(digits, "l2", DeepFool(norm="l2"), torch.from_numpy(peer.generate(x[:250].numpy())), 250)
