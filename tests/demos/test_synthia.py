import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.drawn import ontology
from lit_modules.demos.shipped import save_weights
from lit_modules.demos.stages import Demo
from lit_modules.demos.synthia import arm, page, story, world
from lit_modules.demos.synthia.arm import ARMS, Arm, World, run_arm
from lit_modules.demos.synthia.scores import Scores, ratio_interval, score_pictures

FOUND = torch.tensor([[[True, True], [True, False]], [[False, False], [False, True]]])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return world.write_pairs(tmp_path / "pairs")


def scores(found: Tensor = FOUND) -> Scores:
    return Scores(found, torch.tensor([[0.25, 0.9], [0.9, 0.9]]))


def test_all_pairs_that_are_not_held_out_are_trained_on_and_the_distant_ones_last(tmp_path: Path) -> None:
    curriculum = world.build_world(tmp_path / "ontology.json")
    trained = {frozenset(pair.pos_prompts) for pair in curriculum.train}
    tested = {frozenset(pair.pos_prompts) for pair in curriculum.test}
    assert (len(trained), len(tested), len(trained & tested)) == (183, 24, 0)
    counts = Counter(name for pair in trained for name in pair)
    assert set(counts) == set(ontology.AFFORDANCES)
    assert min(counts.values()) >= 10
    assert {pair.stage for pair in curriculum.train if pair.distance == 1} == {2}
    distances = [pair.tdistance for stage in curriculum.stages() for pair in stage]
    assert distances == sorted(distances)


def test_shares_and_novelty_count_pictures_that_show_all() -> None:
    assert scores().shown().mean == 0.25
    assert scores().novelty_if_shown().mean == 0.25
    again = Scores.from_plain(json.loads(json.dumps(scores().as_plain())))
    assert torch.equal(again.found, FOUND)
    assert torch.allclose(again.novelty, scores().novelty)


def test_intervals_are_over_rows() -> None:
    hits = torch.tensor([4] * 10 + [0] * 10)
    few, many = ratio_interval(hits[::4], torch.full((5,), 4)), ratio_interval(hits, torch.full((20,), 4))
    assert many.mean == 0.5
    assert 0.2 < many.low < 0.5 < many.high < 0.8
    assert many.high - many.low < few.high - few.low


def test_typical_pair_is_the_median() -> None:
    shown = torch.zeros(5, 4, 2, dtype=torch.bool)
    for row, number in enumerate((4, 0, 2, 3, 1)):
        shown[row, :number] = True
    assert page.typical_row(Scores(shown, torch.zeros(5, 4))) == 2


def test_shipped_recogniser_finds_what_real_drawings_show(pairs: Path, tmp_path: Path) -> None:
    rows = world.read_rows(pairs / "test.jsonl")
    sets = {"held out": rows, "one": world.single_rows(["sit", "pour"]), "trained": rows[:2]}
    real, pictures = story.draw_real(World(tmp_path, None, sets), seed=0)
    assert real["held out"].shown().mean > 0.85
    assert pictures.shape == (24, arm.PICTURES["held out"], 3, 32, 32)
    noise = score_pictures(world.load_parts_recogniser(None), torch.rand(24, 2, 3, 32, 32), rows)
    assert noise.shown().mean < 0.2


def test_arm_tunes_draws_and_scores_once(pairs: Path, tmp_path: Path) -> None:
    shared = World(tmp_path, None, dict.fromkeys(arm.PICTURES, world.read_rows(pairs / "test.jsonl")[:2]))
    world.write_base(shared.base, None)
    small = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--data.positives=1"]
    for tuned in (Arm("no contrast", "random", negatives=0), Arm("curriculum", "staged")):
        run_arm(tuned, shared, seed=0, options=small)
        base, model = (
            (folder / "unet" / "diffusion_pytorch_model.safetensors")
            for folder in (shared.base, tmp_path / tuned.slug / "model")
        )
        assert base.read_bytes() != model.read_bytes()
    written = tmp_path / "curriculum" / "scores.json"
    before = written.stat().st_mtime_ns
    run_arm(Arm("curriculum", "staged"), shared, seed=0, options=["--trainer.max_epochs=0"])
    assert written.stat().st_mtime_ns == before
    results, pictures = arm.read_arm(Arm("curriculum", "staged"), shared)
    assert set(results) == set(arm.PICTURES)
    assert (pictures.shape, pictures.dtype) == ((2, arm.PICTURES["held out"], 3, 32, 32), torch.uint8)


def test_page_leads_with_the_picture_and_hides_the_tables(tmp_path: Path) -> None:
    rows = [{"pos_prompts": ["sit", "pour"], "tdistance": 0.5}, {"pos_prompts": ["fly", "<b>"], "tdistance": 1.0}]
    names = [*(each.name for each in ARMS), page.REAL]
    found = torch.rand(2, 4, 2) > 0.3
    found[:, 0] = True
    each = Scores(found, torch.rand(2, 4))
    results = {name: {"one": each, "trained": each, "held out": each} for name in names}
    pictures = {name: torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8) for name in names}
    page.plot(tmp_path / "report.png", results, pictures, rows)
    page.write_page(tmp_path / "report.html", results, pictures, rows)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.index('<img class="lead"') < text.index("<details>") < text.index("<table>")
    assert text.count("<figure>") == 2 * len(names) * 4
    assert "&lt;b&gt;" in text
    assert "<b>" not in text


def test_claims_hold_and_fail_by_the_numbers() -> None:
    good = {
        "one, frozen": 0.9,
        "one, random order": 0.9,
        "both, frozen": 0.2,
        "both, no contrast": 0.5,
        "both, random order": 0.5,
        "both, curriculum": 0.6,
        "novelty, frozen": 0.1,
        "novelty, no contrast": 0.3,
        "novelty, random order": 0.4,
        "novelty, curriculum": 0.4,
    }
    changes: list[dict[str, Any]] = [
        {"both, frozen": 0.55},
        {"novelty, curriculum": 0.1},
        {"novelty, no contrast": 0.4},
        {"both, curriculum": 0.4},
    ]
    for number, (claim, change) in enumerate(zip(story.CLAIMS, changes, strict=True)):
        assert claim.holds(good)
        assert not claim.holds(good | change), number
        assert set(claim.names) <= set(good)


def test_base_and_recogniser_are_trained_anew(pairs: Path, tmp_path: Path) -> None:
    small = ["--trainer.max_steps=1", "--data.num_images=36", "--data.nameless=4", "--data.batch_size=4"]
    small += ["--data.validation_size=18", "--trainer.enable_progress_bar=false"]
    save_weights(world.train_base(Demo(tmp_path), pairs, 0, small), world.BASE, tmp_path / "weights")
    recogniser, report = world.train_parts_recogniser(0, num_drawings=64, num_steps=2)
    assert set(report) >= {"recall", "precision"}
    save_weights(recogniser.state_dict(), world.RECOGNISER, tmp_path / "weights")
    folder = world.write_base(tmp_path / "model", tmp_path / "weights")
    shared = World(tmp_path, tmp_path / "weights", dict.fromkeys(arm.PICTURES, world.single_rows(["sit"])))
    images = arm.draw_rows(folder, shared.sets["one"], 1, seed=0)
    assert score_pictures(world.load_parts_recogniser(shared.weights), images, shared.sets["one"]).found.shape == (
        1,
        1,
        1,
    )
