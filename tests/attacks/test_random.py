"""Random numbers of samples: their distribution, and that they belong to the sample alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_modules.attacks.engine.random import SampleRandom, sample_keys
from tests.attacks.helpers import images


def samples(count: int) -> Tensor:
    return images(count, 3, 4, seed=0)


def draw(random: SampleRandom) -> list[Tensor]:
    """One of each kind, in one order."""
    numbers = [random.uniform(3), random.normal(2, 2), random.sign(5), random.laplace(4)]
    return [*numbers, random.integers(7, 3), random.permutation(6)]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_distributions(seed: int) -> None:
    random = SampleRandom.of(samples(100), seed)
    for kind, law in (("uniform", stats.uniform), ("normal", stats.norm), ("laplace", stats.laplace)):
        values = getattr(random, kind)(200)
        assert values.dtype == torch.float32
        assert stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace", "sign"])
def test_no_correlation_within_or_between_samples(kind: str) -> None:
    values = getattr(SampleRandom.of(samples(60), 3), kind)(400).double()
    for matrix, length in ((torch.corrcoef(values.T[:50]), 60), (torch.corrcoef(values), 400)):
        off = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
        assert float(off.abs().max()) < 5.5 / length**0.5
        assert abs(float(off.mean())) < 0.05


def test_ranges() -> None:
    random = SampleRandom.of(samples(50), 0)
    uniform = random.uniform(20000)
    assert 0 < float(uniform.min()) < float(uniform.max()) < 1
    sign = random.sign(20000)
    assert sign.unique().tolist() == [-1.0, 1.0]
    assert float(sign.mean()) == pytest.approx(0, abs=0.005)
    counts = random.integers(5, 2000).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert bool(torch.isfinite(random.laplace(20000)).all() & torch.isfinite(random.normal(20000)).all())


def test_every_permutation_is_as_likely() -> None:
    places = SampleRandom.of(samples(6000), 0).permutation(3)
    assert torch.equal(places.sort(dim=1).values, torch.arange(3).expand(6000, 3))
    counts = (places * torch.tensor([9, 3, 1])).sum(1).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@settings(max_examples=25, deadline=None)
@given(index=st.lists(st.integers(0, 5), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_neither_order_nor_batch_matters(index: list[int], seed: int) -> None:
    x = samples(6)
    random = SampleRandom.of(x, seed)
    selected = random.select(torch.tensor(index))
    for whole, part, chosen in zip(draw(random), draw(SampleRandom.of(x[index], seed)), draw(selected), strict=True):
        assert torch.equal(whole[index], part)
        assert torch.equal(whole[index], chosen)


def test_draws_follow_each_other_and_seeds_and_forks_differ() -> None:
    x = samples(4)
    random = SampleRandom.of(x, 0)
    first, second = random.uniform(100), random.uniform(100)
    assert not bool((first == second).any())
    torch.testing.assert_close(random.select(torch.tensor([2])).uniform(5), random.uniform(5)[[2]], rtol=0, atol=0)
    assert torch.equal(SampleRandom.of(x, 0).uniform(100), first)
    others = [SampleRandom.of(x, 1).uniform(100)] + [random.fork(k).uniform(100) for k in range(4)]
    for i, a in enumerate([first, *others]):
        for b in others[i:]:
            assert float((a == b).float().mean()) < 0.01
    assert torch.equal(random.fork(2).uniform(5), random.fork(2).uniform(5))


def test_no_global_generator_is_read_or_moved() -> None:
    state = torch.get_rng_state()
    first = draw(SampleRandom.of(samples(3), 0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    for a, b in zip(first, draw(SampleRandom.of(samples(3), 0)), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(state)


def test_keys_differ_where_samples_do() -> None:
    x = torch.zeros(200, 28 * 28)
    x[torch.arange(200), torch.arange(200)] = 1
    assert len(sample_keys(x).unique()) == len(sample_keys(x.flip(1)).unique()) == 200
    assert torch.equal(sample_keys(x.view(200, 28, 28)), sample_keys(x))
    assert torch.equal(sample_keys(x.view(200, 28, 28).transpose(1, 2).contiguous().transpose(1, 2)), sample_keys(x))
    swapped = torch.tensor([[0.25, 0.5, 0.75], [0.5, 0.25, 0.75], [0.75, 0.5, 0.25]])
    assert len(sample_keys(swapped).unique()) == 3
