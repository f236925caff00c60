import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules import DrawnSpecies
from datamodules.few_shot.few_shot import FewShotPairs
from lit_modules.cli import main
from lit_modules.coda.augmentation.armada_lite import ArmadaLite, EditResult, EditSettings
from lit_modules.coda.augmentation.tasks import PairTask
from lit_modules.coda.backends.local import DiffusersEdits
from lit_modules.coda.backends.protocols import BudgetExhausted, ImageEditor, Message, Reply
from lit_modules.coda.core.concepts import Concept, ConfusablePair
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, discs, support
from tests.tiny_pipelines import stable_diffusion_pipeline

SMALL = {"num_images": 4, "min_side": 8}


class FakeEditor:
    """Brightens a picture by what its seed says; an instruction may leave it as it is."""

    def __init__(self) -> None:
        self.identity = "fake editor 1"
        self.edits: list[tuple[str, int]] = []

    def edit(
        self, image: Image.Image, instruction: str, seed: int, steps: int, guidance: float, image_guidance: float
    ) -> Image.Image:
        self.edits.append((instruction, seed))
        if "away" in instruction:
            raise ConnectionError("the editor is away")
        pixels = np.asarray(image, dtype=np.int16)
        noise = np.random.default_rng(seed).integers(10, 60, pixels.shape)
        same = "nothing" in instruction
        return Image.fromarray((pixels + (0 if same else noise)).clip(0, 255).astype(np.uint8))


class Proposer(FakeChat):
    """Proposes as many edits as it is asked for, or says what a script says."""

    def chat(self, messages: Sequence[Message], images: Sequence[Image.Image], *more: Any, **options: Any) -> Reply:
        assert len(images) == 1
        if not self.script:
            number = int(messages[-1]["content"][-1]["text"].partition("Propose ")[2].split()[0])
            self.script = [json.dumps([f"add fog, {place} times" for place in range(number)])]
        return super().chat(messages, images, *more, **options)


def run(
    folder: Path, tasks: list[PairTask], chat: FakeChat | None = None, **more: Any
) -> tuple[EditResult, FakeChat, FakeEditor, dict[str, str]]:
    chat, editor = chat or Proposer(), FakeEditor()
    with Store(folder / "store") as store:
        result = ArmadaLite(store, EditSettings(**SMALL | more), chat, editor).run(tasks)
    return result, chat, editor, store.content_hashes()


def test_each_concept_is_edited_once_whatever_its_pairs_and_nothing_is_made_twice(tmp_path: Path) -> None:
    task = discs(tmp_path)
    green = ConfusablePair(Concept("Red Ring"), task.pair.target)
    both = [task, PairTask(green, support(tmp_path / "rings", "blue", 2), task.target_images)]
    result, chat, editor, hashes = run(tmp_path, both)
    made = [(one.concept, one.made, one.failure) for one in result.concepts]
    assert made == [("Red Disc", 4, None), ("Blue Disc", 4, None), ("Red Ring", 4, None)]
    assert len(chat.asked) == 3 + 3 + 2  # once for each support image
    assert len(editor.edits) == len({seed for _, seed in editor.edits}) == 12
    records = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("red-disc-*/images/*.json")]
    assert {record["source"]["name"] for record in records} == {"red0.png", "red1.png", "red2.png"}
    assert {record["instruction"] for record in records} == {"add fog, 0 times", "add fog, 1 times"}
    assert {(record["accepted"], record["editor"]) for record in records} == {(True, "fake editor 1")}
    _, chat, editor, again = run(tmp_path, both)
    assert (chat.asked, editor.edits, again) == ([], [], hashes)
    next((tmp_path / "store").glob("red-disc-*/images/2.png")).write_bytes(b"damaged")
    _, chat, editor, again = run(tmp_path, both)
    assert (len(chat.asked), len(editor.edits), again) == (0, 1, hashes)
    assert len(run(tmp_path, both, image_guidance=2.0)[2].edits) == 12


def test_the_settings_are_obeyed_and_let_no_markup_in(tmp_path: Path) -> None:
    chat = Proposer(script=['["add fog"]', '["add rain"]'])
    task = discs(tmp_path, ("Red <image> Disc", "Blue Disc"))
    run(tmp_path, [task], chat, num_images=1, prompt="Name {count} edits of {target}.")
    assert "<image>" not in chat.asked[0]
    assert chat.asked[1].startswith('Name 1 edits of "Blue Disc".')
    with pytest.raises(ValueError, match=r"prompt must have the places {target} and {count}, got 'Edit {target}'"):
        EditSettings(prompt="Edit {target}")


def test_answers_that_are_malformed_or_too_short_are_asked_again_and_fail_their_concept_alone(tmp_path: Path) -> None:
    poor = ["I cannot see a picture.", '["add fog"]', "", '["add fog", "add rain"]']
    result, chat, _, _ = run(tmp_path, [discs(tmp_path)], Proposer(script=poor))
    assert [one.failure for one in result.concepts] == [None, None]
    assert "could not be read" in chat.asked[1]
    never = Proposer(script=["no"] * 2)
    result, _, _, _ = run(tmp_path / "b", [discs(tmp_path)], never, retries=1)
    assert [one.made for one in result.concepts] == [0, 4]
    assert "MalformedAnswer: red0.png: The answer holds no list" in str(result.concepts[0].failure)
    away = Proposer(script=['["go away", "stay"]'])
    result, _, _, _ = run(tmp_path / "c", [discs(tmp_path)], away)
    assert [one.failure for one in result.concepts] == ["ConnectionError: the editor is away", None]


def test_edits_that_change_nothing_are_tried_with_other_seeds_and_then_left_out(tmp_path: Path) -> None:
    task = discs(tmp_path)
    chat = Proposer(script=['["change nothing", "add fog"]'])
    result, _, editor, _ = run(tmp_path, [task], chat)
    assert len({seed for text, seed in editor.edits if text == "change nothing"}) == 3
    red = result.concepts[0]
    assert red.made == 3
    assert "red0.png, 'change nothing': the edit changed nothing (0.00 of 255), 3 times" in str(red.failure)
    with Store(tmp_path / "store") as store:
        written = ArmadaLite(store, EditSettings(**SMALL), Proposer(), FakeEditor())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cannot be exported: Red Disc has 3 of 4 images"):
            written.export(tmp_path / "out", [task])
        assert not (tmp_path / "out").exists()
        assert written.export(tmp_path / "out", [task], allow_short=True) == 7


def test_a_used_up_budget_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    class Poor(Proposer):
        def chat(self, *arguments: Any, **more: Any) -> Reply:
            if len(self.asked) == 4:
                raise BudgetExhausted("4 calls are used up.")
            return super().chat(*arguments, **more)

    stopped, _, editor, _ = run(tmp_path, [discs(tmp_path)], Poor())
    assert (stopped.stopped, len(stopped.concepts)) == ("4 calls are used up.", 1)
    _, chat, more, hashes = run(tmp_path, [discs(tmp_path)])
    assert (len(chat.asked), len(editor.edits) + len(more.edits)) == (2, 8)
    assert hashes == run(tmp_path / "whole", [discs(tmp_path)])[3]


def test_a_pipeline_of_diffusers_edits_by_the_instruction(save_tiny: Any, stable_diffusion: str) -> None:
    scheduler, kind = diffusers.DDIMScheduler(clip_sample=False), diffusers.StableDiffusionInstructPix2PixPipeline
    folder = save_tiny(lambda: stable_diffusion_pipeline(scheduler, kind, channels=8))
    editor: ImageEditor = DiffusersEdits(folder, device="cpu", max_side=24)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    given = (3, 2, 7.5, 1.5)
    first = editor.edit(Image.fromarray(pixels), "add fog", *given)
    assert (first.size, first.mode) == ((24, 8 * round(12 / 8)), "RGB")
    assert first.tobytes() == editor.edit(Image.fromarray(pixels), "add fog", *given).tobytes()
    for shown, text, seed in ((pixels, "rain", 3), (255 - pixels, "add fog", 3), (pixels, "add fog", 4)):
        assert first.tobytes() != editor.edit(Image.fromarray(shown), text, seed, *given[1:]).tobytes()
    with pytest.raises(ValueError, match="edits no pictures by instructions, as it does not take image and image_guid"):
        DiffusersEdits(stable_diffusion, device="cpu").edit(Image.fromarray(pixels), "rain", *given)


def test_the_command_writes_what_the_datamodule_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    species = {"num_known": 4, "num_novel": 1, "train_images": 5, "validation_images": 2, "test_images": 2}
    root = tmp_path / "species"
    DrawnSpecies(str(root), drawn_size=32, **species).prepare_data()  # type: ignore[arg-type]
    given = {
        "data": {"class_path": "datamodules.FewShotPairs", "init_args": {"root": str(root), "n_real": 3}},
        "chat": "tests.coda.test_armada_lite.Proposer",
        "store": str(tmp_path / "runs"),
    }
    recipe = tmp_path / "edits.yaml"
    recipe.write_text(yaml.safe_dump(given))
    output = tmp_path / "out"
    line = ["coda", "armada-lite", "-c", str(recipe), "--output", str(output), "--edits.num_images", "4"]
    line += ["--editor", "tests.coda.test_armada_lite.FakeEditor", "--edits.min_side", "8"]
    assert main(line) == 0
    assert "which is not ARMADA" in capsys.readouterr().out
    data = FewShotPairs(str(root), n_real=2, n_synthetic=4, method="armada_lite", synthetic_root=str(output))
    data.setup("fit")
    batches = list(data.train_dataloader())
    origins = [origin for batch in batches for origin in batch["origin"]]
    assert (origins.count("armada_lite"), origins.count("real")) == (8 * len(data.pairs), 4 * len(data.pairs))
    rows = [json.loads(row) for row in (output / "train" / "metadata.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"armada_lite"}
    for batch in batches:
        for answer, path, origin in zip(batch["answer"], batch["path"], batch["origin"], strict=True):
            if origin == "armada_lite":
                assert next(row["class_name"] for row in rows if row["file_name"] in path) == answer
    with pytest.raises(ValueError, match=r"has 4 armada_lite pictures in pair .*, and n_synthetic is 5"):
        FewShotPairs(str(root), n_real=2, n_synthetic=5, method="armada_lite", synthetic_root=str(output)).setup("fit")
