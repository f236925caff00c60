import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.metrics.affordances import PartAffordanceRecall, PartNovelty
from lit_modules.metrics.drawn_objects import DrawnObjectScore
from lit_modules.networks.part_recogniser import PartRecogniser, save_recogniser

SEEN_BY = torch.tensor([[True, False, False], [False, True, True]])
CONCEPT_PARTS = torch.tensor([[True, True, False], [False, False, True]])


def recogniser() -> PartRecogniser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = PartRecogniser(3, width=4).eval()
    with torch.no_grad():  # some pictures show a part and others do not
        made.parts.weight *= 20
        made.parts.bias -= made(images() * 2 - 1).parts.mean(0)
    return made


def batch() -> dict[str, Any]:
    return {
        "requested": torch.tensor([[True, True]] * 3 + [[False, True]] * 3),
        "owners": torch.tensor([[True, True], [True, False], [False, True]] * 2),
        "stage": torch.tensor([0, 0, 1, 1, 2, -1]),
    }


def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_agrees_with_the_metrics_of_part_scores() -> None:
    score, rows = DrawnObjectScore(recogniser(), SEEN_BY, CONCEPT_PARTS), batch()
    for chosen in (slice(0, 4), slice(4, 6)):
        score.update(images()[chosen], {key: value[chosen] for key, value in rows.items()})
    parts, single = recogniser().scores(images() * 2 - 1)
    recall, novelty, shown = PartAffordanceRecall(SEEN_BY), PartNovelty(CONCEPT_PARTS), PartNovelty(CONCEPT_PARTS)
    recall.update(parts, rows["requested"], rows["stage"])
    novelty.update(parts, rows["owners"], rows["stage"])
    right = torch.stack([parts[:, 0], parts[:, 1:].amax(1)], 1) > 0.5
    all_shown = (right | ~rows["requested"]).all(1)
    assert 0 < int(all_shown.sum()) < 6
    shown.update(parts, rows["owners"], rows["stage"], counted=all_shown)
    wanted = {**recall.compute(), **novelty.compute()}
    wanted |= {
        key.replace("novelty", "novelty_of_all"): value for key, value in shown.compute().items() if key[0] == "n"
    }
    found = score.compute()
    assert found.keys() == wanted.keys() | {"single", "single/easy", "single/medium", "single/hard"}
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, equal_nan=True)
    assert float(found["single"]) == pytest.approx(float(single.mean()), abs=1e-6)


def test_reads_a_recogniser_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "made" / "recogniser.pt"
    save_recogniser(file, recogniser(), SEEN_BY, CONCEPT_PARTS, ("hold", "roll"), ("cart", "box"))
    read, given = DrawnObjectScore(str(file)), DrawnObjectScore(recogniser(), SEEN_BY, CONCEPT_PARTS)
    for score in (read, given):
        score.update(images(), batch())
    for key, value in given.compute().items():
        torch.testing.assert_close(read.compute()[key], value, equal_nan=True)
    assert not read.state_dict()
    read.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert all(math.isnan(float(value)) for value in read.compute().values())


def test_bad_input_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recogniser.pt"
    save_recogniser(file, recogniser(), SEEN_BY, CONCEPT_PARTS, ("hold", "roll"), ("cart", "box"))
    with pytest.raises(ValueError, match="stand in the recogniser's file; leave them out"):
        DrawnObjectScore(str(file), SEEN_BY)
    with pytest.raises(ValueError, match="needs seen_by and concept_parts"):
        DrawnObjectScore(recogniser(), SEEN_BY)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got 1"):
        DrawnObjectScore(str(file), threshold=1)
    with pytest.raises(ValueError, match="at least one part for each affordance, got none for number 1"):
        DrawnObjectScore(recogniser(), torch.tensor([[1, 1, 1], [0, 0, 0]]), CONCEPT_PARTS)
    score = DrawnObjectScore(str(file))
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got -0.5"):
        score.update(images() - 0.5 - images().min(), batch())
    with pytest.raises(ValueError, match="got one without owners"):
        score.update(images(), {"requested": batch()["requested"]})
