from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.metrics.affordances import PartAffordanceRecall, PartNovelty
from lit_modules.metrics.drawn_objects import DrawnObjectScore
from lit_modules.networks.part_recogniser import PartRecogniser, save_recogniser

SEEN_BY = torch.tensor([[True, False, False], [False, True, True]])
CONCEPT_PARTS = torch.tensor([[True, True, False], [False, False, True]])
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = {
    "requested": torch.tensor([[True, True]] * 3 + [[False, True]] * 3),
    "owners": torch.tensor([[True, True], [True, False], [False, True]] * 2),
    "stage": torch.tensor([0, 0, 1, 1, 2, -1]),
}


@pytest.fixture(scope="module")
def recogniser() -> PartRecogniser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PartRecogniser(3, width=4).eval()
    with torch.no_grad():  # some pictures show a part and others do not
        network.parts.weight *= 20
        network.parts.bias -= network(IMAGES * 2 - 1).parts.mean(0)
    return network


@pytest.fixture
def file(recogniser: PartRecogniser, tmp_path: Path) -> str:
    path = tmp_path / "made" / "recogniser.pt"
    save_recogniser(path, recogniser, SEEN_BY, CONCEPT_PARTS, ("hold", "roll"), ("cart", "box"))
    return str(path)


def test_numbers_are_those_of_the_metrics_of_part_scores(recogniser: PartRecogniser, file: str) -> None:
    score, saved = DrawnObjectScore(recogniser, SEEN_BY, CONCEPT_PARTS), DrawnObjectScore(file)
    for chosen in (slice(0, 4), slice(4, 6)):
        score.update(IMAGES[chosen], {key: value[chosen] for key, value in BATCH.items()})
    parts, single = recogniser.scores(IMAGES * 2 - 1)
    recall, novelty, of_all = PartAffordanceRecall(SEEN_BY), PartNovelty(CONCEPT_PARTS), PartNovelty(CONCEPT_PARTS)
    recall.update(parts, BATCH["requested"], BATCH["stage"])
    novelty.update(parts, BATCH["owners"], BATCH["stage"])
    right = torch.stack([parts[:, 0], parts[:, 1:].amax(1)], 1) > 0.5
    all_shown = (right | ~BATCH["requested"]).all(1)
    assert 0 < int(all_shown.sum()) < 6
    of_all.update(parts, BATCH["owners"], BATCH["stage"], counted=all_shown)
    expected = {**recall.compute(), **novelty.compute()}
    expected |= {f"novelty_of_all{key[7:]}": value for key, value in of_all.compute().items() if key[0] == "n"}
    numbers = score.compute()
    assert numbers.keys() == expected.keys() | {"single", "single/easy", "single/medium", "single/hard"}
    assert float(numbers["single"]) == pytest.approx(float(single.mean()), abs=1e-6)
    saved.update(IMAGES, BATCH)
    for other in (expected, saved.compute()):
        for key, value in other.items():
            torch.testing.assert_close(numbers[key], value, equal_nan=True)
    assert not saved.state_dict()


def test_bad_input_is_refused(recogniser: PartRecogniser, file: str) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: DrawnObjectScore(file, SEEN_BY), "stand in the recogniser's file; leave them out"),
        (lambda: DrawnObjectScore(recogniser, SEEN_BY), "needs seen_by and concept_parts"),
        (lambda: DrawnObjectScore(file, threshold=1), r"threshold must be in \(0, 1\), got 1"),
        (lambda: DrawnObjectScore(recogniser, [[1, 1, 1], [0, 0, 0]], CONCEPT_PARTS), "got none for number 1"),
        (lambda: DrawnObjectScore(file).update(IMAGES * 2 - 1, BATCH), r"images must be in \[0, 1\], got -"),
        (lambda: DrawnObjectScore(file).update(IMAGES, {"requested": BATCH["requested"]}), "got one without owners"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
