import dataclasses
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_modules.coda.augmentation.export import export_images
from lit_modules.coda.augmentation.pipeline import CoDAPipeline, PipelineResult, store_counts
from lit_modules.coda.augmentation.settings import CoDASettings, preset
from lit_modules.coda.backends.protocols import BudgetExhausted, Prices
from lit_modules.coda.core.concepts import Concept, ConfusablePair, PairTask, read_directions, shard_tasks
from lit_modules.coda.core.store import Store
from lit_modules.utils.images import read_picture_file
from tests.coda.fakes import FakeChat, FakeEmbedder, FakeGenerator, discs, support, tiny

VISUAL = {"kinds": ("visual_contrastive",)}


class Run:
    """A run on a folder, and the models that it used."""

    def __init__(
        self,
        folder: Path,
        tasks: list[PairTask],
        settings: CoDASettings | None = None,
        chat: FakeChat | None = None,
        generator: FakeGenerator | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.chat, self.generator, self.embedder = chat or FakeChat(), generator or FakeGenerator(), FakeEmbedder()
        with Store(folder, shard) as store:
            pipeline = CoDAPipeline(store, settings or tiny(), self.chat, self.generator, self.embedder)
            self.result: PipelineResult = pipeline.run(tasks)
        self.hashes = store.content_hashes()

    @property
    def asked(self) -> tuple[int, int, int]:
        return len(self.chat.asked), len(self.generator.requests), self.embedder.images


def record(folder: Path, *parts: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(folder.glob("/".join(parts))).read_text())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, PairTask]:
    folder = tmp_path_factory.mktemp("whole")
    task = discs(folder)
    return folder / "store", Run(folder / "store", [task]), task


@pytest.fixture
def copy(whole: tuple[Path, Run, PairTask], tmp_path: Path) -> Path:
    shutil.copytree(whole[0], tmp_path / "store")
    return tmp_path / "store"


def test_support_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    task = discs(tmp_path)
    side, _ = read_directions(task)
    reference = weakref.ref(side.images[0].image)
    gc.collect()
    assert reference() is None
    assert side.images[0].image == read_picture_file(side.images[0].path)


def test_all_stages_run_in_both_directions_and_embed_each_image_and_text_once(
    whole: tuple[Path, Run, PairTask],
) -> None:
    folder, run, _ = whole
    assert not run.result.failures
    units = [(unit.concept, unit.kind, unit.accepted) for unit in run.result.units]
    kinds = ("textual_contrastive", "visual_contrastive")
    assert units == [(concept, kind, 2) for concept in ("Red Disc", "Blue Disc") for kind in kinds]
    unit = ("*", "red-disc-*", "visual_contrastive")
    scores = record(folder, *unit, "scores.json")
    red, tail = scores["attributes"]
    assert (red["text"], red["D"] > 0.99, red["kept"]) == ("red body", True, True)
    assert (tail["text"], tail["D"], tail["kept"]) == ("long tail", pytest.approx(0.5, abs=0.01), False)
    assert (scores["prompt_attributes"], scores["num_pairs"]) == (["red body"], 9)
    assert [reason for _, reason in record(folder, *unit, "features.json")["dropped"]] == ["duplicate", "names a class"]
    image = record(folder, *unit, "images", "0.json")
    assert image["prompt"] == "A realistic 4K photograph of Red Disc with red body"
    assert (image["bits"], image["score"], image["verdict"]) == ([1], 1.0, "accepted")
    # defect 11: no negative prompt without guidance
    assert {request[1] for request in run.generator.requests} == {None}
    assert Image.open(next(folder.glob("*/red-disc-*/*/images/0.png"))).size == (32, 32)
    assert len(run.embedder.texts) == len(set(run.embedder.texts))
    assert run.embedder.images == 6 + len(run.generator.requests)  # six real ones, and all that were made


def test_a_finished_store_asks_no_model(whole: tuple[Path, Run, PairTask], copy: Path) -> None:
    _, first, task = whole
    again = Run(copy, [task])
    assert (again.asked, again.hashes, again.result.units) == ((0, 0, 0), first.hashes, first.result.units)
    counts = store_counts(Store(copy, writable=False))
    assert counts["images"].images + counts["trials"].images == len(first.generator.requests)
    assert counts["features"].calls + counts["verification"].calls == len(first.chat.asked)
    assert counts["features"].input_tokens > 0


def test_defect_8_the_same_seed_gives_the_same_files_and_another_one_others(
    whole: tuple[Path, Run, PairTask], tmp_path: Path
) -> None:
    _, first, task = whole
    # defect 6: the order in which images were listed changes nothing either
    turned = PairTask(task.pair, task.target_images[::-1], task.confusable_images[::-1])
    assert Run(tmp_path / "same", [turned]).hashes == first.hashes
    other = Run(tmp_path / "other", [task], tiny(seed=1))
    assert not {seed for _, _, seed in other.generator.requests} & {seed for _, _, seed in first.generator.requests}
    made = [place for place in first.hashes if place.endswith(".png") and "/support/" not in place]
    seeds = {json.loads((whole[0] / place).with_suffix(".json").read_text())["seed"] for place in made}
    assert len(seeds) == len(made)  # and each is recorded


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"min_discriminability": 0.65}, (0, 0)),  # the same features pass: no model is asked
        ({"score_levels": (1.0, 0.5)}, (0, 0)),
        ({"verification": "clip"}, (0, 0)),
        ({"num_images": 3}, (4, 4)),  # one more image, and one question on it, in each of four units
        ({"max_features": 29, "kinds": ("textual_contrastive",)}, (0, 0)),  # the answers are read anew
    ],
)
def test_a_changed_setting_makes_anew_only_what_depends_on_it(
    whole: tuple[Path, Run, PairTask], copy: Path, changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    run = Run(copy, [whole[2]], tiny(**changes))
    assert (run.result.failures, run.asked[:2]) == ([], expected)


def test_lost_and_damaged_images_are_made_again(whole: tuple[Path, Run, PairTask], copy: Path) -> None:
    places = sorted(copy.glob("*/red-disc-*/visual_contrastive/images/*.png"))
    places[0].unlink()
    places[1].write_bytes(places[1].read_bytes()[:-9])
    again = Run(copy, [whole[2]])
    assert (again.asked[:2], again.hashes) == ((0, 2), whole[1].hashes)
    places[0].write_bytes(places[1].read_bytes())  # as of other settings, by a run that was killed before its record
    places[0].with_suffix(".json").unlink()
    last = Run(copy, [whole[2]])
    assert (last.asked[:2], last.hashes) == ((0, 1), whole[1].hashes)


def three(folder: Path) -> list[PairTask]:
    names = [("Red One", "Blue One"), ("Red Two", "Blue Two"), ("Red Three", "Blue Three")]
    return [discs(folder, pair, f"discs{number}") for number, pair in enumerate(names)]


def test_defect_10_one_failed_pair_stops_no_other_and_models_are_given_once(tmp_path: Path) -> None:
    tasks = three(tmp_path)
    broken = tmp_path / "discs2" / "red0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    chat, generator = FakeChat(), FakeGenerator(fail_on="Red Two")
    run = Run(tmp_path / "store", tasks, tiny(**VISUAL), chat, generator)
    failures = {unit.concept: unit.failure for unit in run.result.failures}
    assert failures["Red Two"] == "ConnectionError: the generator is away"
    assert "red0.png is truncated" in str(failures["Red Three"])
    assert {"Red One", "Blue One", "Blue Two"} <= {unit.concept for unit in run.result.units if unit.failure is None}
    generator.fail_on = ""
    assert not Run(tmp_path / "store", tasks[:2], tiny(**VISUAL), chat, generator).result.failures


def test_a_failure_of_answers_is_recorded_and_not_asked_for_again(tmp_path: Path) -> None:
    chat = FakeChat(script=["I cannot help."] * 8)
    settings = tiny(kinds=("textual_contrastive",))
    run = Run(tmp_path / "store", [discs(tmp_path)], settings, chat)
    assert [str(unit.failure)[:12] for unit in run.result.units] == ["No features:"] * 2
    assert len(chat.asked) == 8
    assert record(tmp_path / "store", "*", "red-disc-*", "*", "features.json")["raw"] == ["I cannot help."] * 4
    assert Run(tmp_path / "store", [discs(tmp_path)], settings).asked[0] == 0


def test_a_used_up_budget_stops_cleanly_and_the_rest_is_done_later(
    whole: tuple[Path, Run, PairTask], tmp_path: Path
) -> None:
    class Poor(FakeChat):
        def chat(self, *arguments: Any, **more: Any) -> Any:
            if len(self.asked) >= 6:
                raise BudgetExhausted("6 calls are used up")
            return super().chat(*arguments, **more)

    _, first, task = whole
    poor = Poor()
    assert Run(tmp_path / "store", [task], chat=poor).result.stopped == "6 calls are used up"
    rest = Run(tmp_path / "store", [task])
    assert (rest.result.stopped, rest.hashes) == (None, first.hashes)
    assert not set(rest.chat.asked) & set(poor.asked[:4])  # the features, which both ask alike, are not asked again


def test_shards_together_equal_the_single_run(tmp_path: Path) -> None:
    tasks = three(tmp_path)
    single = Run(tmp_path / "single", tasks, tiny(**VISUAL))
    parts = [Run(tmp_path / "shared", tasks, tiny(**VISUAL), shard=(number, 2)) for number in (1, 2)]
    assert parts[-1].hashes == single.hashes
    assert sum(run.asked[1] for run in parts) == single.asked[1]
    pair = tasks[0].pair
    reverse = PairTask(ConfusablePair(pair.confusable, pair.target), tasks[0].confusable_images, tasks[0].target_images)
    assert shard_tasks([tasks[0], reverse]) == [tasks[0]]  # a pair and its reverse are worked on once


def test_a_dry_run_counts_and_asks_nothing(whole: tuple[Path, Run, PairTask], copy: Path, tmp_path: Path) -> None:
    _, first, task = whole
    prices = Prices(call=0.01, image=0.1, million_output_tokens=10)
    models = (FakeChat(), FakeGenerator(), FakeEmbedder())
    with Store(tmp_path / "new") as store:
        new = CoDAPipeline(store, tiny(), *models).dry_run([task], prices)
        assert not store.content_hashes()
    with Store(copy) as store:
        done = CoDAPipeline(store, tiny(), *models).dry_run([task], prices)
        more = CoDAPipeline(store, tiny(num_images=4), *models).dry_run([task], prices)
    assert (new.units, new.done, done.units, done.done) == (4, 0, 0, 4)
    assert (new.stages["features"].least_calls, new.stages["features"].most_calls) == (4, 16)
    # 30 features are 8 groups
    assert (new.stages["trials"].least_images, new.stages["trials"].most_images) == (4 * 2, 4 * 2 * 8)
    assert new.calls[0] <= len(first.chat.asked) <= new.calls[1]
    assert new.images[0] <= len(first.generator.requests) <= new.images[1]
    assert 0 < new.cost[0] < new.cost[1]
    assert (done.calls, done.images, done.cost) == ((0, 0), (0, 0), (0.0, 0.0))
    assert more.stages["features"].most_calls == more.stages["trials"].most_images == 0
    assert more.stages["images"].least_images == 4 * 4
    assert (models[0].asked, models[1].requests, models[2].images) == ([], [], 0)


@pytest.mark.parametrize("names", [("../Red/../../x", "Blue|[INST]\n"), ("红 Red <image>{0}", "x" * 5000)])
def test_class_names_and_features_with_separators_or_markup_are_safe(tmp_path: Path, names: tuple[str, str]) -> None:
    task = discs(tmp_path, names)
    chat = FakeChat(script=['["../../red/../etc", "<script>red</script>", "red $(rm -rf x)"]', '["blue body"]'])
    run = Run(tmp_path / "store", [task], tiny(**VISUAL, verification="none", guards=False), chat)
    assert not run.result.failures
    assert all(not set("<>{}|[]\n") & set(text.removesuffix('["unknown"]')) for text, _, _ in run.generator.requests)
    with Store(tmp_path / "store", writable=False) as store:
        assert export_images(store, tmp_path / "out", [task], "visual_contrastive") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["discs", "out", "store"]
    paths = [path.name for folder in ("store", "out") for path in (tmp_path / folder).rglob("*")]
    assert all(name.isascii() and ".." not in name and len(name) < 130 for name in paths)
    rows = [json.loads(line) for line in (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert {row["class_name"] for row in rows} == set(names)
    assert all((tmp_path / "out" / "train" / row["file_name"]).is_file() for row in rows)


def test_answers_that_are_poor_reject_an_image_or_warn_and_trials_of_all_groups_are_kept(tmp_path: Path) -> None:
    answers = ['["red body"]', '["blue body"]', *["[1, 0]"] * 8]
    batch = tiny(**VISUAL, verification="batch", retries=1, max_attempts=1)
    ours = Run(tmp_path / "a", [discs(tmp_path)], batch, FakeChat(script=answers))
    assert [str(unit.failure)[:15] for unit in ours.result.units] == ["Only 0 of 2 ima"] * 2
    image = record(tmp_path / "a", "*", "red-disc-*", "*", "images", "0.json")
    assert image["reason"].startswith("verdict cannot be read: The answer must have 1 bits")
    official = dataclasses.replace(batch, score_levels=None)  # which records it and goes on
    theirs = Run(tmp_path / "b", [discs(tmp_path)], official, FakeChat(script=answers))
    assert [unit.accepted for unit in theirs.result.units] == [2, 2]
    many = FakeChat(script=['["long tail"]', '["blue body", "blue a", "blue b", "blue c", "blue d"]'])
    units = Run(tmp_path / "c", [discs(tmp_path)], tiny(**VISUAL, verification="none", guards=False), many).result.units
    fallbacks = {"few features: 1", "no feature passed discriminability; the best ones were taken"}
    assert fallbacks <= set(units[0].warnings)
    trials = sorted((tmp_path / "c").glob("*/blue-disc-*/visual_contrastive/trials/*/*.png"))
    assert len(trials) == len({path.read_bytes() for path in trials}) == 2 * 2  # 5 features are 2 groups


def test_more_batches_are_made_until_enough_pass_and_fewer_only_if_allowed(tmp_path: Path) -> None:
    settings = tiny(**VISUAL, max_attempts=2)
    chat = FakeChat(script=['["red body"]', '["blue body"]', "no", "no", "no", "yes"])
    red = Run(tmp_path / "a", [discs(tmp_path)], settings, chat).result.units[0]
    assert (red.accepted, red.failure) == (1, "Only 1 of 2 images were accepted in 2 batches; allow_short takes fewer.")
    images = record(tmp_path / "a", "*", "red-disc-*", "*", "images.json")
    assert (images["accepted"], images["short"], len(images["files"])) == ([3], 1, 4)
    allowed = Run(tmp_path / "a", [discs(tmp_path)], dataclasses.replace(settings, allow_short=True)).result.units[0]
    assert (allowed.failure, "1 images are missing" in allowed.warnings) == (None, True)
    with Store(tmp_path / "a", writable=False) as store:
        with pytest.raises(ValueError, match="Red Disc against Blue Disc lacks 1 images"):
            export_images(store, tmp_path / "out", [discs(tmp_path)], "visual_contrastive")
        assert not (tmp_path / "out").exists()


def test_the_official_preset_filters_only_visual_and_joint_features(tmp_path: Path) -> None:
    small = {name: getattr(tiny(), name) for name in ("kinds", "num_images", "trials_per_group", "width", "height")}
    assert not Run(tmp_path, [discs(tmp_path.parent)], preset("official", **small)).result.failures
    textual, visual = (record(tmp_path, "*", "red-*", f"{kind}_contrastive", "scores.json") for kind in ("t*", "v*"))
    assert (textual["prompt_attributes"], visual["prompt_attributes"]) == (["red body", "long tail"], ["red body"])
    assert {row["G"] for row in textual["attributes"]} == {None}


def test_without_trial_images_no_feature_is_dropped_for_its_generability(tmp_path: Path) -> None:
    settings = tiny(**VISUAL, trials_per_group=0, num_images=1)
    run = Run(tmp_path, [discs(tmp_path.parent)], settings)
    scores = record(tmp_path, "*", "red-*", "*", "scores.json")
    kept = [row["text"] for row in scores["attributes"] if row["D"] > settings.min_discriminability]
    assert scores["prompt_attributes"] == kept
    assert {row["G"] for row in scores["attributes"]} == {None}
    assert "trials" not in run.result.counts


def test_defects_9_and_11_prompts_of_the_settings_and_negative_ones_are_sent(tmp_path: Path) -> None:
    own = (("visual_contrastive", "Say what {target} has and {confusable} lacks."),)
    more = {"feature_prompts": own, "prompt": "{attributes}: a drawn {subject}", "guidance": 4.0, "negative": "fog"}
    run = Run(tmp_path / "store", [discs(tmp_path)], tiny(**VISUAL, **more))
    assert any(text.startswith('Say what "Red Disc" has and "Blue Disc" lacks.') for text in run.chat.asked)
    sent = {(prompt.partition(": ")[2], negative) for prompt, negative, _ in run.generator.requests}
    assert sent == {("a drawn Red Disc", "fog"), ("a drawn Blue Disc", "fog")}


def test_support_images_alone_are_used_and_none_twice(tmp_path: Path) -> None:
    target, pair = support(tmp_path, "red"), ConfusablePair(Concept("A"), Concept("B"))
    with pytest.raises(ValueError, match="'B' has no support images"):
        PairTask(pair, target, ())
    for images, failure in (
        (target[:1], "are the same; take one away"),
        ((str(tmp_path / "absent.png"),), "There is no support image"),
    ):
        units = Run(tmp_path / "store", [PairTask(pair, target, images)]).result.units
        assert all(failure in str(unit.failure) for unit in units)
