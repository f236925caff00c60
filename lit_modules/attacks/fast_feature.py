"""The fast feature attack, which draws a sample's features to those of a guide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.base import Attack, AttackResult, warn_zero_gradient
from lit_modules.attacks.engine.checks import Bounds, Radius, check_count, check_positive, check_samples
from lit_modules.attacks.engine.norms import random_in_ball
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Model, Outcome, Seed
from lit_modules.utils.arguments import Unpack


@dataclass
class Tap:
    """Output of a layer in the model's last pass; ``None`` before it."""

    value: object = None


@dataclass
class FeatureState(AttackState):
    """AttackState whose samples shall have the features of their guides.

    Attributes:
        tap: Output of the layer, or ``None`` if the features are the model's own output.
        target: Features of the guides, ``(batch, values)``.
    """

    tap: Tap | None = None
    target: Tensor = field(default_factory=lambda: torch.empty(0))

    def select(self, index: Tensor) -> FeatureState:
        """Return the state of some of the samples, in this order."""
        active = super().select(index)
        assert isinstance(active, FeatureState)
        return replace(active, target=self.target[index])

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and the features in one row a sample, from one pass."""
        if self.tap is None:
            logits = self.logits(x)
            return logits, logits.flatten(1)
        self.tap.value = None
        logits = self.logits(x)
        value = self.tap.value
        if value is None:
            raise ValueError("The layer of the features was not called by the model; name a layer that it uses.")
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != len(x):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"The layer of the features must give a tensor ({len(x)}, ...), got {got}.")
        return logits, (value if value.dtype == torch.float64 else value.float()).flatten(1)


class GuideArguments(TypedDict, total=False):
    """Arguments of :class:`Attack` without ``targeted``."""

    bounds: Bounds | None
    restarts: int
    seed: int
    precision: Literal["32", "bf16"]
    model_mode: Literal["eval", "keep"]


class FastFeature(Attack):
    """Fast feature attack: ``attack(model, x, guide)`` makes the features of ``x`` those of a guide image, within Linf.

    Steps of the sign of the gradient lower the squared L2 distance between the features of the perturbed sample and
    those of its guide. Every step is taken for every sample, and the iterate with the least distance is returned, one
    whose answer is the guide's before one whose answer is not. The record's ``success`` is whether the model answers
    for the sample what it answers for the guide; its ``distance`` is the Linf norm of the perturbation. No sample
    counts as done already.

    The defaults are those of AdverTorch v0.1, which returns the last iterate and takes the model's output for the
    features.

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Step in units of the samples, a number or one per sample.
        random_start: Start uniformly in the ball.
        layer: Where the features are: name of a submodule of the model, the submodule itself, or ``None`` for the
            model's output.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, guide = torch.full((2, 4), 0.4), torch.full((2, 4), 0.6)
        >>> adversarial = FastFeature(eps=0.2, layer="1")(model, x, guide)
        >>> bool((model[:2](adversarial) - model[:2](guide)).norm() < (model[:2](x) - model[:2](guide)).norm())
        True

    References:
        Sabour, Cao, Faghri, Fleet, "Adversarial manipulation of deep representations" (arXiv 1511.05122), eq. 1 and 2,
        with steps of the sign instead of L-BFGS.
    """

    fixed = ("targeted",)

    norm = "linf"

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 10,
        step_size: Radius = 0.05,
        random_start: bool = True,
        layer: str | nn.Module | None = None,
        **shared: Unpack[GuideArguments],
    ) -> None:
        if "targeted" in shared:
            raise ValueError("FastFeature takes no targeted: it always draws a sample to its guide; leave it out.")
        super().__init__(targeted=True, **shared)  # the guide's class is the target
        check_count(steps=steps)
        check_positive(step_size=step_size)
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.step_size = step_size
        self.random_start = random_start
        self.layer = layer

    def __call__(self, model: Model, x: Tensor, guide: Tensor | None = None, *, seed: Seed = None) -> Tensor:
        """Return samples with features like the guides'.

        Args:
            model: Gives logits ``(batch, classes)`` or features ``(batch, values)`` for samples within the bounds.
            x: Samples, floating point, ``(batch, *)``.
            guide: Guide of each sample, shape of ``x``.
            seed: Replaces the attack's seed in this call.
        """
        return self.run(model, x, guide, seed=seed).adversarial

    def run(self, model: Model, x: Tensor, guide: Tensor | None = None, *, seed: Seed = None) -> AttackResult:
        """Return the samples with success, distance and cost; arguments as of a call.

        Raises:
            ValueError: If an argument is malformed.
            RuntimeError: If the attack passed its own radius or bounds.
        """
        if guide is None:
            raise ValueError("FastFeature needs a guide for each sample: attack(model, x, guide).")
        check_samples(x)
        check_samples(guide)
        if guide.shape != x.shape:
            raise ValueError(f"guide must have the shape of x, {tuple(x.shape)}, got {tuple(guide.shape)}.")
        if not len(x):
            return self.empty_result(x)
        with self.session(model), watch(model, self.layer) as tap:
            plain = self.prepare(model, x, torch.zeros(len(x), dtype=torch.int64), seed, clean=False)
            state = FeatureState(**vars(plain), tap=tap)
            with torch.no_grad():
                logits, state.target = state.features(guide.detach().to(state.x))
            state.label = logits.argmax(1)
            already = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            return self.result(state, x, self.solve(state, already), already)

    def attack(self, state: AttackState) -> Outcome:
        """Take the steps and keep the iterate nearest to the guide in features."""
        assert isinstance(state, FeatureState)
        x = state.x
        if self.random_start:
            x = state.clamp(x + random_in_ball(x, state.radius, "linf", state.random))
        best = BestSoFar(state)
        for step in range(self.steps + 1):
            point = state.point(x)
            with torch.set_grad_enabled(step < self.steps):
                logits, features = state.features(point)
                distance = (features - state.target).square().sum(1)
            best.offer(state.positions(), x, -distance.detach(), state.fooled(logits))
            if step == self.steps:
                break
            if not distance.requires_grad:
                raise ValueError(
                    "The features have no gradient with respect to the input; take an earlier layer, or wrap the part "
                    "without one in lit_modules.defenses.BPDA."
                )
            (gradient,) = torch.autograd.grad(distance.sum(), point)
            if step == 0:
                warn_zero_gradient(gradient)
            x = state.project(x - state.broadcast(self.step_size) * gradient.sign(), "linf")
        return best.outcome()


@contextmanager
def watch(model: Model, layer: str | nn.Module | None) -> Iterator[Tap | None]:
    """Record the output of a layer, a submodule or its name, while the context lasts; of ``None`` nothing."""
    if layer is None:
        yield None
        return
    if isinstance(layer, str):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"layer={layer!r} is a name, so the model must be a torch module, got {type(model).__name__}."
            )
        names = dict(model.named_modules())
        if layer not in names:
            known = ", ".join(repr(name) for name in list(names)[1:13])
            raise ValueError(f"The model has no layer {layer!r}; its layers are {known}.")
        module: nn.Module = names[layer]
    else:
        module = layer
    tap = Tap()

    def record(called: nn.Module, inputs: object, output: object) -> None:
        tap.value = output

    handle = module.register_forward_hook(record)
    try:
        yield tap
    finally:
        handle.remove()
