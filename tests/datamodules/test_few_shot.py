import io
import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device
from PIL import Image

from datamodules.few_shot.few_shot import FewShotPairs
from datamodules.few_shot.pairs import pair_id
from datamodules.few_shot.questions import OFFICIAL_EVALUATION_QUESTION, join_options
from datamodules.few_shot.selection import crop_or_flip as changed

NAMES = ("Puff Adder", "Adder", "Southeastern Five-lined Skink")
PAIRS = [{"target": "Puff Adder", "confusable": "Adder"}, {"target": NAMES[2], "confusable": "Adder"}]


def photo(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, first: int, number: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        photo(first + place).save(folder / f"{place:03d}{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for place, name in enumerate(NAMES):
        fill(folder / "train" / name.replace(" ", "_"), 100 * place, 8)
        fill(folder / "validation" / name.replace(" ", "_"), 100 * place + 20, 4)
        fill(folder / "test" / name.replace(" ", "_"), 100 * place + 40, 6)
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    return folder


@pytest.fixture
def make(root: Path) -> Callable[..., FewShotPairs]:
    def build(**given: Any) -> FewShotPairs:
        data = FewShotPairs(**{"root": str(root), "n_real": 2, **given})
        data.setup("fit")
        return data

    return build


def all_rows(loader: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in loader:
        for place in range(len(batch["prompt"])):
            rows.append({name: column[place] for name, column in batch.items()})
    return rows


def trained(data: FewShotPairs) -> list[dict[str, Any]]:
    return sorted(all_rows(data.train_dataloader()), key=lambda row: int(row["index"]))


# --- batches


def test_a_sample_is_one_question_about_exactly_one_picture(make: Callable[..., FewShotPairs]) -> None:
    data = make(n_real=3)
    assert len(data.split("train")) == 2 * 2 * 3
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert {len(column) for column in batch.values()} == {len(batch["label"])}
            for row in range(len(batch["label"])):
                assert isinstance(batch["image"][row], Image.Image)
                assert batch["image"][row].mode == "RGB"
                assert "<image>" not in batch["prompt"][row]
                options = batch["options"][row]
                assert join_options(options) in batch["prompt"][row]
                assert options[batch["answer_option"][row]] == batch["answer"][row]
                assert data.classes[batch["label"][row]] == batch["answer"][row]
                assert batch["option_label"][row][batch["answer_option"][row]] == batch["label"][row]
                assert batch["answer"][row].replace(" ", "_") in batch["path"][row]


def test_the_picture_is_that_of_the_answer(make: Callable[..., FewShotPairs], root: Path) -> None:
    for row in trained(make()):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(root / row["path"])))


def test_names_are_shown_as_given_and_officially_with_small_letters(make: Callable[..., FewShotPairs]) -> None:
    assert NAMES[2] in {row["answer"] for row in trained(make())}
    data = make(preset="official")
    assert "Southeastern five-lined skink" in {row["answer"] for row in trained(data)}
    batch = next(iter(data.val_dataloader()))
    assert batch["prompt"][0] == OFFICIAL_EVALUATION_QUESTION.replace("{options}", join_options(batch["options"][0]))
    default = make()
    asked, learnt = next(iter(default.val_dataloader()))["prompt"][0], trained(default)[0]["prompt"]
    assert asked.split(":")[0] == learnt.split(":")[0]  # one question in training and evaluation


def test_options_are_asked_in_both_orders_and_learnt_in_either(make: Callable[..., FewShotPairs]) -> None:
    data = make(n_real=5)
    rows = all_rows(data.val_dataloader())
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["query"], first["order"], second["order"]) == (second["query"], 0, 1)
        assert first["options"] == second["options"][::-1]
        assert first["path"] == second["path"]
    assert len({row["options"] for row in rows if row["order"] == 0 and row["pair_id"] == rows[0]["pair_id"]}) == 2
    assert {int(row["answer_option"]) for row in trained(data)} == {0, 1}
    assert len(all_rows(make(n_orders=1).val_dataloader())) == len(rows) // 2


def test_batches_depend_on_the_seed_alone(make: Callable[..., FewShotPairs]) -> None:
    def text(data: FewShotPairs) -> list[tuple[str, str]]:
        return [(row["path"], row["prompt"]) for row in all_rows(data.train_dataloader())]

    assert text(make()) == text(make())
    assert text(make()) != text(make(seed=1))
    loader = make().train_dataloader()
    first = [row["prompt"] for row in all_rows(loader)]
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert [row["prompt"] for row in all_rows(loader)] != first


def test_the_place_of_the_folder_and_its_listing_do_not_matter(
    make: Callable[..., FewShotPairs], root: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    for path in sorted(root.rglob("*.png"), reverse=True):  # written in another order
        target = moved / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (moved / "pairs.json").write_text(json.dumps(PAIRS))
    for name in ("train", "test"):
        assert [s.picture.name for s in make(n_query=3).split(name).samples] == [
            s.picture.name for s in make(root=str(moved), n_query=3).split(name).samples
        ]


def test_classifiers_get_one_tensor_and_mixed_labels(make: Callable[..., FewShotPairs]) -> None:
    batch = next(iter(make(image_size=16).train_dataloader()))
    assert batch["image"].shape == (5, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() >= 0
    assert 0.5 < batch["image"].max() <= 1
    for mix in ("cutmix", "mixup"):
        loader = make(image_size=16, mix=mix).train_dataloader()
        batch = next(iter(loader))
        torch.testing.assert_close(batch["label_weights"].sum(1), torch.ones(5))
        assert (batch["label_weights"].gather(1, batch["label"][:, None]) > 0).any()
        assert torch.equal(next(iter(loader))["image"], batch["image"])
    assert "label_weights" not in next(iter(make(image_size=16, mix="mixup").val_dataloader()))


def test_batches_move_to_devices_and_workers(make: Callable[..., FewShotPairs]) -> None:
    data = make(num_workers=0)
    batch = next(iter(data.train_dataloader()))
    moved = move_data_to_device(batch, torch.device("cpu"))
    assert moved["prompt"] == batch["prompt"]
    assert moved["image"][0] is batch["image"][0]
    copied = pickle.loads(pickle.dumps(data.split("train")))
    assert copied[[0]]["prompt"] == data.split("train")[[0]]["prompt"]
    assert len(data.split("train")[1]["prompt"]) == len(data.split("test")[1]["prompt"]) == 1


# --- supports, queries, baselines


def test_supports_are_nested_and_queries_stay(make: Callable[..., FewShotPairs]) -> None:
    def support(**given: Any) -> set[str]:
        return {row["path"] for row in trained(make(**given))}

    def asked(**given: Any) -> list[str]:
        return [row["path"] for row in all_rows(make(n_query=2, **given).test_dataloader())]

    sizes = [support(n_real=number) for number in (1, 2, 5, 8)]
    assert all(small < large for small, large in pairwise(sizes))
    assert support(n_real=2, seed=1) != sizes[1]
    assert asked(n_real=1) == asked(n_real=5) == asked(n_real=5, seed=1)
    assert asked() != asked(query_seed=1)
    assert len(set(asked())) == 6
    assert set(asked()) < {row["path"] for row in all_rows(make(n_query=4).test_dataloader())}


def test_a_class_has_the_same_support_in_all_of_its_pairs(make: Callable[..., FewShotPairs]) -> None:
    rows = [row for row in trained(make()) if row["answer"] == "Adder"]
    by_pair = [{row["path"] for row in rows if row["pair_id"] == pair_id(p["target"], "Adder")} for p in PAIRS]
    assert by_pair[0] == by_pair[1]
    assert len(by_pair[0]) == 2


def test_queries_kept_back_from_training_are_never_supports(make: Callable[..., FewShotPairs], root: Path) -> None:
    data = make(query_from="train", n_query=3, n_real=5)
    learnt = {row["path"] for row in trained(data)}
    asked = {row["path"] for row in all_rows(data.test_dataloader())}
    assert not learnt & asked
    assert len(asked) == 9
    assert {path.split("/")[0] for path in asked} == {"train"}
    with pytest.raises(ValueError, match="Adder has 5 training pictures, and 6 are needed"):
        make(query_from="train", n_query=3, n_real=6)


@pytest.mark.parametrize("method", ["crop", "flip", "flip_horizontal"])
def test_baselines_make_as_many_pictures_as_asked(make: Callable[..., FewShotPairs], method: str) -> None:
    for real, made in ((5, 1), (5, 3), (5, 5), (2, 7)):
        rows = trained(make(n_real=real, n_synthetic=made, method=method))
        for name in ("Puff Adder", NAMES[2]):
            origins = [row["origin"] for row in rows if row["answer"] == name]
            assert origins.count("real") == real
            assert origins.count(method) == made
    rows = trained(make(n_real=0, n_synthetic=4, n_source=2, method=method))
    assert {row["origin"] for row in rows} == {method}
    assert len({row["path"] for row in rows}) == 2 * 3
    again = trained(make(n_real=0, n_synthetic=4, n_source=2, method=method))
    assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in again]


def test_crops_and_flips_are_those_of_the_baselines() -> None:
    image = photo(0, (100, 50))
    crops = [changed(image, "crop", str(key)) for key in range(200)]
    widths, heights = ([crop.size[axis] for crop in crops] for axis in (0, 1))
    assert 30 <= min(widths) < 36 < 94 < max(widths) <= 100
    assert 15 <= min(heights) < 19 < 46 < max(heights) <= 50
    turned = [changed(image, "flip", str(key)).tobytes() for key in range(200)]
    sideways = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    upside_down = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    assert 70 < turned.count(sideways) < 130
    assert turned.count(sideways) + turned.count(upside_down) == 200
    assert {changed(image, "flip_horizontal", str(key)).tobytes() for key in range(9)} == {sideways}


def store(root: Path, kind: str = "visual", number: int = 3, rejected: int = 1) -> Path:
    place = root.parent / "store"
    for p, pair in enumerate(PAIRS):
        for r, role in enumerate(("target", "confusable")):
            images = place / pair_id(pair["target"], pair["confusable"]) / role / kind / "images"
            fill(images, 1000 + 100 * (2 * p + r), number + rejected)
            for index in range(number + rejected):
                record = {"accepted": index >= rejected, "seed": index}
                (images / f"{index:03d}.json").write_text(json.dumps(record))
    return place


def test_synthetic_pictures_come_from_the_store_if_they_were_accepted(
    make: Callable[..., FewShotPairs], root: Path
) -> None:
    place = store(root)
    data = make(method="synthetic", n_synthetic=2, synthetic_root=str(place))
    rows = [row for row in trained(data) if row["origin"] == "synthetic"]
    assert len(rows) == 2 * 2 * 2
    assert all(Path(row["path"]).stem in ("001", "002") for row in rows)
    assert all(row["path"].startswith(f"{row['pair_id']}/{row['role']}/") for row in rows)
    with pytest.raises(
        ValueError, match=r"Puff Adder has 3 synthetic pictures in pair puff-adder--adder-.*; make more"
    ):
        make(method="synthetic", n_synthetic=4, synthetic_root=str(place))
    store(root, "textual")
    with pytest.raises(ValueError, match="holds the kinds textual, visual; give synthetic_kind"):
        make(method="synthetic", n_synthetic=2, synthetic_root=str(place))
    chosen = trained(make(method="synthetic", n_synthetic=1, synthetic_root=str(place), synthetic_kind="textual"))
    assert {row["origin"] for row in chosen} == {"real", "textual"}
    for path in place.rglob("002.json"):
        path.write_text("{")
    with pytest.raises(ValueError, match=r"002.png has no record 002.json that says whether it was accepted"):
        make(method="synthetic", n_synthetic=1, synthetic_root=str(place), synthetic_kind="textual")
    with pytest.raises(FileNotFoundError, match="There is no folder of synthetic pictures"):
        make(method="synthetic", n_synthetic=1, synthetic_root=str(place / "none"))


def test_synthetic_pictures_come_from_a_folder_of_classes(make: Callable[..., FewShotPairs], root: Path) -> None:
    for place, name in enumerate(NAMES):
        fill(root.parent / "made" / name.replace(" ", "_"), 2000 + 100 * place, 3)
    rows = trained(make(method="synthetic", n_synthetic=3, synthetic_root=str(root.parent / "made")))
    assert len(rows) == 2 * 2 * 5
    for row in rows:
        assert row["answer"].replace(" ", "_") in row["path"]


def test_further_pictures_may_be_drawn_with_a_probability(make: Callable[..., FewShotPairs]) -> None:
    given = {"n_real": 4, "n_synthetic": 2, "method": "crop", "sampling": "probability", "batch_size": 2}
    data = make(**given)
    loader, origins = data.train_dataloader(), []
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        origins += [row["origin"] for row in all_rows(loader)]
    assert len(origins) == 6 * 2 * 2 * 4
    assert 0.3 < origins.count("crop") / len(origins) < 0.7
    assert {row["origin"] for row in trained(make(**given, synthetic_probability=0.0))} == {"real"}
    assert {row["origin"] for row in trained(make(**given, synthetic_probability=1.0))} == {"crop"}


def test_one_pair_may_be_taken_alone(make: Callable[..., FewShotPairs]) -> None:
    chosen = pair_id("Puff Adder", "Adder")
    data = make(pair=chosen)
    assert {row["pair_id"] for row in trained(data)} == {chosen}
    assert data.num_classes == 2
    with pytest.raises(ValueError, match=f"pair must be one of {chosen}, .*, got 'x'"):
        make(pair="x")


def test_known_concepts_are_rehearsed_and_asked_about(make: Callable[..., FewShotPairs], root: Path) -> None:
    for place, name in enumerate(("Mole", "Hedgehog", "Tanager", "Buzzard")):
        fill(root / "train" / name, 3000 + 100 * place, 4)
        fill(root / "test" / name, 3050 + 100 * place, 2)
        fill(root / "validation" / name, 3070 + 100 * place, 2)
    replay, probe = root / "replay.json", root / "probe.json"
    replay.write_text(json.dumps([{"target": "Mole", "confusable": "Hedgehog"}]))
    probe.write_text(json.dumps([{"target": "Tanager", "confusable": "Buzzard"}]))
    data = make(replay_pairs=str(replay), replay_ratio=0.5, retention_pairs=str(probe))
    parts = [row["part"] for row in trained(data)]
    assert (parts.count("pairs"), parts.count("replay")) == (8, 4)
    asked = all_rows(data.test_dataloader())
    assert {row["part"] for row in asked} == {"pairs", "retention"}
    assert {row["answer"] for row in asked if row["part"] == "retention"} == {"Tanager", "Buzzard"}
    assert data.classes[:3] == tuple(sorted(NAMES))
    with pytest.raises(ValueError, match="retention_pairs: Mole is trained on"):
        make(replay_pairs=str(replay), replay_ratio=0.5, retention_pairs=str(replay))
    with pytest.raises(ValueError, match="replay_pairs have 8 training pictures, and 80 are needed"):
        make(replay_pairs=str(replay), replay_ratio=10)


def test_more_options_come_from_the_super_category(make: Callable[..., FewShotPairs], root: Path) -> None:
    rows = [{"name": name, "supercategory": "Reptiles", "aliases": ["Vipera"]} for name in NAMES]
    (root / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = all_rows(make(n_way=3, n_orders=3).test_dataloader())
    assert {frozenset(row["options"]) for row in asked} == {frozenset(NAMES)}
    assert len({row["options"] for row in asked}) > 3
    assert asked[0]["supercategory"] == "Reptiles"
    assert "Vipera" in asked[0]["aliases"][0]
    with pytest.raises(ValueError, match="n_way must be at most 3 for Puff Adder"):
        make(n_way=4)


def test_features_stand_before_questions_only_if_asked_for_and_for_every_method(
    make: Callable[..., FewShotPairs], root: Path
) -> None:
    listed = [
        {"target": "Puff Adder", "confusable": "Adder", "features": ["a broad head", "chevrons"]},
        {"target": "Adder", "confusable": "Puff Adder", "features": ["a zigzag band"]},
    ]
    path = root / "features.json"
    path.write_text(json.dumps(listed))
    given = {"features": str(path), "pair": pair_id("Puff Adder", "Adder")}
    row = all_rows(make(**given).test_dataloader())[0]
    assert dict(zip(row["options"], row["features"], strict=True)) == {
        "Puff Adder": ("a broad head", "chevrons"),
        "Adder": ("a zigzag band",),
    }
    assert "zigzag" not in row["prompt"]
    for method in ({}, {"method": "crop", "n_synthetic": 1}):
        data = make(**given, **method, feature_context=True)
        for row in all_rows(data.test_dataloader()):
            lines = row["prompt"].splitlines()
            assert len(lines) == 3
            assert {"Puff Adder: a broad head, chevrons.", "Adder: a zigzag band."} == set(lines[:2])
        assert "zigzag" not in trained(data)[0]["prompt"]
    assert all_rows(make().test_dataloader())[0]["features"] == ((), ())
    path.write_text('[{"target": "Adder"}]')
    with pytest.raises(ValueError, match="features entry 0 must have target, confusable and features"):
        make(**given)
    with pytest.raises(FileNotFoundError, match="There is no file of features"):
        make(features=str(root / "none.json"))


def test_names_with_separators_and_markup_stay_texts(make: Callable[..., FewShotPairs], root: Path) -> None:
    strange = "Frog/toad, <b>{options}</b> or % \\ {0}"
    concept = {"name": "Adder", "display_name": strange}
    (root / "concepts.jsonl").write_text(json.dumps(concept) + "\n")
    row = next(row for row in trained(make()) if row["answer"] == strange)
    assert row["prompt"].count(strange) == 1
    assert "/" not in row["pair_id"]


# --- problems


def test_all_problems_are_told_at_once(make: Callable[..., FewShotPairs], root: Path) -> None:
    adders = sorted((root / "train" / "Adder").iterdir())
    adders[0].write_bytes(b"<html>")
    adders[1].write_bytes(adders[1].read_bytes()[:-200])
    buffer = io.BytesIO()
    photo(7).save(buffer, "JPEG")
    adders[2].write_bytes(buffer.getvalue())
    adders[3].write_bytes(b"")
    adders[4].write_bytes((root / "test" / "Adder" / "000.png").read_bytes())
    (root / "validation" / "Puff_Adder" / "001.png").write_bytes((root / "train" / "Adder" / "005.png").read_bytes())
    for path in sorted((root / "train" / NAMES[2].replace(" ", "_")).iterdir())[5:]:
        path.unlink()
    (root / "train" / "Puff_Adder" / "x.heic").write_bytes(b"ftypheic")
    with pytest.raises(ValueError, match=r"train/Puff_Adder/x.heic has a suffix that is not read"):
        make()
    (root / "train" / "Puff_Adder" / "x.heic").unlink()
    with pytest.raises(ValueError, match="problems:") as error:
        make(n_real=8)
    for text in (
        "train/Adder/000.png is no picture",
        "train/Adder/001.png",
        "train/Adder/002.png lies about its type: it is named .png and holds JPEG",
        "train/Adder/003.png is empty",
        "train/Adder/004.png, which the model is updated on, and test/Adder/000.png, which it is asked about, are the "
        "same file",
        "train/Adder/005.png, which the model is updated on, and validation/Puff_Adder/001.png",
        "Southeastern_Five-lined_Skink has 5 training pictures, and 8 are needed",
    ):
        assert text in str(error.value)


def test_the_same_picture_in_another_size_is_an_overlap(make: Callable[..., FewShotPairs], root: Path) -> None:
    source = root / "train" / "Adder" / "003.png"
    photo(5000, (160, 120)).save(source)
    Image.open(source).resize((80, 60), Image.Resampling.BOX).save(root / "test" / "Adder" / "009.jpg", quality=90)
    with pytest.raises(ValueError, match=r"003.png.*test/Adder/009.jpg, which it is asked about, are nearly the same"):
        make(n_real=8)
    make(n_real=8, near_duplicates=False)


def test_one_picture_of_two_classes_or_twice_in_a_support_is_refused(
    make: Callable[..., FewShotPairs], root: Path
) -> None:
    first = root / "train" / "Adder" / "000.png"
    (root / "train" / "Puff_Adder" / "000.png").write_bytes(first.read_bytes())
    with pytest.raises(
        ValueError, match=r"of Adder and .* of Puff Adder are the same file|of Puff Adder and .* of Adder"
    ):
        make(n_real=8)
    photo(4000).save(root / "train" / "Puff_Adder" / "000.png")
    (root / "train" / "Adder" / "001.png").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="of one support are the same file"):
        make(n_real=8)


def test_only_the_test_needs_no_training_pictures(root: Path, make: Callable[..., FewShotPairs]) -> None:
    (root / "train").rename(root.parent / "away")
    data = FewShotPairs(str(root))
    data.setup("test")
    assert len(data.split("test")) == 2 * 2 * 6 * 2
    with pytest.raises(ValueError, match="Adder has 0 training pictures, and 2 are needed"):
        make()


def test_missing_queries_and_pair_files_say_the_way_out(make: Callable[..., FewShotPairs], root: Path) -> None:
    for split in ("validation", "test"):
        (root / split).rename(root.parent / split)
    with pytest.raises(
        ValueError, match="Adder has no pictures to ask about in validation; add some, or set query_from"
    ):
        make()
    (root / "pairs.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*pairs.json; give `pairs`, or find the pairs"):
        make()
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        make(root=str(root / "none"))
    with pytest.raises(ValueError, match=r"'Ader' is not among the 3 classes; did you mean 'Adder'\?"):
        make(pairs=[{"target": "Ader", "confusable": "Puff Adder"}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "zoom"}, "method must be one of 'real', .*, got 'zoom'"),
        ({"layout": "x"}, "layout must be one of 'auto', .*, got 'x'"),
        ({"preset": "x"}, "preset must be one of"),
        ({"query_from": "x"}, "query_from must be one of"),
        ({"n_real": -1}, "n_real must be at least 0, got -1"),
        ({"n_real": 0}, "n_real and n_synthetic must not both be 0"),
        ({"n_synthetic": 3}, "method 'real' goes with n_synthetic 0, got 3"),
        ({"method": "crop"}, "method 'crop' goes with a positive n_synthetic, got 0"),
        ({"method": "synthetic", "n_synthetic": 1}, "method 'synthetic' needs synthetic_root"),
        ({"method": "crop", "n_synthetic": 1, "n_real": 0}, "needs n_source"),
        ({"sampling": "probability"}, "sampling 'probability' needs real pictures and others"),
        ({"n_orders": 3}, "n_orders must be at most 2 for two options, got 3"),
        ({"synthetic_probability": 1.5}, "synthetic_probability must be from 0 to 1, got 1.5"),
        ({"replay_ratio": 1.0}, "replay_ratio must be positive with replay_pairs and 0 without"),
        ({"question": "What?"}, "question must have the place '{options}', got 'What\\?'"),
        ({"feature_context": True}, "feature_context needs features"),
        ({"mix": "mixup"}, "mix 'mixup' needs image_size"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotPairs(**given)


def test_what_was_found_is_described(make: Callable[..., FewShotPairs]) -> None:
    text = make().describe()
    assert "2 pairs of 3 concepts" in text
    assert "train: 8 to 8 pictures" in text
    assert "validation asks about validation, test about test" in text
    with pytest.raises(ValueError, match="A split must be"):
        make().split("dev")
