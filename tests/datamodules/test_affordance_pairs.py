import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.affordances.files import ImageStore, read_image_pairs
from datamodules.affordances.pairs import AffordancePairs

STAGES = ((("pour", "ride"), ("hold", "sit")), (("fly", "store"),), (("cut", "rest"),))


def save(path: Path, colour: int, size: tuple[int, int] = (16, 16)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour // 2, 255 - colour)).save(path)
    return path.name


def write(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of four training pairs in three stages and a test pair; the number of a pair is in its colours."""
    number = 0
    for stage, pairs in enumerate(STAGES):
        rows: list[dict[str, Any]] = []
        for pair in pairs:
            positives = [save(tmp_path / f"{number}-{index}.png", 10 * number + index) for index in range(2)]
            names = (("a cup", "cup", 100), ("bike", "bike", 150))
            negatives = {
                name: [{"image_path": save(tmp_path / f"{stem}{number}.png", colour + number)}]
                for name, stem, colour in names
            }
            row = {"pair_id": number, "pos_prompts": pair, "neg_prompts": ["a cup", "bike"], "distance": 0.5}
            row |= {"tdistance": 0.3 * stage, "stage": stage, "pos_paths": positives, "neg_paths": negatives}
            rows.append(row)
            number += 1
        write(tmp_path, f"stage{stage}", rows)
    write(tmp_path, "test", [{**rows[0], "pair_id": 9, "tdistance": 0.1, "stage": None}])
    return tmp_path


def made(root: Path, **more: Any) -> AffordancePairs:
    data = AffordancePairs(str(root), **{"image_size": 8, "batch_size": 2, "epochs": 3, **more})
    data.setup("fit")
    return data


def test_batches(root: Path) -> None:
    batch = next(iter(made(root, negatives=3, seed=1).train_dataloader()))
    assert set(batch) == {
        "prompt", "affordances", "pos", "neg", "neg_mask", "neg_prompts", "tdistance", "stage", "pair_id", "draw"
    }  # fmt: skip
    assert sorted(batch["prompt"]) == [
        "a new design that has functions of hold, sit", "a new design that has functions of pour, ride"
    ]  # fmt: skip
    assert batch["affordances"][0] in STAGES[0]
    assert batch["neg_prompts"] == [("a cup", "bike")] * 2
    assert batch["pos"].shape == (2, 3, 8, 8)
    assert batch["neg"].shape == (2, 3, 3, 8, 8)
    assert batch["neg_mask"].tolist() == [[True, True, False]] * 2
    red = ((batch["pos"][:, 0, 0, 0] + 1) * 127.5).round().int() // 10
    assert red.tolist() == batch["pair_id"].tolist()
    assert batch["tdistance"].dtype == torch.float32
    assert batch["stage"].tolist() == [0, 0]


def test_the_curriculum_and_its_prompts(root: Path) -> None:
    data = made(root)
    loader = data.train_dataloader()
    seen = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        seen.append({int(pair) for batch in loader for pair in batch["pair_id"]})
    assert seen == [{0, 1}, {2}, {3}]
    assert len(data.prompts()) == 4
    assert data.prompts()[0] == "a new design that has functions of pour, ride"


def test_a_stopped_run_goes_on_with_the_same_images(root: Path) -> None:
    def loader() -> Any:
        return made(root, variants=4, batch_size=1).train_dataloader()

    whole = list(loader())
    first = loader()
    stopped = iter(first)
    next(stopped)
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == len(whole) - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert one["pair_id"].tolist() == other["pair_id"].tolist()
        assert torch.equal(one["pos"], other["pos"])
        assert torch.equal(one["neg"], other["neg"])


def test_images_take_few_variants(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (24, 1, 3))  # 24 x 48
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    path = tmp_path / "ramp.png"
    store = ImageStore(24, variants=4, seed=3)
    store.load([path])
    plain, mirrored, cropped, both = (store.get(path, number) for number in range(4))
    assert torch.equal(plain, torch.from_numpy(ramp[:, 12:36]).permute(2, 0, 1))
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(both, cropped.flip(-1))
    assert not torch.equal(cropped, plain)
    lazy = ImageStore(24, variants=4, memory_bytes=0, seed=3)
    lazy.load([path])
    assert all(torch.equal(lazy.get(path, number), store.get(path, number)) for number in range(4))
    squashed = ImageStore(24, "squash")
    squashed.load([path])
    assert int(squashed.get(path)[0, 0, 0]) < 10
    assert int(squashed.get(path)[0, 0, -1]) > 225


def test_bad_images_are_listed_at_once(root: Path) -> None:
    (root / "0-0.png").unlink()
    (root / "1-1.png").write_text("no image")
    (root / "cup2.png").write_bytes((root / "cup2.png").read_bytes()[:60])

    with pytest.raises(ValueError, match="Images cannot be read, 3 images:") as caught:
        made(root)
    lines = str(caught.value).splitlines()[1:]
    assert [line.rpartition("/")[2].split(" ")[0] for line in lines] == ["0-0.png", "1-1.png", "cup2.png"]
    assert lines[0].endswith("is missing")
    assert "1-1.png is no picture" in lines[1]
    for path in root.glob("*.png"):
        path.unlink()
    rows = [json.loads(line) for line in (root / "stage0.jsonl").read_text().splitlines()]
    rows[0]["pos_paths"] = [f"missing{number}.png" for number in range(30)]
    write(root, "stage0", rows)
    with pytest.raises(ValueError, match=r"44 images:(\n .*){20}\n  and 24 more$"):
        made(root)


def test_malformed_lines_are_listed_at_once(root: Path) -> None:
    good = json.loads((root / "stage1.jsonl").read_text())
    bad = [{**good, "tdistance": 2}, {**good, "pos_prompts": []}, {**good, "neg_paths": ["a.png"]}, [1]]
    bad += [{**good, "pair_id": "x"}, {name: value for name, value in good.items() if name != "tdistance"}]
    write(root, "stage1", bad)
    (root / "stage2.jsonl").write_text("{")
    with pytest.raises(ValueError, match="The pairs cannot be read, 7 problems") as caught:
        read_image_pairs(root)
    problems = [line.partition(".jsonl:")[2] for line in str(caught.value).splitlines()[1:]]
    expected = (
        "1: tdistance must lie in [0, 1], got 2.0",
        "2: pos_prompts must name at least one affordance",
        "3: neg_paths must map concepts to lists of images, got",
        "4: must be an object, got list",
        "5: pair_id must be a whole number, got 'x'",
        "6: 'tdistance' is missing",
        "1: a line must be JSON, got '{'",
    )
    assert all(problem.startswith(text) for problem, text in zip(problems, expected, strict=True))


def test_files_without_numbers_and_with_plain_paths(tmp_path: Path) -> None:
    row = {"pos_prompts": ["sit", "store"], "neg_prompts": ["sofa"], "distance": 0.5, "tdistance": 0.4}
    row |= {
        "pos_paths": [save(tmp_path / "p.png", 1)],
        "neg_paths": {"sofa": [str(tmp_path / save(tmp_path / "n.png", 2))]},
    }
    write(tmp_path, "stage0", [row, row])
    data = made(tmp_path)
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["pair_id"].tolist()) == [0, 1]
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"test\.jsonl must hold at least one pair to test on, got none"):
        data.test_dataloader()


def test_the_test_set(root: Path) -> None:
    data = made(root, samples_per_pair=3, variants=4)
    batches = list(data.test_dataloader())
    assert [batch["pair_id"].tolist() for batch in batches] == [[9, 9, 9]]
    assert batches[0]["stage"].tolist() == [1, 1, 1]
    row = json.loads((root / "test.jsonl").read_text())
    write(root, "test", [{**row, "pos_paths": [], "neg_paths": {}}])
    batch = next(iter(made(root).val_dataloader()))
    assert "pos" not in batch
    assert "neg" not in batch
    assert batch["neg_prompts"] == [("a cup", "bike")]
    write(root, "test", [row, {**row, "pair_id": 10, "pos_paths": []}])
    with pytest.raises(ValueError, match=r"lack images.*1 problem:\n  pair 10 \(cut, rest\) has no positive image"):
        made(root)


def test_training_pairs_need_images(root: Path) -> None:
    row = json.loads((root / "stage1.jsonl").read_text())
    write(root, "stage1", [{**row, "neg_paths": {}}])
    with pytest.raises(ValueError, match=r"pair 2 \(fly, store\) has no negative image"):
        made(root)
    batch = next(iter(made(root, negatives=0).train_dataloader()))
    assert batch["neg"].shape == (2, 0, 3, 8, 8)


def test_bad_input_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder .*none must hold stage0\.jsonl.*`lit-modules pairs ONTOLOGY"):
        AffordancePairs(str(tmp_path / "none")).setup("fit")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"resize": "pad"}, "resize must be of 'crop', 'squash', got 'pad'"),
        ({"template": "a thing"}, "template must have the place"),
        ({"variants": 0}, "variants must be at least 1, got 0"),
    ]
    for changed, message in changes:
        with pytest.raises(ValueError, match=message):
            AffordancePairs(**changed)
    with pytest.raises(ValueError, match="split must be of 'train', 'test', got 'val'"):
        made(root).split("val")
    with pytest.raises(ValueError, match="give the datamodule epochs, or the trainer max_epochs; got None"):
        AffordancePairs(str(root), image_size=8).train_dataloader()
