"""Strength of the attacks without a row in `attacks.py` against other toolboxes, at equal budgets.

    pip install -e ".[peers]" && pip install --no-deps torchattacks
    python benchmarks/attack_strength.py --mnist FOLDER --cifar10 FOLDER --models FOLDER

Trains small convolutional networks first, or takes them from ``--models``. Every row gives each contender the same
images, radius, bounds and number of queries or steps, under several seeds; contenders whose toolbox is not installed
are left out. What lies outside radius or bounds counts as not fooled. A row is void where another toolbox is ahead of
ours beyond the seeds: its worst share fooled above our best, or, at no smaller share, its largest median distance
below our smallest by 2 %. Void rows end the run with exit code 1.
"""

import argparse
import importlib
import importlib.util
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules import CIFAR10, MNIST
from lit_modules.attacks import (
    APGD,
    FAB,
    JSMA,
    LBFGS,
    NES,
    SPSA,
    Attack,
    Bandits,
    ElasticNet,
    GenAttack,
    LinfPGD,
    LocalSearch,
    NAttack,
    RotationTranslation,
    SinglePixel,
    SpatialTransform,
    Square,
)
from lit_modules.attacks.engine.norms import lp_norm

Peer = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""Model, images, labels and seed to adversarial images."""


class Net(NamedTuple):
    """Network to train: its data, the radius of its PGD training, the number of steps, and its radii by norm."""

    data: str
    eps: float
    steps: int
    radius: dict[str, float]


MNIST_RADII = {"linf": 0.15, "l2": 1.5, "l1": 6.0}
NETS = {
    "standard": Net("mnist", 0.0, 800, MNIST_RADII),
    "robust": Net("mnist", 0.3, 1500, {"linf": 0.3, "l2": 2.0, "l1": 8.0}),
    "cifar": Net("cifar10", 8 / 255, 800, {"linf": 8 / 255, "l2": 0.5, "l1": 8.0}),
}


class Row(NamedTuple):
    """Contenders at one budget.

    Attributes:
        ours: Our attack for a radius.
        peers: Attacks of other toolboxes for a radius, by the name of its module.
        norm: Norm of the radius, or of the distance to be small; ``None`` where only success counts.
        bounded: Whether there is a radius; without, medians of the distance are compared.
        random: Whether the attack is random.
        targeted: Whether the labels are targets: the class after the label.
    """

    ours: Callable[[float], Attack]
    peers: dict[str, Callable[[float], Peer]]
    norm: str | None = "linf"
    bounded: bool = True
    random: bool = True
    targeted: bool = False


class Counted(nn.Module):
    """Model that counts the images it is shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        self.count += len(x)
        logits: Tensor = self.model(x)
        return logits


def network(channels: int, side: int, seed: int) -> nn.Sequential:
    """Return two strided convolutions and two linear layers."""
    torch.manual_seed(seed)
    wide = 12 if channels == 1 else 16
    layers = [nn.Conv2d(channels, wide, 4, 2, 1), nn.ReLU(), nn.Conv2d(wide, 2 * wide, 4, 2, 1), nn.ReLU()]
    hidden = 64 + 16 * seed
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(2 * wide * (side // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )


def trained(net: Net, x: Tensor, y: Tensor, path: Path, seed: int) -> nn.Module:
    """Return a network trained on images, from the file if it is there."""
    model = network(x.shape[1], x.shape[2], seed)
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, net.steps)
    for step in range(net.steps):
        index = torch.randint(len(x), (100,))
        image, label = x[index], y[index]
        if net.eps:
            eps = net.eps * min(1.0, 0.1 + step / (0.4 * net.steps))
            image = LinfPGD(eps=eps, steps=5, step_size=eps / 3, keep="last")(model, image, label, seed=step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def images(name: str, root: str, part: Any) -> tuple[Tensor, Tensor]:
    """Return images between 0 and 1, and their labels."""
    x, y = (MNIST(root=root) if name == "mnist" else CIFAR10(root=root)).read(part)
    return x.float() / 255, y


def module(name: str) -> Any:
    """Return a module of another toolbox."""
    return importlib.import_module(name)


def torchattacks(name: str, **arguments: Any) -> Peer:
    """Return an attack of torchattacks; a targeted one needs ``targeted=True``."""
    targeted = arguments.pop("targeted", False)

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        seeded = {"seed": seed} if name == "Square" else {}
        attack = getattr(module("torchattacks"), name)(model, **arguments, **seeded)
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        return attack(x, y)  # type: ignore[no-any-return]

    return run


def pyautoattack(part: str, name: str, **arguments: Any) -> Peer:
    """Return a part of AutoAttack of pyautoattack."""
    kind = f"pyautoattack.{part}"
    return lambda model, x, y, seed: getattr(module(kind), name)(model, seed=seed, device="cpu", **arguments).perturb(
        x, y
    )


def foolbox(name: str, eps: float | None = None, targeted: bool = False, **arguments: Any) -> Peer:
    """Return an attack of foolbox."""

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        box = module("foolbox")
        criterion = box.criteria.TargetedMisclassification if targeted else box.criteria.Misclassification
        attack = getattr(box.attacks, name)(**arguments)
        wrapped = box.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return attack(wrapped, x, criterion(y), epsilons=eps)[1]  # type: ignore[no-any-return]

    return run


def foolbox_nes(eps: float, samples: int, sigma: float, **arguments: Any) -> Peer:
    """Return foolbox's projected gradient descent on estimates of evolution strategies."""

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        box, estimators = module("foolbox"), module("foolbox.gradient_estimators")
        kind = estimators.es_gradient_estimator(
            box.attacks.LinfPGD, samples=samples, sigma=sigma, bounds=(0, 1), clip=True
        )
        wrapped = box.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return kind(**arguments)(wrapped, x, y, epsilons=eps)[1]  # type: ignore[no-any-return]

    return run


def art(name: str, labels: bool = True, **arguments: Any) -> Peer:
    """Return an attack of the Adversarial Robustness Toolbox."""

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        box: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"}
        kind = module("art.estimators.classification").PyTorchClassifier
        classifier = kind(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, **box)
        attack = getattr(module("art.attacks.evasion"), name)(classifier, verbose=False, **arguments)
        one_hot = nn.functional.one_hot(y, 10).numpy() if labels else None
        return torch.from_numpy(attack.generate(x.numpy(), one_hot)).float()

    return run


def advlib(name: str, **arguments: Any) -> Peer:
    """Return an attack of adv-lib."""
    return lambda model, x, y, seed: getattr(module("adv_lib.attacks"), name)(model, x.clone(), y, **arguments).detach()


def advertorch(name: str, probabilities: bool = False, alone: bool = False, **arguments: Any) -> Peer:
    """Return an attack of AdverTorch, which may ask for probabilities, or for one image at a time."""

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        asked = nn.Sequential(model, nn.Softmax(1)) if probabilities else model
        attack = getattr(module("advertorch.attacks"), name)(asked, **arguments)
        parts = [attack.perturb(x[i : i + 1], y[i : i + 1]) for i in range(len(x))] if alone else [attack.perturb(x, y)]
        return torch.cat(parts).detach()

    return run


ROWS = {
    "Square L2, 500 queries": Row(
        lambda eps: Square(norm="l2", eps=eps, queries=500, rescale=True),
        {
            "torchattacks": lambda eps: torchattacks("Square", norm="L2", eps=eps, n_queries=500, resc_schedule=True),
            "pyautoattack": lambda eps: pyautoattack(
                "square", "SquareAttack", norm="L2", eps=eps, n_queries=500, resc_schedule=True
            ),
            "art": lambda eps: art("SquareAttack", norm=2, eps=eps, max_iter=500),
        },
        norm="l2",
    ),
    "Square L1, 500 queries": Row(
        lambda eps: Square(norm="l1", eps=eps, queries=500, rescale=True),
        {
            "pyautoattack": lambda eps: pyautoattack(
                "square", "SquareAttack", norm="L1", eps=eps, n_queries=500, resc_schedule=True
            )
        },
        norm="l1",
    ),
    "APGD L1, 40 steps": Row(
        lambda eps: APGD(norm="l1", eps=eps, steps=40),
        {
            "pyautoattack": lambda eps: pyautoattack(
                "autopgd_base", "APGDAttack", norm="L1", eps=eps, n_iter=40, use_largereps=True
            ),
            "adv_lib": lambda eps: advlib("apgd", eps=eps, norm=1, n_iter=40, loss_function="ce", use_large_reps=True),
        },
        norm="l1",
    ),
    "FAB L1, 30 steps": Row(
        lambda eps: FAB(norm="l1", steps=30),
        {
            "pyautoattack": lambda eps: pyautoattack("fab_pt", "FABAttack_PT", norm="L1", eps=100.0, n_iter=30),
            "adv_lib": lambda eps: advlib("fab", norm=1, n_iter=30),
            "advertorch": lambda eps: advertorch("L1FABAttack", n_iter=30, eps=100.0),
        },
        norm="l1",
        bounded=False,
        random=False,
    ),
    "elastic net, 4 x 50 steps from 0.01": Row(
        lambda eps: ElasticNet(search_steps=4, steps=50, initial_const=0.01, decision="l1"),
        {
            "foolbox": lambda eps: foolbox(
                "EADAttack", binary_search_steps=4, steps=50, initial_const=0.01, decision_rule="L1"
            ),
            "art": lambda eps: art(
                "ElasticNet",
                binary_search_steps=4,
                max_iter=50,
                initial_const=0.01,
                decision_rule="L1",
                beta=0.01,
                batch_size=64,
            ),
            "torchattacks": lambda eps: torchattacks(
                "EADL1", binary_search_steps=4, max_iterations=50, initial_const=0.01, beta=0.01
            ),
        },
        norm="l1",
        bounded=False,
        random=False,
    ),
    "JSMA, 10 % of the values": Row(
        lambda eps: JSMA(gamma=0.1, targeted=True),
        {
            "torchattacks": lambda eps: torchattacks("JSMA", theta=1.0, gamma=0.1, targeted=True),
            "art": lambda eps: art("SaliencyMapMethod", theta=1.0, gamma=0.1, batch_size=64),
            "advertorch": lambda eps: advertorch("JSMA", num_classes=10, gamma=0.1),
        },
        norm="l0",
        bounded=False,
        random=False,
        targeted=True,
    ),
    "L-BFGS, 5 x 20 iterations": Row(
        lambda eps: LBFGS(search_steps=5, steps=20, targeted=True),
        {
            "advertorch": lambda eps: advertorch(
                "LBFGSAttack", num_classes=10, binary_search_steps=5, max_iterations=20, targeted=True, alone=True
            )
        },
        norm="l2",
        bounded=False,
        random=False,
        targeted=True,
    ),
    "SPSA, 20 steps of 64 queries": Row(
        lambda eps: SPSA(eps=eps, steps=20, directions=32, step_size=eps / 8),
        {
            "torchattacks": lambda eps: torchattacks("SPSA", eps=eps, lr=eps / 8, nb_iter=20, nb_sample=32),
            "advertorch": lambda eps: advertorch("LinfSPSAAttack", eps=eps, lr=eps / 8, nb_iter=20, nb_sample=32),
        },
    ),
    "NES, 20 steps of 64 queries": Row(
        lambda eps: NES(eps=eps, steps=20, directions=32, step_size=eps / 8),
        {
            "advertorch": lambda eps: advertorch("NESAttack", eps=eps, eps_iter=eps / 8, nb_iter=20, nb_samples=32),
            "foolbox": lambda eps: foolbox_nes(eps, samples=64, sigma=0.01, steps=20, rel_stepsize=1 / 8),
        },
    ),
    "bandits, 900 queries": Row(
        lambda eps: Bandits(eps=eps, steps=300),
        {"advertorch": lambda eps: advertorch("BanditAttack", eps=eps, order=np.inf, nb_iter=450)},
    ),
    "NAttack, 20 steps of 50 queries": Row(
        lambda eps: NAttack(eps=eps, steps=20, samples=49),
        {"advertorch": lambda eps: advertorch("LinfNAttack", probabilities=True, eps=eps, nb_iter=20, nb_samples=50)},
    ),
    "GenAttack, 50 generations of 20": Row(
        lambda eps: GenAttack(eps=eps, steps=50, population=20, targeted=True),
        {
            "foolbox": lambda eps: foolbox("GenAttack", eps=eps, targeted=True, steps=50, population=20),
            "advertorch": lambda eps: advertorch(
                "LinfGenAttack", probabilities=True, eps=eps, nb_iter=50, nb_samples=20, targeted=True
            ),
        },
        targeted=True,
    ),
    "rotation and translation, 5 x 5 x 5": Row(
        lambda eps: RotationTranslation(max_rotation=20, max_translation=2, rotations=5, translations=5),
        {
            "foolbox": lambda eps: foolbox("SpatialAttack", max_rotation=20, max_translation=2),
            "art": lambda eps: art(
                "SpatialTransformation",
                labels=False,
                max_rotation=20,
                max_translation=7,
                num_rotations=5,
                num_translations=5,
            ),
        },
        norm=None,
        bounded=False,
        random=False,
    ),
    "flow, 100 steps": Row(
        lambda eps: SpatialTransform(),
        {
            "advertorch": lambda eps: advertorch(
                "SpatialTransformAttack", num_classes=10, max_iterations=100, alone=True
            )
        },
        norm="l2",
        bounded=False,
        random=False,
    ),
    "one pixel, 100 pixels": Row(
        lambda eps: SinglePixel(max_pixels=100),
        {
            "advertorch": lambda eps: advertorch("SinglePixelAttack", max_pixels=100),
            "torchattacks": lambda eps: torchattacks("OnePixel", steps=10, popsize=10),
        },
        norm="l0",
        bounded=False,
    ),
    "local search, 10 rounds": Row(
        lambda eps: LocalSearch(),
        {
            "advertorch": lambda eps: advertorch("LocalSearchAttack"),
            "torchattacks": lambda eps: torchattacks("Pixle", restarts=20, max_iterations=50),
        },
        norm="l0",
        bounded=False,
    ),
}


class Score(NamedTuple):
    """Share fooled in per cent, median distance, passes of an image, and seconds of processor time."""

    fooled: float
    distance: float
    passes: float
    seconds: float


def score(run: Peer, row: Row, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Score:
    """Run a contender under a seed and hold its result to radius and bounds."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    counted = Counted(model).eval()
    began = time.process_time()
    adversarial = run(counted, x, y, seed)
    seconds = time.process_time() - began
    delta = (adversarial - x).double()
    distance = torch.zeros(len(x), dtype=torch.float64) if row.norm is None else lp_norm(delta, row.norm)
    right = model(adversarial).argmax(1) == y
    fooled = (right if row.targeted else ~right) & (adversarial >= -1e-5).flatten(1).all(1)
    fooled &= (adversarial <= 1 + 1e-5).flatten(1).all(1)
    fooled &= (adversarial != 0).flatten(1).any(1)  # foolbox gives a black image where its elastic net fails
    if row.bounded:
        fooled &= distance <= eps * (1 + 1e-3)
    median = float(torch.where(fooled, distance, float("inf")).median())
    return Score(100 * float(fooled.double().mean()), median, counted.count / len(x), seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and logs of the toolboxes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def compare(name: str, row: Row, net: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, seeds: int) -> bool:
    """Print the lines of a row and return whether it holds."""
    target = (y + 1) % 10 if row.targeted else y
    attack = row.ours(eps)
    contenders: dict[str, Peer] = {"ours": lambda model, x, y, seed: attack(model, x, y, seed=seed)}
    contenders |= {peer: build(eps) for peer, build in row.peers.items() if importlib.util.find_spec(peer)}
    scores: dict[str, list[Score]] = {}
    for contender, run in contenders.items():
        with quiet():
            scores[contender] = [
                score(run, row, model, x, target, eps, seed) for seed in range(seeds if row.random else 1)
            ]
    ours, holds = scores["ours"], True
    for peer, all_ in scores.items():
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, all_, strict=True))
        ahead = min(s.fooled for s in all_) > max(s.fooled for s in ours)
        if not row.bounded:
            no_fewer = min(s.fooled for s in all_) >= max(s.fooled for s in ours)
            ahead |= no_fewer and max(s.distance for s in all_) * 1.02 < min(s.distance for s in ours)
        holds &= not ahead
        shares = " ".join(f"{s.fooled:.0f}" for s in all_)
        distances = "" if row.bounded or row.norm is None else " ".join(f"{s.distance:.4g}" for s in all_)
        passes = statistics.mean(s.passes for s in all_)
        mark = "AHEAD" if ahead else ""
        print(f"{name:38}{net:9}{peer:14}{shares:14}{distances:20}{passes:8.0f}  {ratio:6.2f} {mark}", flush=True)
    return holds


def main() -> int:
    """Run the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="folder of MNIST")
    parser.add_argument("--cifar10", help="folder of CIFAR10; without, the network on it is left out")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the networks, trained if absent")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--rows", nargs="+", help="beginnings of the names of rows; all without")
    parser.add_argument("--images", type=int, default=64, help="images that the network classifies rightly")
    parser.add_argument("--skip", type=int, default=0, help="such images to leave out first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--net-seed", type=int, default=0, help="seed of the networks; it also changes their width")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'row':38}{'network':9}{'attack':14}{'fooled, %':14}{'median distance':20}{'passes':>8}  ours/its time")
    void = []
    for net_name in args.nets:
        net = NETS[net_name]
        root = args.mnist if net.data == "mnist" else args.cifar10
        if root is None:
            continue
        path = args.models / f"{net_name}-{args.net_seed}.pt"
        model = trained(net, *images(net.data, root, "train"), path, args.net_seed)
        x, y = images(net.data, root, "test")
        index = (model(x[:2000]).argmax(1) == y[:2000]).nonzero()[args.skip : args.skip + args.images, 0]
        for name in (name for start in args.rows or [""] for name in ROWS if name.startswith(start)):
            row = ROWS[name]
            radius = net.radius[row.norm] if row.bounded and row.norm else 0.0
            if not compare(name, row, net_name, model, x[index], y[index], radius, args.seeds):
                void.append(f"{name} ({net_name})")
    print("void:", ", ".join(void) if void else "none")
    return 1 if void else 0


if __name__ == "__main__":
    sys.exit(main())
