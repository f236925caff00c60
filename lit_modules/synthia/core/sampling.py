"""Sampling in a few steps, with gradients: noise schedules, and a sampler for any ``denoise(z, t, cond)``.

The memory of a differentiated sampler grows with its steps. Two remedies: each step can be recomputed in the backward
pass instead of kept, and the gradient can be cut off before the last few steps.

References:
    Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", arXiv 2309.17400 (the last K).
    Prabhudesai et al., "Aligning Text-to-Image Diffusion Models with Reward Backpropagation", arXiv 2310.03739 (a
    random K).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Prediction = Literal["epsilon", "v_prediction", "flow"]
Condition = TypeVar("Condition")
Denoiser = Callable[[Tensor, Tensor, Condition], Tensor]
"""From noised latents ``(batch, ...)``, timesteps ``(batch,)`` and a condition to a prediction like the latents."""


def precise(values: Tensor) -> Tensor:
    """Return values in float32 at least."""
    return values if values.dtype == torch.float64 else values.float()


def cosine_alphas_cumprod(num_timesteps: int = 1000, largest_beta: float = 0.999) -> Tensor:
    """Return the share of the signal's variance at each timestep of the cosine schedule.

    ``beta_t = min(1 - f((t + 1) / T) / f(t / T), largest_beta)`` with ``f(x) = cos^2(pi/2 (x + 0.008) / 1.008)``, and
    ``abar_t`` is the product of ``1 - beta`` up to ``t``.

    Args:
        num_timesteps: Number of timesteps (T), at least 1.
        largest_beta: Cap of the betas, in (0, 1).

    Returns:
        float64, ``(num_timesteps,)``, falling.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> cosine_alphas_cumprod()[[979, 729, 479, 229]]  # where the 4-step sampler of Kandinsky 3.1 Flash looks
        tensor([0.0010, 0.1669, 0.5250, 0.8688], dtype=torch.float64)

    References:
        Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", arXiv 2102.09672, eq. 17.
    """
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")
    if not 0 < largest_beta < 1:
        raise ValueError(f"largest_beta must be in (0, 1), got {largest_beta}.")
    angle = (torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps + 0.008) / 1.008 * math.pi / 2
    level = angle.cos().square()
    betas = (1 - level[1:] / level[:-1]).clamp(max=largest_beta)
    return (1 - betas).cumprod(0)


class NoiseSchedule:
    """Noise schedule and prediction of a network: the formulas around them, in float32 at least.

    Noised latents are ``z_t = a_t z + s_t noise``. With ``alphas_cumprod``, ``a_t = sqrt(abar_t)`` and
    ``s_t = sqrt(1 - abar_t)`` at whole timesteps. Without, the schedule is that of flow matching: ``s_t = t / T`` and
    ``a_t = 1 - s_t``, at timesteps in [0, T] that need not be whole.

    The network predicts ``noise`` (``"epsilon"``), ``a_t noise - s_t z`` (``"v_prediction"``) or ``noise - z``
    (``"flow"``).

    Args:
        alphas_cumprod: Share of the signal's variance at each timestep, in [0, 1], and with ``"epsilon"`` above 0,
            ``(T,)``; ``None`` for flows.
        prediction: What the network predicts.
        num_timesteps: Number of timesteps (T) of flow matching; otherwise the length of ``alphas_cumprod``.

    Raises:
        ValueError: If the arguments do not fit together or are out of their ranges.

    Example:
        >>> schedule = NoiseSchedule(None, "flow")
        >>> schedule.add_noise(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([250.0]))
        tensor([[0.2500, 0.2500]])
    """

    def __init__(
        self, alphas_cumprod: Tensor | None, prediction: Prediction = "epsilon", num_timesteps: int = 1000
    ) -> None:
        if prediction not in ("epsilon", "v_prediction", "flow"):
            raise ValueError(f"prediction must be 'epsilon', 'v_prediction' or 'flow', got {prediction!r}.")
        if (prediction == "flow") != (alphas_cumprod is None):
            raise ValueError(
                "Predictions 'epsilon' and 'v_prediction' need alphas_cumprod, and 'flow' takes none, got prediction="
                f"{prediction!r} and alphas_cumprod={None if alphas_cumprod is None else 'a tensor'}."
            )
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")
        if alphas_cumprod is not None:
            if alphas_cumprod.ndim != 1 or not len(alphas_cumprod):
                raise ValueError(f"alphas_cumprod must be of shape (T,), got {tuple(alphas_cumprod.shape)}.")
            if not bool(((alphas_cumprod >= 0) & (alphas_cumprod <= 1)).all()):
                raise ValueError("alphas_cumprod must lie in [0, 1]; give the products of 1 - beta, not the betas.")
            if prediction == "epsilon" and not bool((alphas_cumprod > 0).all()):
                raise ValueError(
                    "A network that predicts noise ('epsilon') cannot start from a timestep without signal (abar = 0, "
                    "zero terminal SNR): what it draws is not finite; use a schedule that keeps some signal, or a "
                    "network of 'v_prediction'."
                )
            num_timesteps = len(alphas_cumprod)
        self.alphas_cumprod = None if alphas_cumprod is None else alphas_cumprod.detach().double().cpu()
        self.prediction: Prediction = prediction
        self.num_timesteps = num_timesteps
        self._tables: dict[torch.device, Tensor] = {}

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a_t`` and ``s_t`` of each timestep, float64 (float32 on MPS), on the timesteps' device."""
        device = timesteps.device
        if device.type == "cpu":  # a look at the values would wait for a GPU, which refuses a wrong index itself
            largest = self.num_timesteps if self.alphas_cumprod is None else self.num_timesteps - 1
            if not bool(((timesteps >= 0) & (timesteps <= largest)).all()):
                raise ValueError(f"Timesteps must be from 0 to {largest}, got {timesteps.flatten().tolist()}.")
        if self.alphas_cumprod is None:
            share = (timesteps.double() if device.type != "mps" else timesteps.float()) / self.num_timesteps
            return 1 - share, share
        if device not in self._tables:
            table = torch.stack([self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()])
            self._tables[device] = table.to(device, torch.float32 if device.type == "mps" else torch.float64)
        signal, noise = self._tables[device][:, timesteps.long()]
        return signal, noise

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ``(a_t / s_t)^2`` of each timestep, infinite without noise."""
        signal, noise = self.coefficients(timesteps)
        return (signal / noise).square()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``a_t z + s_t noise`` of latents and noise ``(batch, ...)`` and timesteps ``(batch,)``."""
        return self._combine(clean, noise, *self.coefficients(timesteps)).to(clean.dtype)

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should predict; the arguments are those of ``add_noise``."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - clean
        signal, spread = self.coefficients(timesteps)
        return self._combine(noise, clean, signal, -spread).to(clean.dtype)

    def split(self, noised: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean latents and the noise, float32 at least, that a prediction on ``z_t`` implies."""
        signal, spread = self.coefficients(timesteps)
        if self.prediction == "v_prediction":
            clean = self._combine(noised, prediction, signal, -spread)
            return clean, self._combine(noised, prediction, spread, signal)
        if self.prediction == "flow":
            one = torch.ones_like(signal)
            return self._combine(noised, prediction, one, -spread), self._combine(noised, prediction, one, signal)
        return self._combine(noised, prediction, 1 / signal, -spread / signal), precise(prediction)

    def _combine(self, first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Return ``one * first + other * second``, weights given per row."""
        first, second = precise(first), precise(second)
        shape = (-1,) + (1,) * (first.ndim - 1)
        return one.to(first.dtype).view(shape) * first + other.to(first.dtype).view(shape) * second


def min_snr_weights(snr: Tensor, prediction: Prediction = "epsilon", gamma: float = 5.0) -> Tensor:
    """Return the weight of each timestep's error, which caps the weight of the clean image's error at ``gamma``.

    The clean image's error is the error of the noise over the SNR, that of the velocity over ``snr + 1`` and that of
    the flow over ``(1 + sqrt(snr))^2``; so the weights are ``min(snr, gamma)`` over these. The last follows from the
    first by ``snr = ((1 - s) / s)^2``. An SNR of 0, which schedules with a last step of pure noise have, is raised to
    1e-8: the weight of the noise's error is 1 there, its limit, and not NaN.

    Args:
        snr: Signal-to-noise ratio of each timestep, not negative; infinite ones weigh 0.
        prediction: What the network predicts.
        gamma: Largest weight of the clean image's error, positive.

    Raises:
        ValueError: If ``prediction`` is unknown or ``gamma`` is not positive.

    Example:
        >>> min_snr_weights(torch.tensor([0.0, 1.0, 10.0]))
        tensor([1.0000, 1.0000, 0.5000])
        >>> min_snr_weights(torch.tensor([0.0, 1.0, 9.0]), "v_prediction")
        tensor([1.0000e-08, 5.0000e-01, 5.0000e-01])

    References:
        Hang et al., "Efficient diffusion training via Min-SNR weighting strategy", arXiv 2303.09556.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")
    snr = snr.clamp(min=1e-8)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "flow": (1 + snr.sqrt()).square()}
    if prediction not in divisors:
        raise ValueError(f"prediction must be 'epsilon', 'v_prediction' or 'flow', got {prediction!r}.")
    return snr.clamp(max=gamma) / divisors[prediction]


def spaced_timesteps(num_steps: int, num_timesteps: int = 1000, first: float = 979) -> tuple[int, ...]:
    """Return ``num_steps`` timesteps from ``first`` down, ``num_timesteps / num_steps`` apart, rounded.

    Raises:
        ValueError: If they would fall below 0, or there are none.

    Example:
        >>> spaced_timesteps(4)  # Kandinsky 3.1 Flash
        (979, 729, 479, 229)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    steps = tuple(round(first - number * num_timesteps / num_steps) for number in range(num_steps))
    if steps[-1] < 0 or len(set(steps)) < num_steps:
        raise ValueError(
            f"{num_steps} timesteps from {first} down, {num_timesteps / num_steps:.4g} apart, would fall below 0 or on "
            f"one another; take fewer, or a first one nearer to {num_timesteps}."
        )
    return steps


class FewStepSampler:
    """Sample in a few steps, with gradients through all of them or the last ones.

    ``step="renoise"`` is the sampler of distilled models such as Kandinsky 3.1 Flash: from ``u ~ N(0, I)``, at each
    timestep noise ``u`` afresh, ask the network, and let ``u`` be the clean latents that its answer implies.
    ``step="deterministic"`` keeps the noise that the answer implies: DDIM without noise, and Euler's method for flow
    matching.

    All noise is drawn before the first step, so a recomputed step sees the same noise.

    Args:
        schedule: Noise schedule.
        timesteps: Falling timesteps at which the network is asked.
        step: How to get from one timestep to the next.
        truncation: Number of last steps that the gradient passes through, 1 to the number of steps; ``"random"`` draws
            it anew for each sample; ``None`` takes all.
        checkpointing: Whether to recompute each step in the backward pass instead of keeping its graph.
        full_precision_steps: Number of first steps without autocast; the first one divides by a small ``a_t`` and
            amplifies rounding. The network must then have float32 weights.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sampler = FewStepSampler(NoiseSchedule(cosine_alphas_cumprod()), truncation=1)
        >>> scale = torch.tensor(0.1, requires_grad=True)
        >>> noise = sampler.draw_noise((2, 3), torch.Generator().manual_seed(0))
        >>> sampler.sample(lambda z, t, cond: z * scale, noise).sum().backward()
        >>> scale.grad.isfinite()
        tensor(True)
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        timesteps: Sequence[float] = (979, 729, 479, 229),
        step: Literal["renoise", "deterministic"] = "renoise",
        truncation: int | Literal["random"] | None = None,
        checkpointing: bool = True,
        full_precision_steps: int = 0,
    ) -> None:
        if not timesteps or any(later >= earlier for earlier, later in pairwise(timesteps)):
            raise ValueError(f"timesteps must be at least one, and fall, got {tuple(timesteps)}.")
        schedule.coefficients(torch.tensor(list(timesteps)))  # raises if one is out of range
        if step not in ("renoise", "deterministic"):
            raise ValueError(f"step must be 'renoise' or 'deterministic', got {step!r}.")
        if isinstance(truncation, str) and truncation != "random":
            raise ValueError(f"truncation must be a number, 'random' or None, got {truncation!r}.")
        if isinstance(truncation, int) and not 1 <= truncation <= len(timesteps):
            raise ValueError(f"truncation must be from 1 to the {len(timesteps)} steps, got {truncation}.")
        if full_precision_steps < 0:
            raise ValueError(f"full_precision_steps must not be negative, got {full_precision_steps}.")
        self.schedule, self.timesteps, self.step = schedule, tuple(timesteps), step
        self.truncation, self.checkpointing = truncation, checkpointing
        self.full_precision_steps = full_precision_steps

    def draw_noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw all noise that sampling needs, float32, ``(draws, *shape)``, for latents ``(batch, ...)``.

        Drawn on the generator's device and moved, so that a seed gives the same images everywhere.
        """
        draws = 1 + (len(self.timesteps) if self.step == "renoise" else 0)
        source = device if generator is None else generator.device
        return torch.randn((draws, *shape), generator=generator, device=source).to(device)

    def sample(
        self,
        denoise: Denoiser[Any],
        noise: Tensor,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return clean latents ``(batch, ...)``, float32 or float64 like ``noise``, which is from ``draw_noise``.

        ``denoise(z_t, t, cond)`` gets ``t`` of shape ``(batch,)``: whole numbers with ``alphas_cumprod``, floats for
        flow matching. ``generator`` draws a random truncation.
        """
        draws = 1 + (len(self.timesteps) if self.step == "renoise" else 0)
        if len(noise) != draws:
            raise ValueError(f"noise must hold {draws} draws, got {len(noise)}; take it from draw_noise.")
        total = len(self.timesteps)
        first_with_gradient = total - self._steps_with_gradient(generator) if torch.is_grad_enabled() else 0
        clean = implied = noise[0]
        for number, timestep in enumerate(self.timesteps):
            fresh = noise[1 + number] if self.step == "renoise" else implied
            arguments = (denoise, clean, fresh, float(timestep), cond, number)
            if number < first_with_gradient:
                with torch.no_grad():
                    clean, implied = self._one_step(*arguments)
            elif self.checkpointing and torch.is_grad_enabled():
                clean, implied = checkpoint(self._one_step, *arguments, use_reentrant=False)
            else:
                clean, implied = self._one_step(*arguments)
        return clean

    def _one_step(
        self, denoise: Denoiser[Any], clean: Tensor, noise: Tensor, timestep: float, cond: Any, number: int
    ) -> tuple[Tensor, Tensor]:
        kind = torch.float32 if self.schedule.alphas_cumprod is None else torch.int64
        timesteps = torch.full((len(clean),), timestep, device=clean.device).to(kind)
        # a deterministic sampler starts from pure noise, whatever signal its first timestep should hold
        pure = number == 0 and self.step == "deterministic"
        noised = noise if pure else self.schedule.add_noise(clean, noise, timesteps)
        precision: AbstractContextManager[Any] = nullcontext()
        if number < self.full_precision_steps:
            precision = torch.autocast(clean.device.type, enabled=False)
        with precision:
            prediction = denoise(noised, timesteps, cond)
        return self.schedule.split(noised, prediction, timesteps)

    def _steps_with_gradient(self, generator: torch.Generator | None) -> int:
        total = len(self.timesteps)
        if self.truncation is None:
            return total
        if self.truncation == "random":
            device = "cpu" if generator is None else generator.device
            return int(torch.randint(1, total + 1, (), generator=generator, device=device))
        return self.truncation
