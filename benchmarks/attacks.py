"""Cost of the attacks as ratios against other toolboxes on the same model, images, radius and steps, in one run.

    pip install -e ".[peers]" && pip install --no-deps torchattacks
    python benchmarks/attacks.py --data FOLDER_OF_MNIST

Needs the four MNIST files. Trains a standard and a robust LeNet5 first, or takes them from ``--models``. Contenders
take turns; a row gives the median time of each, the ratio against the fastest other toolbox, and the robust
accuracies, and is void where another finds more than 0.4 points beyond ours, which ends the run with exit code 1. Runs
on the GPU if there is one.

With ``--optimality FOLDER`` no cost is measured: every minimum-norm attack of ours and of the installed toolboxes gets
the same budget of passes, and table and figure say how close each comes to the best of all; see ``optimality.py``.
Classifiers from elsewhere are taken as programs: ``--program robust=FILE`` with what ``torch.export.save`` wrote.
"""

import argparse
import functools
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import foolbox
import optimality
import torch
import torchattacks
from pyautoattack import AutoAttack as PyAutoAttack
from timing import ratios, spread
from torch import Tensor, nn

from datamodules import MNIST
from lit_modules.attacks import DDN, FAB, Attack, AutoAttack, CarliniWagner, DeepFool, LinfPGD, Square
from lit_modules.networks import LeNet5

Contender = Callable[[nn.Module, Tensor, Tensor], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 0.3
VOID: list[str] = []
"""Rows in which a rival finds more than ours."""


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


def pyautoattack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run AutoAttack of the package pyautoattack."""
    attack = PyAutoAttack(model, norm="Linf", eps=EPS, version="standard", device=DEVICE, seed=0)
    result = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


clock = time.perf_counter


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return the seconds of a call and its result."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = clock()
    result = run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - began, result


def row(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    contenders: dict[str, Contender],
    rounds: int,
    norm: float | None = None,
) -> None:
    """Time the contenders in turns, print their lines, and note the row in `VOID` if its results are not comparable.

    Args:
        name: Name of the row.
        model: Classifier.
        x: Images.
        y: Labels.
        contenders: The first is ours.
        rounds: Turns of each, with as many seeds; the robust accuracy is their mean.
        norm: For attacks that look for the smallest perturbation, its norm; results are compared at our median.
    """
    times: dict[str, list[float]] = {key: [] for key in contenders}
    found: dict[str, list[Tensor]] = {key: [] for key in contenders}
    for turn in range(rounds):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for key in order:
            torch.manual_seed(turn)
            seconds, adversarial = timed(functools.partial(contenders[key], model, x.clone(), y))
            times[key].append(seconds)
            found[key].append(adversarial)
    first = next(iter(contenders))
    radius = None
    distances: dict[str, Tensor] = {}
    if norm is not None:
        distances = {key: (torch.stack(a) - x).flatten(2).norm(norm, dim=2) for key, a in found.items()}
        radius = float(distances[first].median())
    robust = {}
    with torch.no_grad():
        for key, turns in found.items():
            stands = torch.stack([model(adversarial).argmax(1) == y for adversarial in turns])
            if radius is not None:
                stands = stands | (distances[key] > radius)
            robust[key] = 100 * float(stands.float().mean())
    medians = {key: statistics.median(values) for key, values in times.items()}
    rivals = [key for key in contenders if key != first]
    fastest = min(rivals, key=medians.__getitem__)
    found_less = any(robust[key] - robust[first] > 0.4 for key in rivals)
    verdict = "  (a rival finds less)" if found_less else ""
    if robust[first] - min(robust.values()) > 0.4:
        verdict = "  VOID: a rival finds more"
        VOID.append(name)
    print(f"{name}: ratio {spread(ratios(times[first], times[fastest]))}{verdict}")
    for key in contenders:
        extra = f", median distance {float(distances[key].median()):.4f}" if distances else ""
        print(f"    {key}: {spread(times[key])} s, robust {robust[key]:.1f} %{extra}", flush=True)


def training_step(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    """Compare a PGD training step with its bare passes."""
    weights, model = model.state_dict(), LeNet5().to(DEVICE).train()
    model.load_state_dict(weights)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    attack, steps = LinfPGD(eps=EPS, steps=40, step_size=0.01, keep="last"), 40

    def step(image: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(image), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def floor() -> Tensor:
        model.eval().requires_grad_(False)
        for _ in range(steps):
            point = x.detach().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
        model.train().requires_grad_(True)
        return step(x)

    times: dict[str, list[float]] = {"ours": [], "floor": []}
    for turn in range(rounds):
        order: list[tuple[str, Callable[[], Tensor]]] = [
            ("ours", lambda: step(attack(model, x, y, seed=0))),
            ("floor", floor),
        ]
        for key, run in order if turn % 2 == 0 else order[::-1]:
            times[key].append(timed(run)[0])
    found = spread(ratios(times["ours"], times["floor"]), digits=3)
    print(f"PGD-40 training step, batch {len(x)}, against its passes: ratio {found}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/mnist", help="folder of the MNIST files")
    parser.add_argument("--models", default="runs/benchmark-attacks", help="folder of the trained classifiers")
    parser.add_argument("--train-steps", type=int, default=1500, help="steps of training where there is none")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--rows", default="pgd,autoattack,minimal,square,training", help="rows to run")
    parser.add_argument("--autoattack-images", type=int, default=250, help="images of the AutoAttack row")
    parser.add_argument("--minimal-images", type=int, default=64, help="images of the rows of smallest perturbations")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument(
        "--processor-time", action="store_true", help="count the process's own time, for a machine that others use too"
    )
    parser.add_argument("--optimality", type=Path, help="folder of the table and figure of optimality")
    parser.add_argument("--passes", type=int, default=200, help="with --optimality, forward and backward passes")
    parser.add_argument("--norms", default="l0,l1,l2,linf", help="with --optimality, norms")
    parser.add_argument("--images", type=int, default=100, help="with --optimality, images of the test set")
    parser.add_argument("--skip", type=int, default=0, help="with --optimality, images of the test set passed over")
    parser.add_argument("--small", action="store_true", help="with --optimality, classifiers of 163 thousand weights")
    parser.add_argument(
        "--program", action="append", default=[], help="with --optimality, NAME=FILE of an exported classifier"
    )
    options = parser.parse_args()
    if options.processor_time:
        global clock
        clock = time.process_time
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    data = MNIST(root=options.data, batch_size=100)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    if options.optimality is not None:
        named = dict(entry.split("=", 1) for entry in options.program)
        models = {name: torch.export.load(file).module().to(DEVICE) for name, file in named.items()}
        if not models:
            names = {"standard": False, "robust": True}
            training = data, options.train_steps, options.small
            models = {name: classifier(Path(options.models), robust, *training) for name, robust in names.items()}
        end = options.skip + options.images
        data = MNIST(root=options.data, batch_size=end, test_size=end)
        data.setup("test")
        batch = next(iter(data.test_dataloader()))
        x, y = batch["image"][options.skip :].to(DEVICE), batch["label"][options.skip :].to(DEVICE)
        optimality.run(models, x, y, options.passes, options.norms.split(","), options.optimality)
        return
    robust, standard = (classifier(Path(options.models), r, data, options.train_steps) for r in (True, False))
    batch = next(iter(data.test_dataloader()))
    x, y = batch["image"].to(DEVICE), batch["label"].to(DEVICE)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{options.threads} threads of {platform.machine()}"
    print(f"{date.today()}, torch {torch.__version__}, {device}, seed 0, {options.rounds} rounds, {clock.__name__}")
    rows = set(options.rows.split(","))
    image, label = x[:256], y[:256]
    for name, model in (("robust", robust), ("standard", standard)):
        if "pgd" in rows:
            contenders = {
                "ours": ours(LinfPGD(eps=EPS, steps=40, step_size=0.01, random_start=False)),
                "torchattacks": torchattacks_of(torchattacks.PGD, eps=EPS, alpha=0.01, steps=40, random_start=False),
                "foolbox": foolbox_of(foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=False), EPS),
            }
            row(
                f"PGD-40 Linf from the image itself, {name}, 256 images",
                model,
                image,
                label,
                contenders,
                options.rounds,
            )
    if "autoattack" in rows:
        contenders = {
            "ours": ours(AutoAttack(norm="linf", eps=EPS)),
            "pyautoattack": pyautoattack,
            "torchattacks": torchattacks_of(torchattacks.AutoAttack, norm="Linf", eps=EPS, seed=0),
        }
        count = options.autoattack_images
        row(f"AutoAttack standard Linf, robust, {count} images", robust, x[:count], y[:count], contenders, 1)
    if "minimal" in rows:
        model, few, classes = standard, x[: options.minimal_images], y[: options.minimal_images]
        rivals: list[tuple[str, float, dict[str, Contender]]] = [
            (
                "CW L2, 9 x 100 iterations of 0.05",
                2,
                {
                    "ours": ours(CarliniWagner(steps=100, search_steps=9, step_size=0.05)),
                    "foolbox": foolbox_of(
                        foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=100, stepsize=0.05), None
                    ),
                },
            ),
            (
                "DDN L2, 100 iterations",
                2,
                {
                    "ours": ours(DDN(steps=100)),
                    "foolbox": foolbox_of(foolbox.attacks.DDNAttack(steps=100), None),
                },
            ),
            (
                "DeepFool L2, 50 iterations",
                2,
                {
                    "ours": ours(DeepFool(norm="l2", steps=50)),
                    "foolbox": foolbox_of(foolbox.attacks.L2DeepFoolAttack(steps=50), None),
                    "torchattacks": torchattacks_of(torchattacks.DeepFool, steps=50),
                },
            ),
            (
                "FAB Linf, 100 iterations",
                float("inf"),
                {
                    "ours": ours(FAB(norm="linf", steps=100)),
                    "torchattacks": torchattacks_of(
                        torchattacks.FAB, norm="Linf", eps=1.0, steps=100, n_restarts=1, n_classes=10
                    ),
                },
            ),
        ]
        for name, order, contenders in rivals:
            row(f"{name}, standard, {len(few)} images", model, few, classes, contenders, options.rounds, order)
    if "square" in rows:
        contenders = {
            "ours": ours(Square(norm="linf", eps=EPS, queries=1000, rescale=True)),
            "torchattacks": torchattacks_of(
                torchattacks.Square, norm="Linf", eps=EPS, n_queries=1000, resc_schedule=True
            ),
        }
        row("Square Linf, 1000 queries, robust, 256 images", robust, image, label, contenders, 1)
    if "training" in rows:
        training_step(robust, x[:100], y[:100], 3 * options.rounds)
    if VOID:
        sys.exit(f"void, as a rival finds more: {'; '.join(VOID)}")


if __name__ == "__main__":
    main()
