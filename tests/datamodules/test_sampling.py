import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

from datamodules.common.sampling import BatchSampler, PairSampler, ResumableLoader, batch_loader, permutation
from tests.small_runs import Indices, record


def loader(num_workers: int = 0, limit: int | float = 1.0, **changed: Any) -> ResumableLoader:
    pairs = {"forget": 10, "retain": 7, "anchor": "forget", "batch_size": 3, "seed": 5, **changed}
    return batch_loader(Indices(), PairSampler(**pairs), num_workers, limit)


def train(folder: Path, resume: Path | None = None, num_workers: int = 0, val: bool = False, **options: Any) -> Any:
    validation = batch_loader(Indices(), BatchSampler(4, 2, shuffle=False)) if val else None
    data = loader(num_workers, limit=options.get("limit_train_batches", 1.0))
    return record(folder, data, validation, resume, **{"max_epochs": 3, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Batches of an uninterrupted run of three epochs of four batches."""
    seen: list[list[str]]
    seen, _ = train(tmp_path_factory.mktemp("whole"))
    assert [len(batch) for batch in seen] == [3, 3, 3, 1] * 3
    assert seen[:4] != seen[4:8]
    return seen


def test_a_run_can_be_stopped_again_and_again(whole: list[list[str]], tmp_path: Path) -> None:
    seen, path = train(tmp_path, max_steps=1)
    for steps, num_workers in ((2, 0), (4, 0), (6, 2), (8, 0), (9, 2), (12, 0)):
        more, path = train(tmp_path, path, num_workers, max_steps=steps, max_epochs=-1)
        seen += more
    assert seen == whole
    before, path = train(tmp_path, max_epochs=2)
    after, _ = train(tmp_path, path)
    assert [*before, *after] == whole


@pytest.mark.parametrize("validated", [False, True])
def test_checkpoints_saved_on_the_way(validated: bool, whole: list[list[str]], tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_on_train_epoch_end": False} if validated else {"every_n_train_steps": 1}
    options: dict[str, Any] = {"val": True, **({"val_check_interval": 1} if validated else {})}
    callback = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **saving)
    seen, _ = train(tmp_path, **options, enable_checkpointing=True, callbacks=[callback])
    assert seen == whole
    for step in (2, 4, 7):
        after, _ = train(tmp_path, tmp_path / f"step={step}.ckpt", **options)
        assert after == whole[step:]


@pytest.mark.parametrize(("limit", "steps"), [(2, 4), (2, 3), (0.5, 1)])
def test_limited_epochs(limit: int | float, steps: int, whole: list[list[str]], tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit_train_batches": limit, "max_epochs": -1}
    before, path = train(tmp_path, **options, max_steps=steps)
    after, _ = train(tmp_path, path, **options, max_steps=6)
    assert [*before, *after] == [*whole[:2], *whole[4:6], *whole[8:10]]


@pytest.mark.parametrize("changed", [{"batch_size": 2}, {"seed": 6}, {"anchor": "retain"}, {"retain": 8}])
def test_other_batches_cannot_be_resumed(changed: dict[str, Any]) -> None:
    first = loader()
    next(iter(first))
    other = loader(**changed)
    other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="stopped after batch 1 of epoch 0 can only be resumed with the same batches"):
        next(iter(other))
    # at the end of an epoch there is nothing to skip, so anything may change
    other.load_state_dict({**first.state_dict(), "batches": 100})
    assert len(list(other)) == len(other)
    assert other.state_dict()["epoch"] == 1


def test_as_many_ranks_with_a_part_of_the_batch_resume() -> None:
    one = loader(batch_size=4)
    next(iter(one))
    two = [loader(batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for part in two:
        part.load_state_dict(one.state_dict())
    rest = [[i for batch in batches for i in batch["id"]] for batches in zip(*two, strict=True)]
    assert rest == [batch["id"] for batch in list(loader(batch_size=4))[1:]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_counts_batches_that_were_handed_out(num_workers: int) -> None:
    some = loader(num_workers)
    assert (some.state_dict()["epoch"], some.state_dict()["batches"]) == (0, 0)
    iterator = iter(some)
    next(iterator)
    next(iterator)
    state = some.state_dict()
    assert state["batches"] == 2  # whatever the workers have fetched
    resumed = loader(num_workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [batch["id"] for batch in resumed] == [batch["id"] for batch in iterator]
    assert len(list(resumed)) == len(resumed) == 4  # the pass after that is whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_random_state_is_neither_used_nor_changed(num_workers: int) -> None:
    orders = []
    for seed in (0, 1):
        random.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), torch.get_rng_state()
        orders.append([batch["id"] for batch in loader(num_workers)])
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
    assert orders[0] == orders[1]
    sampler = loader().sampler
    assert isinstance(sampler, DistributedSampler)  # which Lightning leaves in place
    assert pickle.loads(pickle.dumps(sampler)).order() == sampler.order()  # type: ignore[attr-defined]


@settings(deadline=None)
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    ranks=st.integers(1, 5),
    seed=st.integers(),
    shuffle=st.booleans(),
)
def test_ranks_share_the_batches_of_one_rank(
    length: int, batch_size: int, ranks: int, seed: int, shuffle: bool
) -> None:
    one = BatchSampler(length, batch_size * ranks, seed, shuffle)
    many = [BatchSampler(length, batch_size, seed, shuffle, rank, ranks) for rank in range(ranks)]
    assert {len(sampler) for sampler in many} == {len(one)} == {len(list(one))}
    assert Counter(i for batch in one for i in batch) == Counter(range(length))
    for number, (whole, parts) in enumerate(zip(one, zip(*many, strict=True), strict=True)):
        together = [i for part in parts for i in part]
        assert together[: len(whole)] == list(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= 1
        assert max(map(len, parts)) <= batch_size
        if len(whole) >= ranks:
            assert together == list(whole)
        else:  # borrowed from the beginning, one for each rank
            assert number == len(one) - 1
            assert len(together) == ranks


@settings(deadline=None)
@given(forget=st.integers(1, 30), retain=st.integers(1, 30), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_pairs(forget: int, retain: int, seed: int, epoch: int) -> None:
    for anchor in ("forget", "retain"):
        sampler = PairSampler(forget, retain, anchor, 4, seed)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        anchors, others = zip(*sampler.order(), strict=True)
        size, other = forget, retain
        if anchor == "retain":
            anchors, others, size, other = others, anchors, retain, forget
        assert sorted(anchors) == list(range(size))
        counts = Counter(others)
        assert set(counts) <= set(range(other))
        assert max(counts.values()) - min(counts[i] for i in range(other)) <= 1  # cycled, none preferred


def test_orders_differ_between_epochs_seeds_and_streams() -> None:
    orders = {tuple(permutation(20, *key)) for key in [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 31), (-1, 0)]}
    assert len(orders) == 6
    assert permutation(6, 0, 0) == [0, 1, 3, 2, 5, 4]  # the same in every version
