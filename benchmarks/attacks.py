"""Cost of the attacks as ratios against other toolboxes on the same model, images, radius and steps, in one run.

    pip install -e ".[peers]" && pip install --no-deps torchattacks adv-lib
    python benchmarks/attacks.py --data FOLDER_OF_MNIST --small

Needs the four MNIST files; adv-lib, which asks for visdom, is left out where it is missing. Trains a standard and a
robust LeNet5 first, or takes them from ``--models``. Contenders take turns under a seed for each turn. A row has the
robust accuracies, of minimum-norm attacks those at our median distance, with the median distances. It is void, which
ends the run with exit code 1, where another finds more: beyond 0.4 points, one image for minimum-norm attacks, and two
standard errors of the difference for attacks by random search. A peer that finds less than that is not the best peer;
its time stands beside its result. Runs on the GPU if there is one.

AutoAttack has three rows more. torchattacks gives APGD and FAB 10 steps where the published ensemble gives 100, so it
is compared with ours at its budget. The floor are the bare passes that the published ensemble makes on the images that
withstand, in batches as ours has them: 100 steps of APGD-CE, 9 x 100 of APGD-T and, in one batch of all targets, of
FAB-T, with a forward and a backward pass each, and 5000 forward passes of Square. A tenth of them is timed.

With ``--optimality FOLDER`` no cost is measured: every minimum-norm attack of ours and of the installed toolboxes gets
the same budget of passes, and table and figure say how close each comes to the best of all; see ``optimality.py``.
Classifiers from elsewhere are taken as programs: ``--program robust=FILE`` with what ``torch.export.save`` wrote.
"""

import argparse
import functools
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import foolbox
import optimality
import torch
import torchattacks
from foolbox import attacks as foolbox_attacks
from pyautoattack import AutoAttack as PyAutoAttack
from timing import Table, end, in_turns, seconds
from torch import Tensor, nn
from training_steps import training_steps

from datamodules import MNIST
from lit_modules.attacks import (
    APGD,
    APGDT,
    DDN,
    FAB,
    FABT,
    FMN,
    JSMA,
    L1PGD,
    Attack,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    ElasticNet,
    LinfPGD,
    Square,
)
from lit_modules.networks import LeNet5

Contender = Callable[[nn.Module, Tensor, Tensor], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS, EPS_L1, EPS_L2 = 0.3, 10.0, 2.0


def classifier(folder: Path, robust: bool, data: MNIST, steps: int, small: bool = False) -> nn.Module:
    """Return a trained LeNet5, of 3.27 million weights or of 163 thousand, from the folder if it is there."""
    path = folder / f"lenet5-{'small-' if small else ''}{'robust' if robust else 'standard'}.pt"
    torch.manual_seed(0)
    model = (LeNet5("small", width=0.5) if small else LeNet5()).to(DEVICE)
    if path.exists():
        model.load_state_dict(torch.load(path, map_location=DEVICE))
        return model.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    step = 0
    while step < steps:
        for batch in data.train_dataloader():
            image, label = batch["image"].to(DEVICE), batch["label"].to(DEVICE)
            if robust:
                eps = EPS * min(1.0, 0.1 + step / (0.4 * steps))
                image = LinfPGD(eps=eps, steps=7, step_size=eps / 4, keep="last")(model, image, label, seed=step)
            loss = nn.functional.cross_entropy(model(image), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
                break
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def ours(attack: Attack) -> Contender:
    """Return one of our attacks, under the seed of the turn."""
    return lambda model, x, y: attack(model, x, y, seed=torch.initial_seed())


def torchattacks_of(kind: type, **arguments: float | str | bool) -> Contender:
    """Return an attack of torchattacks."""
    return lambda model, x, y: kind(model, **arguments)(x, y)


def foolbox_of(attack: object, eps: float | None) -> Contender:
    """Return an attack of foolbox."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=DEVICE)
        return attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=eps)[1]  # type: ignore[operator,no-any-return]

    return run


def art_of(kind: str, **arguments: float) -> Contender:
    """Return an attack of the Adversarial Robustness Toolbox."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        kinds: dict[str, Any] = {"device_type": "gpu" if DEVICE == "cuda" else "cpu", "clip_values": (0, 1)}
        wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, **kinds)
        attack = getattr(evasion, kind)(wrapped, batch_size=len(x), verbose=False, **arguments)
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return run


def adv_lib_of(kind: str, **arguments: float) -> dict[str, Contender]:
    """Return an attack of adv-lib by its name, or nothing where that is not installed."""
    if not (find_spec("adv_lib") and find_spec("visdom")):
        return {}
    import adv_lib.attacks as peer

    return {"adv-lib": lambda model, x, y: getattr(peer, kind)(model, x, y, **arguments)}


def pyautoattack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run AutoAttack of the package pyautoattack."""
    attack = PyAutoAttack(model, norm="Linf", eps=EPS, version="standard", device=DEVICE, seed=0)
    result = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


def row(
    table: Table,
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    contenders: dict[str, Contender],
    rounds: int,
    norm: float | None = None,
    chance: bool = False,
) -> tuple[dict[str, list[float]], Tensor]:
    """Time the contenders in turns and add their row, void if a rival finds more.

    Args:
        table: Takes the row.
        name: Name of the row.
        model: Classifier.
        x: Images.
        y: Labels.
        contenders: The first is ours.
        rounds: Turns of each, with as many seeds; the robust accuracy is their mean.
        norm: For attacks that look for the smallest perturbation, its norm; results are compared at our median.
        chance: Allow two standard errors of the difference, for attacks that search at random.

    Returns:
        The times of each contender, and the images that withstand ours in every turn.
    """
    found: dict[str, list[Tensor]] = {key: [] for key in contenders}

    def timed(key: str) -> float:
        torch.manual_seed(len(found[key]))
        second, adversarial = seconds(functools.partial(contenders[key], model, x.clone(), y))
        found[key].append(adversarial.detach())
        return second

    works = [functools.partial(timed, key) for key in contenders]
    times = dict(zip(contenders, in_turns(rounds, *works), strict=True))
    first, *rivals = contenders
    with torch.no_grad():
        stands = {key: torch.stack([model(image).argmax(1) == y for image in turns]) for key, turns in found.items()}
    withstands = stands[first].all(0)
    distances: dict[str, Tensor] = {}
    if norm is not None:
        for key, turns in found.items():
            distance = (torch.stack(turns) - x).flatten(2).norm(norm, dim=2)
            distances[key] = distance.masked_fill(stands[key], torch.inf)
        radius = 1.001 * float(distances[first].median())  # a thousandth is no difference
        stands = {key: (distance > radius) | distance.isinf() for key, distance in distances.items()}
    robust = {key: 100 * float(standing.float().mean()) for key, standing in stands.items()}

    def less(one: str, other: str) -> bool:
        """Say whether one finds less than the other by more than is allowed."""
        gap = 100 * (stands[one].float() - stands[other].float()).mean(0)
        allowed = 0.4 if norm is None else 100 / len(x)
        if chance:
            allowed += 2 * float(gap.std()) / len(x) ** 0.5
        return float(gap.mean()) > allowed + 1e-4

    more = [key for key in rivals if less(first, key)]
    equal = [key for key in rivals if not less(key, first)] or rivals
    shown = []
    for key in contenders:
        median = f", median {float(distances[key].median()):.4g}" if distances else ""
        slower = "" if key == first or key in equal else f" in {sum(times[key]) / rounds:.3g} s"
        shown.append(f"{key} {robust[key]:.1f} %{median}{slower}")
    void = f"{', '.join(more)} finds more" if more else ""
    table.add(f"{name}, {len(x)} images", times[first], {key: times[key] for key in equal}, "; ".join(shown), void=void)
    return times, withstands


def autoattack(table: Table, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    """Compare AutoAttack with pyautoattack, with its floor, and with torchattacks at the budget of that."""
    contenders = {"ours": ours(AutoAttack(norm="linf", eps=EPS)), "pyautoattack": pyautoattack}
    times, withstands = row(table, "AutoAttack standard Linf, robust", model, x, y, contenders, rounds)
    image, label = x[withstands], y[withstands]
    if len(image):
        least = in_turns(rounds, lambda: passes(model, image, label, 10))[0]
        name = f"passes of the {len(image)} that withstand"
        table.add("  AutoAttack / its floor", times["ours"], {name: least}, most=None)
        table.add("  its floor / pyautoattack", least, {"pyautoattack": times["pyautoattack"]}, most=0.5)
    few: list[Attack] = [APGD(norm="linf", eps=EPS, steps=10), APGDT(norm="linf", eps=EPS, steps=10)]
    few += [FABT(norm="linf", steps=10), Square(norm="linf", eps=EPS, rescale=True)]
    contenders = {
        "ours": ours(AutoAttack(norm="linf", eps=EPS, version="custom", attacks=few)),
        "torchattacks": torchattacks_of(torchattacks.AutoAttack, norm="Linf", eps=EPS, seed=0),
    }
    name = "AutoAttack at torchattacks' budget, 10 steps for 100, robust"
    row(table, name, model, x, y, contenders, rounds, chance=True)


def passes(model: nn.Module, x: Tensor, y: Tensor, share: int) -> float:
    """Return the seconds of the passes that the published ensemble makes, of which one in ``share`` is timed."""

    def both(image: Tensor, label: Tensor) -> None:
        point = image.detach().requires_grad_()
        torch.autograd.grad(model(point).gather(1, label[:, None]).sum(), point)

    def work() -> None:
        for _ in range((100 + 9 * 100) // share):
            both(x, y)
        several, labels = x.repeat(9, *[1] * (x.ndim - 1)), y.repeat(9)
        for _ in range(100 // share):
            both(several, labels)
        with torch.no_grad():
            for _ in range(5000 // share):
                model(x)

    return share * seconds(work)[0]


def minimal() -> list[tuple[str, float, bool, dict[str, Contender]]]:
    """Return name, norm, whether the robust model is attacked, and contenders of the minimum-norm rows."""
    peer = foolbox_attacks
    ead: dict[str, Any] = {"binary_search_steps": 9, "steps": 100, "regularization": 0.01, "decision_rule": "L1"}
    rows: list[tuple[str, float, bool, dict[str, Contender]]] = [
        (
            "CW L2, 9 x 100 iterations of 0.05",
            2,
            False,
            {
                "ours": ours(CarliniWagner(steps=100, search_steps=9, step_size=0.05)),
                "foolbox": foolbox_of(
                    peer.L2CarliniWagnerAttack(binary_search_steps=9, steps=100, stepsize=0.05), None
                ),
            },
        ),
        *(
            (
                f"elastic net by L1, 9 x 100 iterations of 0.01{', early abort' if early else ''}",
                1,
                False,
                {
                    "ours": ours(ElasticNet(beta=0.01, decision="l1", steps=100, search_steps=9, abort_early=early)),
                    "foolbox": foolbox_of(peer.EADAttack(**ead, abort_early=early), None),
                },
            )
            for early in (False, True)
        ),
        (
            "DDN L2, 100 iterations",
            2,
            False,
            {
                "ours": ours(DDN(steps=100)),
                "foolbox": foolbox_of(peer.DDNAttack(steps=100), None),
                **adv_lib_of("ddn", steps=100),
            },
        ),
        (
            "FAB Linf, 100 iterations",
            float("inf"),
            False,
            {
                "ours": ours(FAB(norm="linf", steps=100)),
                "torchattacks": torchattacks_of(
                    torchattacks.FAB, norm="Linf", eps=1.0, steps=100, n_restarts=1, n_classes=10
                ),
                **adv_lib_of("fab", norm=float("inf"), n_iter=100),
            },
        ),
    ]
    for robust in (False, True):
        rows += [
            (
                "DeepFool L2, 50 iterations",
                2,
                robust,
                {
                    "ours": ours(DeepFool(norm="l2", steps=50)),
                    "foolbox": foolbox_of(peer.L2DeepFoolAttack(steps=50), None),
                    "torchattacks": torchattacks_of(torchattacks.DeepFool, steps=50),
                    "ART": art_of("DeepFool", max_iter=50, epsilon=0.02, nb_grads=10),
                    **adv_lib_of("df", steps=50, norm=2),
                },
            ),
            (
                "FMN L2, 100 iterations",
                2,
                robust,
                {
                    "ours": ours(FMN(norm="l2", steps=100)),
                    "foolbox": foolbox_of(peer.L2FMNAttack(steps=100), None),
                    **adv_lib_of("fmn", norm=2, steps=100),
                },
            ),
            (
                "FMN Linf, 100 iterations",
                float("inf"),
                robust,
                {
                    "ours": ours(FMN(norm="linf", steps=100)),
                    "foolbox": foolbox_of(peer.LInfFMNAttack(steps=100), None),
                    **adv_lib_of("fmn", norm=float("inf"), steps=100),
                },
            ),
        ]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/mnist", help="folder of the MNIST files")
    parser.add_argument("--models", default="runs/benchmark-attacks", help="folder of the trained classifiers")
    parser.add_argument("--small", action="store_true", help="classifiers of 163 thousand weights, not 3.27 million")
    parser.add_argument("--train-steps", type=int, default=1500, help="steps of training where there is none")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    kinds = ("pgd", "minimal", "square", "jsma", "autoattack", "training")
    parser.add_argument("--rows", default=",".join(kinds), help="rows to run")
    parser.add_argument("--pgd-images", type=int, default=128, help="images of the rows of PGD")
    parser.add_argument("--minimal-images", type=int, default=32, help="images of the rows of smallest perturbations")
    parser.add_argument("--square-images", type=int, default=64, help="images of the rows of Square")
    parser.add_argument("--square-queries", type=int, default=1000, help="queries of the rows of Square")
    parser.add_argument("--jsma-images", type=int, default=8, help="images of the row of JSMA")
    parser.add_argument("--autoattack-images", type=int, default=50, help="images of the AutoAttack rows")
    parser.add_argument("--training-steps", type=int, default=16, help="training steps of a round, two to warm up")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--optimality", type=Path, help="folder of the table and figure of optimality")
    parser.add_argument("--passes", type=int, default=200, help="with --optimality, forward and backward passes")
    parser.add_argument("--norms", default="l0,l1,l2,linf", help="with --optimality, norms")
    parser.add_argument("--images", type=int, default=100, help="with --optimality, images of the test set")
    parser.add_argument("--skip", type=int, default=0, help="with --optimality, images of the test set passed over")
    parser.add_argument(
        "--program", action="append", default=[], help="with --optimality, NAME=FILE of an exported classifier"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = MNIST(root=options.data, batch_size=100)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    training = data, options.train_steps, options.small
    if options.optimality is not None:
        named = dict(entry.split("=", 1) for entry in options.program)
        models = {name: torch.export.load(file).module().to(DEVICE) for name, file in named.items()}
        if not models:
            names = {"standard": False, "robust": True}
            models = {name: classifier(Path(options.models), robust, *training) for name, robust in names.items()}
        count = options.skip + options.images
        data = MNIST(root=options.data, batch_size=count, test_size=count)
        data.setup("test")
        batch = next(iter(data.test_dataloader()))
        x, y = batch["image"][options.skip :].to(DEVICE), batch["label"][options.skip :].to(DEVICE)
        optimality.run(models, x, y, options.passes, options.norms.split(","), options.optimality)
        return
    robust, standard = (classifier(Path(options.models), r, *training) for r in (True, False))
    batch = next(iter(data.test_dataloader()))
    x, y = batch["image"].to(DEVICE), batch["label"].to(DEVICE)

    def some(number: int) -> tuple[Tensor, Tensor]:
        return x[:number], y[:number]

    network = f"LeNet5 of {sum(parameter.numel() for parameter in robust.parameters()) / 1e6:.3g} M weights"
    peers = ("foolbox", "torchattacks", "pyautoattack", "adversarial-robustness-toolbox", "adv-lib")
    table = Table(f"Attacks on {network}, MNIST", options.rounds, *peers)
    rows, rounds = set(options.rows.split(",")), options.rounds
    if "pgd" in rows:
        for name, model in (("robust", robust), ("standard", standard)):
            contenders = {
                "ours": ours(LinfPGD(eps=EPS, steps=40, step_size=0.01, random_start=False)),
                "torchattacks": torchattacks_of(torchattacks.PGD, eps=EPS, alpha=0.01, steps=40, random_start=False),
                "foolbox": foolbox_of(foolbox_attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=False), EPS),
            }
            title = f"PGD-40 Linf from the image itself, {name}"
            row(table, title, model, *some(options.pgd_images), contenders, rounds)
            contenders = {
                "ours": ours(L1PGD(eps=EPS_L1, steps=40, step_size=1.0)),
                "foolbox": foolbox_of(foolbox_attacks.SparseL1DescentAttack(abs_stepsize=1.0, steps=40), EPS_L1),
            }
            row(table, f"PGD-40 L1, {name}", model, *some(options.pgd_images), contenders, rounds, chance=True)
    if "minimal" in rows:
        for name, order, is_robust, contenders in minimal():
            model, title = (robust, f"{name}, robust") if is_robust else (standard, f"{name}, standard")
            row(table, title, model, *some(options.minimal_images), contenders, rounds, order)
    if "square" in rows:
        queries = options.square_queries
        contenders = {
            "ours": ours(Square(norm="linf", eps=EPS, queries=queries, rescale=True)),
            "torchattacks": torchattacks_of(torchattacks.Square, norm="Linf", eps=EPS, n_queries=queries, seed=None),
        }
        chosen = some(options.square_images)
        row(table, f"Square Linf, {queries} queries, robust", robust, *chosen, contenders, rounds, chance=True)
        contenders = {
            "ours": ours(Square(norm="l2", eps=EPS_L2, queries=queries, rescale=True)),
            "torchattacks": torchattacks_of(torchattacks.Square, norm="L2", eps=EPS_L2, n_queries=queries, seed=None),
            "ART": art_of("SquareAttack", norm=2, eps=EPS_L2, max_iter=queries),
        }
        row(table, f"Square L2, {queries} queries, robust", robust, *chosen, contenders, rounds, chance=True)
    if "jsma" in rows:
        attack = JSMA(theta=1.0, gamma=0.1, targeted=True)
        contenders = {
            "ours": lambda model, x, y: attack(model, x, (y + 1) % 10),
            "torchattacks": torchattacks_of(torchattacks.JSMA, theta=1.0, gamma=0.1),  # aims at the next class
        }
        title = "JSMA towards the next class, standard"
        row(table, title, standard, *some(options.jsma_images), contenders, rounds, 0)
    if "autoattack" in rows:
        autoattack(table, robust, *some(options.autoattack_images), rounds)
    if "training" in rows:
        training_steps(table, robust, x[:100], y[:100], rounds, options.training_steps)
    end(table)


if __name__ == "__main__":
    main()
