from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.networks.part_recogniser import (
    PartRecogniser,
    load_recogniser,
    recogniser_report,
    save_recogniser,
    train_recogniser,
)


def drawings(count: int = 96) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a square at the left, a bar at the right, both or none."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(count, 2, generator=generator) > 0.5
    images = torch.full((count, 3, 16, 16), 230, dtype=torch.uint8)
    for image, (square, stripe) in zip(images, parts, strict=True):
        row = int(torch.randint(0, 8, (), generator=generator))
        if square:
            image[0, row : row + 5, 2:7] = 20
        if stripe:
            image[2, row : row + 8, 12] = 10
    return images, parts, parts.any(1)


def test_learns_parts_and_repeats_itself() -> None:
    data = drawings()
    runs = []
    for num_steps in (4, 4, 60):
        torch.manual_seed(0)
        recogniser = PartRecogniser(2, width=8)
        runs.append(train_recogniser(recogniser, *data, num_steps=num_steps, batch_size=24, learning_rate=1e-2))
    assert runs[0] == runs[1]
    assert sum(runs[2][-5:]) < 0.5 * sum(runs[2][:5])
    report = recogniser_report(recogniser, *data, names=("square", "stripe"))
    assert report["parts"] > 0.9
    assert report["single"] > 0.9
    assert {"recall/square", "recall/stripe"} <= set(report)


def test_scores_keep_the_mode_and_take_both_kinds_of_pictures() -> None:
    recogniser = PartRecogniser(3, width=4).train()
    images = drawings(5)[0]
    parts, single = recogniser.scores(images, batch_size=2)
    assert recogniser.training
    assert (parts.shape, single.shape) == ((5, 3), (5,))
    torch.testing.assert_close(recogniser.scores(images.float() / 127.5 - 1)[0], parts)
    assert recogniser.scores(images[:0])[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PartRecogniser(2)(torch.zeros(1, 1, 16, 16)), r"images of shape \(batch, 3, height, width\)"),
        (lambda: PartRecogniser(0), "num_parts, width and channels must be at least 1, got 0, 24 and 3"),
        (lambda: train_recogniser(PartRecogniser(3, width=4), *drawings(8)), r"parts must be of shape \(8, 3\)"),
        (lambda: train_recogniser(PartRecogniser(2, width=4), *drawings(8)), "batch_size from 1 to the 8 images"),
    ],
)
def test_refuses_what_does_not_fit(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_saved_recogniser_comes_back_and_no_other_file(tmp_path: Path) -> None:
    recogniser, images, path = PartRecogniser(3, width=4).eval(), drawings(5)[0], tmp_path / "r.pt"
    seen_by, concept_parts = torch.eye(3).bool()[:2], torch.ones(1, 3).bool()
    names: dict[str, Any] = {"affordances": ("hold", "roll"), "concepts": ("cart",)}
    save_recogniser(path, recogniser, seen_by, concept_parts, **names)
    saved = load_recogniser(path)
    assert (saved.affordances, saved.concepts) == (("hold", "roll"), ("cart",))
    assert saved.seen_by.tolist() == seen_by.tolist()
    torch.testing.assert_close(saved.recogniser.scores(images)[0], recogniser.scores(images)[0])
    with pytest.raises(ValueError, match=r"seen_by must be of shape \(2, 3\), \(names, parts\), got"):
        save_recogniser(path, recogniser, seen_by[:1], concept_parts, **names)
    with pytest.raises(FileNotFoundError, match=r"There is no recogniser .*none.pt; save_recogniser writes one"):
        load_recogniser(tmp_path / "none.pt")
    torch.save({"format": 0}, tmp_path / "old.pt")
    path.write_bytes(b"nothing")
    for file in (path, tmp_path / "old.pt"):
        with pytest.raises(ValueError, match="is not a file of save_recogniser in format 1, or it is damaged"):
            load_recogniser(file)
