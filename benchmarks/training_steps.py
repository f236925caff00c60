"""Steps of adversarial training against their bare passes; called by `attacks.py`.

Each module trains in the Trainer on one batch that comes again and again. Its floor is the method written plainly: the
forward and backward passes, the moves of the images, and the optimizer's step, from the same weights. The mean losses
of both over the steps are compared; Fast starts at a random point, so its own differ by chance. The guard of Fast is
off, as it is no part of a step.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timing import Table, clock, in_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lit_modules.adversarial import FastTraining, FreeTraining, PGDTraining
from lit_modules.attacks import LinfPGD

EPS, PGD_STEPS, REPLAYS, WARM = 0.3, 40, 8, 2
OPTIMIZER = partial(torch.optim.SGD, lr=0.01)
CONSTANT = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)  # Free and Fast have a cycle of their own
METHODS: dict[str, tuple[Callable[[nn.Module], LightningModule], float]] = {
    f"PGD-{PGD_STEPS}": (
        lambda network: PGDTraining(
            network,
            LinfPGD(eps=EPS, steps=PGD_STEPS, step_size=0.01, random_start=False, keep="last"),
            optimizer=OPTIMIZER,
        ),
        1e-3,
    ),
    f"Free, {REPLAYS} replays": (
        lambda network: FreeTraining(network, eps=EPS, replays=REPLAYS, optimizer=OPTIMIZER, scheduler=CONSTANT),
        1e-3,
    ),
    "Fast": (
        lambda network: FastTraining(
            network,
            LinfPGD(eps=EPS, steps=1, step_size=1.25 * EPS, keep="last"),
            guard="off",
            optimizer=OPTIMIZER,
            scheduler=CONSTANT,
        ),
        0.05,
    ),
}
"""Module of a method, and the largest relative difference of its mean loss from the floor's."""


class Steps(Callback):
    """Times of the beginnings of the steps, and their losses."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
        """Mark the time."""
        self.times.append(clock())

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
        """Note the loss."""
        self.losses.append(trainer.callback_metrics["train/loss"])


def ours(module: LightningModule, x: Tensor, y: Tensor, steps: int) -> tuple[list[float], float]:
    """Return the seconds of each step of a fit but the last, and the mean loss."""
    ticks = Steps()
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(max_epochs=1, callbacks=[ticks], devices=1, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader([{"image": x, "label": y}] * steps, batch_size=None))  # type: ignore[arg-type]
    return [later - earlier for earlier, later in pairwise(ticks.times)], float(torch.stack(ticks.losses).mean())


def floor(method: str, network: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[list[float], float]:
    """Return the seconds of each plain step, and the mean loss."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    delta = torch.zeros_like(x)

    def descend(image: Tensor) -> Tensor:
        loss = cross_entropy(network(image), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def free() -> Tensor:
        total = torch.zeros((), device=x.device)
        for _ in range(REPLAYS):
            image = (x + delta).clamp_(0, 1).requires_grad_()
            total += descend(image)
            delta.add_(image.grad.sign(), alpha=EPS).clamp_(-EPS, EPS)  # type: ignore[union-attr]
        return total / REPLAYS

    def ascended(image: Tensor, number: int, size: float) -> Tensor:
        network.eval().requires_grad_(False)
        for _ in range(number):
            point = image.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(network(point), y, reduction="sum"), point)
            image = (image + size * gradient.sign()).clamp(x - EPS, x + EPS).clamp_(0, 1)
        network.train().requires_grad_(True)
        return image

    def step() -> Tensor:
        if method.startswith("Free"):
            return free()
        if method == "Fast":
            return descend(ascended((x + EPS * (2 * torch.rand_like(x) - 1)).clamp_(0, 1), 1, 1.25 * EPS))
        return descend(ascended(x, PGD_STEPS, 0.01))

    network.train().requires_grad_(True)
    times, losses = [clock()], []
    for _ in range(steps):
        losses.append(step())
        times.append(clock())
    return [later - earlier for earlier, later in pairwise(times)], float(torch.stack(losses).mean())


def training_steps(table: Table, model: nn.Module, x: Tensor, y: Tensor, rounds: int, steps: int) -> None:
    """Add a row for each method, of steps after the first :data:`WARM`."""
    for method, (build, allowed) in METHODS.items():
        losses: dict[str, float] = {}

        def timed(name: str, run: Callable[[nn.Module], tuple[list[float], float]], losses: Any = losses) -> float:
            times, losses[name] = run(copy.deepcopy(model).requires_grad_(True))
            return statistics.median(times[WARM:])

        own, least = in_turns(
            rounds,
            partial(timed, "ours", lambda network, build=build: ours(build(network), x, y, steps)),
            partial(timed, "floor", lambda network, method=method: floor(method, network, x, y, steps)),
        )
        differs = abs(losses["ours"] - losses["floor"]) > allowed * losses["floor"]
        table.add(
            f"{method} training step, batch {len(x)}",
            own,
            {"its passes": least},
            f"mean loss {losses['ours']:.4f}, {losses['floor']:.4f}",
            void=f"losses differ by more than {allowed:.1%}" if differs else "",
            most=1.05,
            unit="ms",
        )
