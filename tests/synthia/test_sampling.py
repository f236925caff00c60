import pytest
import torch
from torch import Tensor, nn

from lit_modules.synthia.core.sampling import (
    FewStepSampler,
    NoiseSchedule,
    cosine_alphas_cumprod,
    min_snr_weights,
    spaced_timesteps,
)

COSINE = cosine_alphas_cumprod()


def schedules() -> list[NoiseSchedule]:
    return [NoiseSchedule(COSINE), NoiseSchedule(COSINE, "v_prediction"), NoiseSchedule(None, "flow")]


class Net(nn.Module):
    """A network with dropout that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.dropout(self.layer(z) + cond * (t / 1000).to(z.dtype)[:, None])
        return out


def test_flash_schedule() -> None:
    expected = torch.tensor([0.000971, 0.16685, 0.52500, 0.86877], dtype=torch.float64)
    torch.testing.assert_close(COSINE[[979, 729, 479, 229]], expected, atol=5e-6, rtol=1e-4)
    assert spaced_timesteps(4) == (979, 729, 479, 229)


@pytest.mark.parametrize("schedule", schedules(), ids=lambda schedule: schedule.prediction)
def test_a_true_prediction_gives_back_latents_and_noise_and_min_snr_weighs_alike(schedule: NoiseSchedule) -> None:
    clean, noise = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    timesteps = torch.tensor([20, 500, 979])
    noised = schedule.add_noise(clean, noise, timesteps)
    found = schedule.split(noised, schedule.target(clean, noise, timesteps), timesteps)
    torch.testing.assert_close(found[0], clean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found[1], noise, atol=1e-9, rtol=1e-9)
    timesteps = torch.tensor([100, 500, 900])
    noised, right = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    wrong = right + 1.0
    clean_error = (schedule.split(noised, wrong, timesteps)[0] - schedule.split(noised, right, timesteps)[0]).square()
    weights = min_snr_weights(schedule.snr(timesteps), schedule.prediction, gamma=5.0)
    torch.testing.assert_close(weights, clean_error[:, 0] * schedule.snr(timesteps).clamp(max=5.0))


def test_renoising_follows_its_formula() -> None:
    sampler = FewStepSampler(NoiseSchedule(COSINE), checkpointing=False)
    noise = sampler.draw_noise((2, 4), torch.Generator().manual_seed(0)).double()
    clean = noise[0]
    for number, timestep in enumerate((979, 729, 479, 229)):
        kept = COSINE[timestep]
        noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise[1 + number]
        clean = (noised - (1 - kept).sqrt() * noised * 0.3) / kept.sqrt()
    torch.testing.assert_close(sampler.sample(lambda z, t, cond: z * 0.3, noise), clean)


def test_the_deterministic_step_is_the_method_of_euler() -> None:
    sampler = FewStepSampler(NoiseSchedule(None, "flow"), (1000.0, 600.0, 250.0), "deterministic")
    noise = sampler.draw_noise((2, 4), torch.Generator().manual_seed(0))
    state = noise[0]
    for here, there in ((1.0, 0.6), (0.6, 0.25), (0.25, 0.0)):
        state = state + (there - here) * (0.5 * state + here)
    found = sampler.sample(lambda z, t, cond: 0.5 * z + t[:, None] / 1000, noise)
    torch.testing.assert_close(found, state)


@pytest.mark.parametrize(("schedule", "step"), [*zip(schedules()[::2], ("renoise", "deterministic"), strict=True)])
def test_checkpointing_changes_no_gradient(schedule: NoiseSchedule, step: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = Net()
        cond = torch.ones(2, 4, requires_grad=True)
        sampler = FewStepSampler(schedule, step=step, checkpointing=checkpointing)  # type: ignore[arg-type]
        noise = sampler.draw_noise((2, 4), torch.Generator().manual_seed(1))
        sampler.sample(net, noise, cond).square().mean().backward()
        assert net.calls == (8 if checkpointing else 4)
        gradients.append([net.layer.weight.grad, cond.grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_passes_through_the_last_steps_only() -> None:
    seen: list[Tensor] = []

    def denoise(z: Tensor, t: Tensor, cond: list[Tensor]) -> Tensor:
        scale = cond[(979, 729, 479, 229).index(int(t[0]))]
        seen.append(z)
        return z * scale

    for truncation in (1, 2, 4, None):
        seen.clear()
        scales = [torch.tensor(0.9, requires_grad=True) for _ in range(4)]
        sampler = FewStepSampler(NoiseSchedule(COSINE), truncation=truncation)
        sampler.sample(denoise, sampler.draw_noise((1, 3)), scales).sum().backward()
        reached = [scale.grad is not None for scale in scales]
        count = truncation or 4
        assert reached == [False] * (4 - count) + [True] * count
        assert not any(z.requires_grad for z in seen[: 4 - count + 1])
    sampler = FewStepSampler(NoiseSchedule(COSINE), truncation="random", checkpointing=False)
    generator, counts = torch.Generator().manual_seed(0), []
    for _ in range(40):
        scales = [torch.tensor(0.9, requires_grad=True) for _ in range(4)]
        sampler.sample(denoise, sampler.draw_noise((1, 3)), scales, generator).sum().backward()
        reached = [scale.grad is not None for scale in scales]
        assert reached == sorted(reached)
        counts.append(sum(reached))
    assert set(counts) == {1, 2, 3, 4}


def test_the_first_steps_run_without_autocast() -> None:
    kinds: list[torch.dtype] = []
    layer = nn.Linear(4, 4)

    def denoise(z: Tensor, t: Tensor, cond: None) -> Tensor:
        out: Tensor = layer(z)
        kinds.append(out.dtype)
        return out

    sampler = FewStepSampler(NoiseSchedule(COSINE), full_precision_steps=1, checkpointing=False)
    with torch.autocast("cpu", torch.bfloat16):
        sample = sampler.sample(denoise, sampler.draw_noise((1, 4)))
    assert kinds == [torch.float32] + [torch.bfloat16] * 3
    assert sample.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NoiseSchedule(COSINE, "x0"), "prediction must be 'epsilon', 'v_prediction' or 'flow', got 'x0'"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule(None), "need alphas_cumprod"),
        (lambda: NoiseSchedule(COSINE).add_noise(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1000])), "to 999"),
        (lambda: FewStepSampler(NoiseSchedule(COSINE), (100, 200)), r"must be at least one, and fall, got \(100, 2"),
        (lambda: FewStepSampler(NoiseSchedule(COSINE), truncation=5), "truncation must be from 1 to the 4 steps"),
        (lambda: NoiseSchedule(torch.tensor([1.0, 0.0])), "cannot start from a timestep without signal"),
        (lambda: FewStepSampler(NoiseSchedule(COSINE)).sample(torch.add, torch.ones(2, 1, 3)), "must hold 5 draws"),
        (lambda: spaced_timesteps(60), "would fall below 0"),
    ],
)
def test_refuses_what_does_not_fit(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
