"""Random numbers of samples: their distribution, and that they belong to the sample alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_modules.attacks.engine.random import SampleRandom, sample_keys


def samples(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 4, generator=torch.Generator().manual_seed(seed))


def draw(random: SampleRandom) -> list[Tensor]:
    """One of each kind, in one order."""
    return [
        random.uniform(3),
        random.normal(2, 2),
        random.sign(5),
        random.laplace(4),
        random.integers(7, 3),
        random.permutation(6),
    ]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_distributions(seed: int) -> None:
    random = SampleRandom.of(samples(100), seed)
    for values, law in (
        (random.uniform(200), stats.uniform),
        (random.normal(200), stats.norm),
        (random.laplace(200), stats.laplace),
    ):
        assert values.dtype == torch.float32
        assert stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace", "sign"])
def test_no_correlation_within_or_between_samples(kind: str) -> None:
    values = getattr(SampleRandom.of(samples(60), 3), kind)(400).double()
    within = torch.corrcoef(values.T[:50])
    between = torch.corrcoef(values)
    for matrix, length in ((within, 60), (between, 400)):
        off = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
        assert float(off.abs().max()) < 5.5 / length**0.5
        assert abs(float(off.mean())) < 0.05


def test_ranges() -> None:
    random = SampleRandom.of(samples(50), 0)
    uniform = random.uniform(20000)
    assert float(uniform.min()) > 0
    assert float(uniform.max()) < 1
    assert sorted(random.sign(100).unique().tolist()) == [-1.0, 1.0]
    assert float(random.sign(20000).mean()) == pytest.approx(0, abs=0.005)
    counts = random.integers(5, 2000).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert torch.equal(random.permutation(9).sort(dim=1).values, torch.arange(9).expand(50, 9))
    assert bool(torch.isfinite(random.laplace(20000)).all())
    assert bool(torch.isfinite(random.normal(20000)).all())


def test_every_permutation_is_as_likely() -> None:
    places = SampleRandom.of(samples(6000), 0).permutation(3)
    counts = (places * torch.tensor([9, 3, 1])).sum(1).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**40))
def test_order_of_the_batch_does_not_matter(order: list[int], seed: int) -> None:
    x = samples(6)
    index = torch.tensor(order)
    for whole, shuffled in zip(draw(SampleRandom.of(x, seed)), draw(SampleRandom.of(x[index], seed)), strict=True):
        assert torch.equal(whole[index], shuffled)


def test_a_sample_alone_or_selected_meets_the_same_numbers() -> None:
    x = samples(6)
    random, alone = SampleRandom.of(x, 5), SampleRandom.of(x[4:5], 5)
    assert torch.equal(random.uniform(3)[4:5], alone.uniform(3))
    part = random.select(torch.tensor([4, 1]))
    expected = draw(random)
    for values, whole, single in zip(draw(part), expected, draw(alone), strict=True):
        assert torch.equal(values, whole[[4, 1]])
        assert torch.equal(values[:1], single)


def test_draws_follow_each_other_and_seeds_and_forks_differ() -> None:
    x = samples(4)
    random = SampleRandom.of(x, 0)
    first, second = random.uniform(100), random.uniform(100)
    assert not bool((first == second).any())
    assert torch.equal(SampleRandom.of(x, 0).uniform(100), first)
    others = [SampleRandom.of(x, 1).uniform(100)] + [random.fork(k).uniform(100) for k in range(4)]
    for i, a in enumerate([first, *others]):
        for b in others[i:]:
            assert float((a == b).float().mean()) < 0.01
    assert torch.equal(random.fork(2).uniform(5), random.fork(2).uniform(5))


def test_no_global_generator_is_read_or_moved() -> None:
    x = samples(3)
    state = torch.get_rng_state()
    first = draw(SampleRandom.of(x, 0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    for a, b in zip(first, draw(SampleRandom.of(x, 0)), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(state)


def test_keys_differ_where_samples_do() -> None:
    x = torch.zeros(200, 28 * 28)
    x[torch.arange(200), torch.arange(200)] = 1
    assert len(sample_keys(x).unique()) == 200
    assert len(sample_keys(x.flip(1)).unique()) == 200
    assert torch.equal(sample_keys(x.view(200, 28, 28)), sample_keys(x))
    assert torch.equal(sample_keys(x.view(200, 28, 28).transpose(1, 2).contiguous().transpose(1, 2)), sample_keys(x))
    swapped = torch.tensor([[0.25, 0.5, 0.75], [0.5, 0.25, 0.75], [0.75, 0.5, 0.25]])
    assert len(sample_keys(swapped).unique()) == 3
