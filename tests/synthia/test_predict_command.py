"""``lit-modules predict`` draws the test pairs of a recipe and keeps the pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lit_modules.cli import main

SMALL = [
    "--model.backbone.init_args.image_size=16",
    "--model.backbone.init_args.widths=[8,16]",
    "--model.backbone.init_args.num_steps=2",
    "--data.image_size=16",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
]


@pytest.mark.parametrize(("recipe", "number"), [("synthia/drawn.yaml", 4), ("synthia/drawn_pretrain.yaml", 2)])
def test_a_recipe_predicts(drawn_curriculum: Path, tmp_path: Path, recipe: str, number: int) -> None:
    pairs = recipe == "synthia/drawn.yaml"
    more = [f"--data.curriculum={drawn_curriculum}", "--data.positives=1"] if pairs else ["--data.num_images=4"]
    more += ["--data.validation_size=2", "--model.images_per_prompt=2", f"--trainer.default_root_dir={tmp_path}"]
    main(["predict", "-c", recipe, *SMALL, *more, "--trainer.callbacks=null"])
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == number
    assert all(len(row["image"]) == 2 for row in rows)
    with Image.open(tmp_path / rows[-1]["image"][1]) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
