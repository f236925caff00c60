"""The automatic learning rate of GeN."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.random_state import preserved_random_state

_COUNTS = ("steps", "probes", "accepted", "passes", "drawn", "width")
_FRESH = 1_000_000
"""Epoch and seed of the first pass over fresh batches."""
_ROUNDING = 8.0
"""Rounding errors of a mean loss, in units of its precision, that a second difference must exceed; 3 were measured."""
_RATIO, _WIDEST = 4.0, 1024.0
"""Ratio of neighbouring distances of a search; the largest distance, and one over the smallest, in updates."""


@dataclass(frozen=True)
class Parabola:
    """The fit ``a x^2 / 2 - b x`` of loss changes along a direction.

    Args:
        a: Curvature along the direction, ``d' H d``.
        b: Slope of descent along the direction, ``G . d``.
        r2: Share of the variance that the fit explains, at most 1; NaN when the losses are not finite.
    """

    a: float
    b: float
    r2: float


def fit_parabola(steps: Sequence[float], changes: Sequence[float]) -> Parabola:
    """Fit ``a x^2 / 2 - b x`` to loss changes by least squares, without intercept.

    Args:
        steps: Positions ``x`` along the direction, in units of the learning rate; at least two different ones beside 0.
        changes: Loss at each position, less the loss at 0.

    Returns:
        The fit; ``Parabola(nan, nan, nan)`` if a change is not finite.

    Example:
        >>> fit_parabola([-1.0, 0.0, 1.0], [2.0, 0.0, -1.0])
        Parabola(a=1.0, b=1.5, r2=1.0)

    References:
        Bu and Xu, "Automatic gradient descent with generalized Newton's method", arXiv 2407.02772.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(changes, dtype=np.float64)
    if not np.isfinite(y).all():
        return Parabola(math.nan, math.nan, math.nan)
    scale = float(np.abs(x).max())
    u = x / scale
    # the normal equations of two unknowns, in steps scaled to 1 so that tiny rates lose no digits
    quartic, cubic, square = (float((u**power).sum()) for power in (4, 3, 2))
    right_square, right_linear = float((u**2 * y).sum()) / 2, -float((u * y).sum())
    determinant = quartic * square / 4 - cubic**2 / 4
    a = (right_square * square + right_linear * cubic / 2) / determinant
    b = (right_linear * quartic / 4 + right_square * cubic / 2) / determinant
    residual = float(((a * u**2 / 2 - b * u - y) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - residual / total if total > 0 else 1.0
    return Parabola(a / scale**2, b / scale, r2)


def next_rate(
    rate: float, fit: Parabola, r2_min: float = 0.99, clip: float = 2.0, smooth: float = 0.9, scale: float = 1.0
) -> float | None:
    """Return the learning rate after a probe, or ``None`` if the probe is rejected.

    The probe is accepted if ``a > 0``, ``b > 0`` and ``r2 > r2_min``. The minimiser ``b / a`` is then clipped to
    ``[rate / clip, rate * clip]`` and mixed in: ``smooth * rate + (1 - smooth) * scale * clipped``. With the defaults
    the rate moves by a factor in [0.95, 1.1].

    Example:
        >>> next_rate(1.0, Parabola(a=1.0, b=1.5, r2=1.0))
        1.05

    References:
        arXiv 2407.02772.
    """
    if not (fit.a > 0 and fit.b > 0 and fit.r2 > r2_min):
        return None
    best = min(max(fit.b / fit.a, rate / clip), rate * clip)
    return smooth * rate + (1 - smooth) * scale * best


@dataclass(frozen=True)
class _Probe:
    """Outcome of a probe.

    Args:
        fit: The parabola.
        width: Distance it was taken at, in updates.
        is_hidden: Whether its curvature is within rounding.
        rises: Whether the update was found to raise the loss.
    """

    fit: Parabola
    width: float
    is_hidden: bool
    rises: bool


class AdaptiveLR(Callback):
    """Set the learning rate from a parabola through the loss along the next update.

    Every ``period`` optimizer steps the callback takes the optimizer's update on trial, which gives the direction for
    any optimizer with its momentum, preconditioning and weight decay; evaluates the loss at ``theta - m * lr * d`` for
    each ``m`` in ``factors``; fits ``a x^2 / 2 - b x``; and moves the rate towards the minimiser ``b / a``. It then
    puts everything back, bit for bit: weights, gradients, optimizer state, modes, random state. The real step follows
    with the new rate. A probe costs a forward pass for each factor.

    The rule that the official code has moves the rate by a factor in [0.95, 1.1], so that a start a hundred times too
    small takes 49 probes. The default, ``rule="robust"``, forgets the initial rate at the first accepted probe:

    - The first accepted probe is exact: the rate becomes the minimiser, whatever ``smooth`` says.
    - The loss is that of fresh batches. On the step's own the minimiser is too far, as the gradient is theirs.
    - The distance is searched on a geometric grid: four times as far while the second difference is within rounding,
      a fourth while the losses are not finite or no parabola (R^2 at most ``r2_min``); from 1/1024 to 1024 updates.
      Where none fits the probe is rejected. The next probe begins at the update, or further out if this one had to.
    - Where the update raises the loss the rate is halved at least; before the first accepted probe it also falls to
      ``abs(b) / a``, beyond which the curvature raises the loss whatever the slope.

    At small rates the curvature drowns in rounding, and its sign with it. Under mixed precision the probe is therefore
    taken in float32, outside of autocast; not so where weights are in half precision themselves or sharded, which the
    log says at the start.

    Asks of the module ``probe_loss(batch) -> (sum, weight)``: the summed loss of a training batch and its weight, such
    as its number of target tokens, both scalar tensors; called without gradient and in evaluation mode. Works with
    automatic and manual optimization, one optimizer, and no learning-rate scheduler; on one device, with DDP, and on
    weights that FSDP2 shards. State is kept in the checkpoint. Logs ``adaptive_lr/probe`` (its number: Lightning
    repeats logged values until the next probe), ``adaptive_lr/lr``, ``adaptive_lr/change`` (what the fit says that the
    update does to the loss at the rate before the probe), ``adaptive_lr/a``, ``adaptive_lr/b``, ``adaptive_lr/r2``,
    ``adaptive_lr/width`` (the distance, in updates) and ``adaptive_lr/accepted`` (0 or 1) at each probe.

    Args:
        period: Optimizer steps from one probe to the next; the first step is probed.
        factors: Multiples of the current update to evaluate; 0 and two others at least. A parabola goes through any
            three points, so ``r2_min`` rejects nothing without a fourth.
        r2_min: Smallest R^2 of an accepted fit.
        clip: Largest factor by which the minimiser may differ from the current rate.
        smooth: Share of the current rate in the new one.
        scale: Factor on the minimiser that falls from 1 to 0 over the run: along a line, or half a cosine.
        probe_batch: Probe on the step's own batches, or on as many fresh ones of the training loader, which the
            datamodule builds once more, or which is gone through once more; in an order of their own if it shuffles.
        min_lr: Smallest rate that a probe may set.
        max_lr: Largest rate that a probe may set.
        reject: What a rejected probe does to the rate. A loss that is not finite always halves it.
        exact: Jump to the minimiser at every probe: ``smooth`` 0 and ``clip`` infinite.
        offload: Whether the copies that a probe needs lie on the CPU, to save device memory.
        rule: ``"robust"``, or ``"official"`` as in the official code: ``factors`` (-1, 0, 1), ``clip`` 2 and ``smooth``
            0.9 from the first probe on, taken at the update, with neither search nor halving.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Bu and Xu, "Automatic gradient descent with generalized Newton's method", arXiv 2407.02772; used with NGDiff in
        arXiv 2410.22086. The default period of 10 follows a public reimplementation and is not checked against the
        paper; the robust rule is ours, recorded by ``benchmarks/adaptive_lr.py``.
    """

    def __init__(
        self,
        period: int = 10,
        factors: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0),
        r2_min: float = 0.99,
        clip: float = math.inf,
        smooth: float = 0.9,
        scale: Literal["linear", "cosine"] | None = None,
        probe_batch: Literal["current", "fresh"] = "fresh",
        min_lr: float = 0.0,
        max_lr: float | None = None,
        reject: Literal["keep", "halve"] = "keep",
        exact: bool = False,
        offload: bool = False,
        rule: Literal["robust", "official"] = "robust",
    ) -> None:
        if rule == "official":
            factors, clip, smooth = (-1.0, 0.0, 1.0), 2.0, 0.9
        factors = tuple(float(factor) for factor in factors)
        others = {factor for factor in factors if factor and math.isfinite(factor)}
        requirements = {
            f"period must be at least 1 optimizer step, got {period}": period >= 1,
            f"factors must be different finite numbers, 0 and at least two others, got {factors}": len(others) >= 2
            and sorted(factors) == sorted([0.0, *others]),
            f"r2_min must be at most 1, got {r2_min}": r2_min <= 1,
            f"clip must be at least 1, got {clip}": clip >= 1,
            f"smooth must lie in [0, 1), got {smooth}": 0 <= smooth < 1,
            f"scale must be None, 'linear' or 'cosine', got {scale!r}": scale in (None, "linear", "cosine"),
            f"probe_batch must be 'current' or 'fresh', got {probe_batch!r}": probe_batch in ("current", "fresh"),
            f"reject must be 'keep' or 'halve', got {reject!r}": reject in ("keep", "halve"),
            f"rule must be 'robust' or 'official', got {rule!r}": rule in ("robust", "official"),
            f"min_lr must be finite and not negative, got {min_lr}": 0 <= min_lr < math.inf,
            f"max_lr must be at least min_lr ({min_lr}), got {max_lr}": max_lr is None or max_lr >= min_lr,
        }
        for requirement, is_met in requirements.items():
            if not is_met:
                raise ValueError(f"{requirement}.")
        self.period = period
        self.factors = factors
        self.r2_min = r2_min
        self.clip = math.inf if exact else clip
        self.smooth = 0.0 if exact else smooth
        self.scale = scale
        self.probe_batch = probe_batch
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.reject = reject
        self.offload = offload
        self.rule = rule
        self.steps = 0
        self.probes = 0
        self.accepted = 0
        self.passes = 0  # over the loader of fresh batches
        self.drawn = 0  # fresh batches of this pass
        self.width = 1.0  # of the next probe, in updates
        self._batches: list[Any] = []  # earlier ones of the step to come
        self._before: tuple[dict[str, Any], Optimizer, list[Any]] | None = (
            None  # what a step that breaks off goes back to
        )
        self._batch: list[Any] = []  # the one under way
        self._fresh: Iterator[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module offers the probed loss."""
        if stage != "fit":
            return
        self.forget_batches()
        if not callable(getattr(pl_module, "probe_loss", None)):
            raise TypeError(
                f"AdaptiveLR needs {type(pl_module).__name__}.probe_loss(batch), which returns the summed loss of a "
                "batch and its weight as two scalar tensors; add the method, or leave the callback out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that nothing else moves the rate."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"AdaptiveLR steers one optimizer, and the module has {len(trainer.optimizers)}.")
        if trainer.lr_scheduler_configs:
            name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise ValueError(f"AdaptiveLR sets the learning rate, and so does {name}; leave one of the two out.")
        dtype = _computed_in(trainer, pl_module)
        if trainer.precision != "32-true" or dtype != torch.float32:
            rank_zero_info(
                f"AdaptiveLR probes in {str(dtype).removeprefix('torch.')} at precision {trainer.precision}, and wider "
                "than the update where the curvature is within rounding."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batches of the step to come, if it is to be probed."""
        self._batch = [batch] if self.steps % self.period == 0 else []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch among those of the step to come, if none was made with it."""
        self._batches += self._batch
        self._batch, self._before = [], None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take back the probe of a step that was not made, before a checkpoint is written."""
        if self._before is not None:
            state, optimizer, rates = self._before
            self.load_state_dict(state)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self._before = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Probe along the update that is about to be made, and set the rate it will use."""
        state, rates = self.state_dict(), [copy.deepcopy(group["lr"]) for group in optimizer.param_groups]
        self._before = (state, optimizer, rates)
        due = self.steps % self.period == 0
        self.steps += 1
        batches, self._batches, self._batch = [*self._batches, *self._batch], [], []
        if not due:
            return
        if self.probe_batch == "fresh":
            batches = [self._next_fresh(trainer, pl_module) for _ in batches]
        rate = float(optimizer.param_groups[0]["lr"])
        if rate == 0:  # there is no direction
            return
        self.probes += 1
        probe = self._probe(trainer, pl_module, optimizer, batches)
        new, accepted = self._choose(rate, probe, self._horizon(trainer))
        self.accepted += accepted
        if new != rate:
            new = max(new, self.min_lr)
            new = new if self.max_lr is None else min(new, self.max_lr)
            if self.width > 1:  # the same distance, in updates of the new rate
                self.width = max(1.0, self.width * rate / new)
        fit = probe.fit
        for group in optimizer.param_groups:
            value = float(group["lr"]) * (new / rate)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            elif new != rate:
                group["lr"] = value
        numbers = {
            "probe": float(self.probes),
            "change": fit.a * rate**2 / 2 - fit.b * rate,
            "lr": new,
            "a": fit.a,
            "b": fit.b,
            "r2": fit.r2,
            "width": probe.width,
            "accepted": float(accepted),
        }
        pl_module.log_dict(
            {f"adaptive_lr/{name}": value for name, value in numbers.items()}, on_step=True, on_epoch=False
        )

    def forget_batches(self) -> None:
        """Forget the batches of a step that was not made."""
        self._batches, self._batch = [], []

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the batches of a step that is not complete."""
        return {**{name: getattr(self, name) for name in _COUNTS}, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts."""
        for name in _COUNTS:
            setattr(self, name, state_dict[name])
        self._batches = list(state_dict["batches"])

    def _choose(self, rate: float, probe: _Probe, horizon: float) -> tuple[float, bool]:
        """Return the rate after a probe, before its bounds, and whether the probe was accepted."""
        fit, is_robust = probe.fit, self.rule == "robust"
        is_first = is_robust and not self.accepted
        new = None
        if not (is_robust and probe.is_hidden):
            new = next_rate(rate, fit, self.r2_min, self.clip, 0.0 if is_first else self.smooth, horizon)
        accepted = new is not None
        if new is None:
            new = rate / 2 if self.reject == "halve" or math.isnan(fit.r2) else rate
        if is_robust and probe.rises:
            new = min(new, rate / 2)
            if is_first and not probe.is_hidden and fit.a > 0 and fit.r2 > self.r2_min:
                new = min(new, abs(fit.b) / fit.a)  # further out the curvature outweighs the slope, whatever its sign
        return new, accepted

    def _probe(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, batches: list[Any]) -> _Probe:
        """Fit the loss along the update, at the distance where a parabola shows."""
        rate = float(optimizer.param_groups[0]["lr"])
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        precision = torch.finfo(_computed_in(trainer, pl_module)).eps
        others = sorted((factor for factor in self.factors if factor), key=lambda factor: (factor != 1, factor))
        with torch.no_grad(), evaluation_mode(pl_module), _undone(optimizer, parameters, self.offload) as start:
            here = self._mean_loss(trainer, pl_module, batches)
            optimizer.step()
            position, width, turn, rises = 1.0, self.width, 1.0, False
            while True:
                changes = {0.0: 0.0}
                for factor in others:
                    if factor * width != position:
                        for parameter, origin in zip(parameters, start, strict=True):
                            # origin + (parameter - origin) * factor * width / position
                            parameter.lerp_(origin.to(parameter.device), 1 - factor * width / position)
                        position = factor * width
                    changes[factor] = self._mean_loss(trainer, pl_module, batches) - here
                fit = fit_parabola([factor * width * rate for factor in changes], list(changes.values()))
                if width == 1:
                    rises = not changes[max(changes)] <= 0
                second = abs(fit.a) * (width * rate) ** 2
                rounding = _ROUNDING * precision * max(1.0, *(abs(here + change) for change in changes.values()))
                is_hidden, fits = second <= rounding, fit.r2 > self.r2_min
                before, turn = turn, _RATIO if is_hidden else 1.0 if fits else 1 / _RATIO
                is_last = turn == 1 or before * turn == 1 or not 1 / _WIDEST <= width * turn <= _WIDEST
                if is_last or self.rule == "official":
                    break
                width *= turn
        if width > 1:
            self.width = width / _RATIO if second > _RATIO**2 * 2 * rounding else width
        return _Probe(fit, width, is_hidden, rises)

    def _mean_loss(self, trainer: Trainer, pl_module: LightningModule, batches: list[Any]) -> float:
        kind = pl_module.device.type
        mixed = isinstance(trainer.precision_plugin, MixedPrecision)
        in_float32 = mixed and _computed_in(trainer, pl_module) == torch.float32
        with (
            preserved_random_state(pl_module.device),
            trainer.precision_plugin.forward_context(),
            torch.autocast(kind, enabled=False) if in_float32 else nullcontext(),
        ):
            parts = [pl_module.probe_loss(batch) for batch in batches]  # type: ignore[operator]
        pairs = torch.stack([torch.stack([loss.double(), weight.to(loss.device).double()]) for loss, weight in parts])
        total, weight = trainer.strategy.reduce(pairs.sum(0), reduce_op="sum").tolist()
        for module in pl_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what it still holds of this pass would be the weights of the next
        return total / weight if weight else math.nan

    def _next_fresh(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        while True:
            # an order that training never uses, and that a resumed run finds again
            new_pass = None if self._fresh else _FRESH + self.passes
            with preserved_random_state(pl_module.device, new_pass):
                if self._fresh is None:
                    self._fresh = _iterate(trainer, _FRESH + self.passes)
                    for _ in range(self.drawn):
                        next(self._fresh)
                batch = next(self._fresh, None)
            if batch is not None:
                self.drawn += 1
                return trainer.strategy.batch_to_device(batch)
            self._fresh = None
            self.passes += 1
            self.drawn = 0

    def _horizon(self, trainer: Trainer) -> float:
        """Return the factor of the minimiser, by the share of the training's batches or steps that is done."""
        if self.scale is None:
            return 1.0
        shares = [0.0]
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            position = trainer.current_epoch + trainer.fit_loop.batch_idx / trainer.num_training_batches
            shares.append(position / trainer.max_epochs)
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        done = min(1.0, max(shares))
        return 1 - done if self.scale == "linear" else (1 + math.cos(math.pi * done)) / 2


def _iterate(trainer: Trainer, epoch: int) -> Iterator[Any]:
    """Yield batches of the training loader, those of an epoch."""
    datamodule: Any = getattr(trainer, "datamodule", None)  # absent without one
    loader = copy.copy(trainer.train_dataloader) if datamodule is None else datamodule.train_dataloader()
    combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
    # users may give any iterable as a loader
    samplers: list[Any] = [getattr(each, "sampler", None) for each in combined.flattened]
    samplers = [sampler for sampler in samplers if isinstance(sampler, DistributedSampler)]
    epochs = [sampler.epoch for sampler in samplers]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    for number, (batch, *_) in enumerate(combined):
        if number == 0:  # the order is drawn, and the sampler may be that of the training
            for sampler, before in zip(samplers, epochs, strict=True):
                sampler.set_epoch(before)
        yield batch


def _computed_in(trainer: Trainer, module: LightningModule) -> torch.dtype:
    """Return the least precise type that a probe's forward pass computes in."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if any(not parameter.is_floating_point() for parameter in module.parameters()):
        kinds.add(torch.float16)  # quantised weights are at least rounded, and inputs beside them
    plugin = trainer.precision_plugin
    # FSDP2 casts what it gathers, whatever autocast does
    if isinstance(plugin, MixedPrecision) and any(isinstance(part, FSDPModule) for part in module.modules()):
        kinds.add(torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16)
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


@contextmanager
def _undone(optimizer: Optimizer, parameters: list[nn.Parameter], offload: bool) -> Iterator[list[Tensor]]:
    """Give copies of the parameters, and undo what is done to parameters, gradients and optimizer inside."""

    def duplicate(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu" if offload else tensor.device, copy=True)

    weights = [duplicate(parameter) for parameter in parameters]
    gradients = [None if parameter.grad is None else duplicate(parameter.grad) for parameter in parameters]
    groups = [
        {key: copy.deepcopy(value) for key, value in g.items() if key != "params"} for g in optimizer.param_groups
    ]
    # the trial works on copies of the state; the original objects wait untouched
    state = optimizer.state
    trial: defaultdict[Any, Any] = defaultdict(dict)
    trial.update({key: copy.deepcopy(value) for key, value in state.items()})
    optimizer.state = trial
    try:
        yield weights
    finally:
        optimizer.state = state
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.update(saved)
        for parameter, weight, gradient in zip(parameters, weights, gradients, strict=True):
            parameter.data.copy_(weight)
            if parameter.grad is not None and gradient is not None:
                parameter.grad.copy_(gradient)
