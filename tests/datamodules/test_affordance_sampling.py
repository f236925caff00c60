from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from datamodules.affordances.sampling import CurriculumSampler, Mode
from datamodules.common.sampling import batch_loader
from tests.small_runs import Indices, record

MODES = get_args(Mode)
STAGES = [0, 1, 2] * 7  # 21 items, 7 of each stage


def sampler(mode: Any = "staged", **changed: Any) -> CurriculumSampler:
    arguments = {"stages": STAGES, "epochs": 6, "batch_size": 2, "seed": 5, **changed}
    if mode == "competence":
        arguments.setdefault("difficulty", [item / 20 for item in range(21)])
    return CurriculumSampler(mode=mode, **arguments)


def epoch(own: CurriculumSampler, number: int) -> list[Any]:
    own.set_epoch(number)
    return [item for batch in own for item in batch]


def test_an_epoch_has_each_item_of_the_stage_of_the_formula_once() -> None:
    for epochs in range(3, 11):
        stages = [sampler(epochs=epochs).stage_of(number) for number in range(epochs + 2)]
        assert stages == [min(2, 3 * number // epochs) for number in range(epochs + 2)]
    own = sampler()
    for number in range(6):
        items = epoch(own, number)
        assert sorted(items) == [item for item in range(21) if STAGES[item] == number // 2]
        assert own.stage == number // 2
    assert epoch(own, 0) != epoch(own, 1)


def test_epochs_are_equally_long_and_a_small_stage_begins_anew_for_missing_rows() -> None:
    for mode in MODES:
        own = sampler(mode, stages=[0] * 5 + [1] * 9 + [2] * 7)
        for number in range(6):
            own.set_epoch(number)
            assert len(list(own)) == len(own) == 5
    own = sampler(stages=[0] * 3 + [1] * 9, epochs=2)
    assert sorted(Counter(epoch(own, 0)).values()) == [3, 3, 3]
    # as many batches as the largest stage fills: nothing is added
    assert len(epoch(sampler(stages=[0] * 9 + [1] * 10, epochs=2), 0)) == 9


def test_two_ranks_see_what_one_with_twice_the_batch_sees() -> None:
    for mode in MODES:
        whole = sampler(mode, batch_size=4)
        ranks = [sampler(mode, rank=rank, world_size=2) for rank in range(2)]
        for number in (0, 3, 5):
            for own in (whole, *ranks):
                own.set_epoch(number)
            parts = list(zip(*ranks, strict=True))
            assert [a + b for a, b in parts] == list(whole)
            if mode == "staged":
                seen = [item for part in parts for batch in part for item in batch]
                assert sorted(seen) == [item for item in range(21) if STAGES[item] == number // 2]


def test_cumulative_replays_earlier_stages() -> None:
    own = sampler("cumulative", stages=[0, 1, 2] * 1000)
    assert {STAGES[item % 21] for item in epoch(own, 1)} == {0}
    for number in (2, 5):
        stages = Counter(item % 3 for item in epoch(own, number))
        earlier = sum(count for stage, count in stages.items() if stage < number // 2)
        assert earlier / 1000 == pytest.approx(0.2, abs=0.05)
        assert max(stages) == number // 2
    assert {item % 3 for item in epoch(sampler("cumulative", replay=0.0), 5)} == {2}


def test_competence_admits_what_the_formula_admits() -> None:
    own = sampler("competence", stages=[0] * 100, difficulty=[item / 99 for item in range(100)], epochs=4)
    assert own.competence(0) == pytest.approx(0.01)
    assert own.competence(100) == pytest.approx((0.5 * (1 - 0.0001) + 0.0001) ** 0.5)
    assert own.competence(200) == own.competence(900) == 1
    greatest = []
    for number in range(4):
        own.set_epoch(number)
        for place, batch in enumerate(own):
            limit = max(own.competence(number * 50 + place), 1 / 99)  # a batch is always filled
            assert all(item / 99 <= limit + 1e-12 for item in batch)
            assert len(set(batch)) == 2
        greatest.append(max(epoch(own, number)))
    assert greatest == sorted(greatest)
    assert own.stage is None
    small = sampler("competence", stages=[0, 0, 0], difficulty=[0.0, 0.5, 1.0], batch_size=8, epochs=1)
    assert len(epoch(small, 0)) == 8  # a batch larger than the set


def test_random_goes_through_all_items_before_one_comes_again() -> None:
    own = sampler("random")
    seen = [item for number in range(6) for item in epoch(own, number)]
    assert sorted(seen[:21]) == sorted(seen[21:]) == list(range(21))
    assert seen[:21] != seen[21:]
    assert own.stage is None
    # passes that do not end with an epoch
    own = sampler("random", stages=[0] * 5 + [1] * 6, epochs=11, batch_size=6)
    seen = [item for number in range(11) for item in epoch(own, number)]
    assert set(Counter(seen).values()) == {6}


def test_a_number_comes_with_each_item() -> None:
    plain, own = sampler(), sampler(choices=1000)
    drawn = epoch(own, 2)
    assert [item for item, _ in drawn] == epoch(plain, 2)
    assert len({number for _, number in drawn}) > 4
    assert all(0 <= number < 1000 for _, number in drawn)
    assert drawn == epoch(sampler(choices=1000), 2) != epoch(own, 3)


def test_a_stage_can_be_brought_forward() -> None:
    own = sampler(epochs=9)
    own.set_epoch(0)
    assert own.promote()
    assert own.starts == [0, 1, 6]
    assert not own.promote()  # it begins with the next epoch already
    assert [own.stage_of(number) for number in (0, 1, 5, 6)] == [0, 1, 1, 2]
    own.set_epoch(7)
    assert not own.promote()  # there is no further stage
    assert not sampler("random").promote()


def train(folder: Path, mode: Mode, resume: Path | None = None, **options: Any) -> tuple[list[list[str]], Path]:
    return record(folder, batch_loader(Indices(), sampler(mode)), resume=resume, **{"max_epochs": 6, **options})


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(mode: Mode, tmp_path: Path) -> None:
    whole, _ = train(tmp_path, mode)
    assert len(whole) == 24
    for stop in (8, 19):  # at the end of an epoch, and in the last stage
        first, path = train(tmp_path, mode, max_steps=stop)
        # Lightning counts the epoch of a stopped run as a whole one
        then, _ = train(tmp_path, mode, path, max_epochs=8, max_steps=24)
        assert first + then == whole


def test_another_curriculum_is_not_resumed() -> None:
    own = batch_loader(Indices(), sampler())
    next(iter(own))
    for changed, message in (
        ({"epochs": 9}, "epochs must be 6, got 9"),
        ({"mode": "cumulative"}, "mode must be 'staged', got 'cumulative'"),
        ({"stages": [0, 1, 2, 2] * 5}, "rows must be 21, got 20"),
    ):
        other = batch_loader(Indices(), sampler(**changed))
        other.load_state_dict({**own.state_dict(), "batches": 1})
        with pytest.raises(ValueError, match=message):
            next(iter(other))


def test_bad_arguments_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"epochs": 2}, "epochs must be at least 3, one for each stage of the curriculum, got 2; train longer"),
        ({"mode": "sorted"}, "mode must be of 'staged', 'cumulative', 'competence', 'random', got 'sorted'"),
        ({"stages": []}, "at least one item, got none"),
        ({"stages": [0, 2]}, "Every stage from 0 to 2 must have items, got none for stage 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"replay": 1.0}, r"replay must lie in \[0, 1\), got 1.0"),
        ({"initial_competence": 0.0}, r"initial_competence must lie in \(0, 1\], got 0.0"),
        ({"mode": "competence", "difficulty": None}, "needs the difficulty of each item, got None"),
        ({"mode": "competence", "difficulty": [0.5]}, "a number for each of the 21 items, got 1"),
        ({"mode": "competence", "difficulty": [1.5] * 21}, r"difficulty must lie in \[0, 1\], got 1.5 for item 0"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            sampler(**changed)
