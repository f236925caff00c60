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
from PIL import Image

from datamodules.few_shot.few_shot import FewShotPairs
from datamodules.few_shot.pairs import ConfusablePair, official_folders, pair_id, read_pairs, write_pairs
from datamodules.few_shot.questions import OFFICIAL_EVALUATION_QUESTION, join_options
from datamodules.few_shot.selection import crop_or_flip

NAMES = ("Puff Adder", "Adder", "Southeastern Five-lined Skink")
PAIRS = [{"target": "Puff Adder", "confusable": "Adder"}, {"target": NAMES[2], "confusable": "Adder"}]
FIRST = pair_id("Puff Adder", "Adder")
Make = Callable[..., FewShotPairs]


def photo(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, first: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        photo(first + index).save(folder / f"{index:03d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for index, name in enumerate(NAMES):
        for split, first, number in (("train", 0, 8), ("validation", 20, 4), ("test", 40, 6)):
            fill(folder / split / name.replace(" ", "_"), 100 * index + first, number)
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    return folder


@pytest.fixture
def make(root: Path) -> Make:
    def build(**args: Any) -> FewShotPairs:
        data = FewShotPairs(**{"root": str(root), "n_real": 2, **args})
        data.setup("fit")
        return data

    return build


def rows_of(loader: Any) -> list[dict[str, Any]]:
    batches = list(loader)
    return [{k: column[i] for k, column in batch.items()} for batch in batches for i in range(len(batch["prompt"]))]


def trained(data: FewShotPairs) -> list[dict[str, Any]]:
    return sorted(rows_of(data.train_dataloader()), key=lambda row: int(row["index"]))


def test_a_sample_is_one_question_about_the_picture_of_its_answer(make: Make, root: Path) -> None:
    data = make(n_real=3)
    assert len(data.split("train")) == 2 * 2 * 3
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert {len(column) for column in batch.values()} == {len(batch["label"])}
        for row in rows_of(loader):
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(root / row["path"])))
            assert row["image"].mode == "RGB"
            assert "<image>" not in row["prompt"]
            assert join_options(row["options"]) in row["prompt"]
            assert row["options"][row["answer_option"]] == row["answer"] == data.classes[row["label"]]
            assert row["option_label"][row["answer_option"]] == row["label"]
            assert row["answer"].replace(" ", "_") in row["path"]


def test_names_are_shown_as_given_and_officially_with_small_letters(make: Make, root: Path) -> None:
    default, official = make(), make(preset="official")
    assert NAMES[2] in {row["answer"] for row in trained(default)}
    assert "Southeastern five-lined skink" in {row["answer"] for row in trained(official)}
    row = rows_of(official.val_dataloader())[0]
    assert row["prompt"] == OFFICIAL_EVALUATION_QUESTION.replace("{options}", join_options(row["options"]))
    evaluation, training = rows_of(default.val_dataloader())[0]["prompt"], trained(default)[0]["prompt"]
    assert evaluation.split(":")[0] == training.split(":")[0]
    strange = "Frog/toad, <b>{options}</b> or % \\ {0}"
    (root / "concepts.jsonl").write_text(json.dumps({"name": "Adder", "display_name": strange}) + "\n")
    row = next(row for row in trained(make()) if row["answer"] == strange)
    assert row["prompt"].count(strange) == 1
    assert "/" not in row["pair_id"]


def test_options_are_asked_in_both_orders_and_learnt_in_either(make: Make) -> None:
    data = make(n_real=5)
    rows = rows_of(data.val_dataloader())
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["query"], first["order"], second["order"]) == (second["query"], 0, 1)
        assert first["options"] == second["options"][::-1]
        assert first["path"] == second["path"]
    assert len({row["options"] for row in rows if row["order"] == 0 and row["pair_id"] == rows[0]["pair_id"]}) == 2
    assert {int(row["answer_option"]) for row in trained(data)} == {0, 1}
    assert len(rows_of(make(n_orders=1).val_dataloader())) == len(rows) // 2


def test_batches_depend_on_the_seed_and_not_on_the_folder_or_its_listing(make: Make, root: Path) -> None:
    def text(data: FewShotPairs, epoch: int = 0) -> list[tuple[str, str]]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [(row["path"], row["prompt"]) for row in rows_of(loader)]

    first = text(make())
    assert text(make()) == first != text(make(seed=1))
    assert [prompt for _, prompt in text(make(), epoch=1)] != [prompt for _, prompt in first]
    moved = root.parent / "elsewhere"
    for path in sorted(root.rglob("*.*"), reverse=True):  # written in another order
        (moved / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (moved / path.relative_to(root)).write_bytes(path.read_bytes())
    assert text(make(root=str(moved))) == first
    one, other = ([s.picture.name for s in make(root=str(r), n_query=3).split("test").samples] for r in (root, moved))
    assert one == other


def test_classifiers_get_one_tensor_and_mixed_labels_and_sets_go_to_workers(make: Make) -> None:
    data = make()
    copied = pickle.loads(pickle.dumps(data.split("train")))
    assert copied[[0]]["prompt"] == data.split("train")[[0]]["prompt"]
    assert len(data.split("train")[1]["prompt"]) == len(data.split("test")[1]["prompt"]) == 1
    batch = next(iter(make(image_size=16).train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((5, 3, 16, 16), torch.float32)
    assert 0 <= batch["image"].min() < 0.5 < batch["image"].max() <= 1
    for mix in ("cutmix", "mixup"):
        loader = make(image_size=16, mix=mix).train_dataloader()
        batch = next(iter(loader))
        torch.testing.assert_close(batch["label_weights"].sum(1), torch.ones(5))
        assert (batch["label_weights"].gather(1, batch["label"][:, None]) > 0).any()
        assert torch.equal(next(iter(loader))["image"], batch["image"])
    assert "label_weights" not in next(iter(make(image_size=16, mix="mixup").val_dataloader()))


def test_supports_are_nested_and_queries_stay(make: Make) -> None:
    def support(**args: Any) -> set[str]:
        return {row["path"] for row in trained(make(**args))}

    def asked(**args: Any) -> list[str]:
        return [row["path"] for row in rows_of(make(n_query=2, **args).test_dataloader())]

    sizes = [support(n_real=number) for number in (1, 2, 5, 8)]
    assert all(small < large for small, large in pairwise(sizes))
    assert support(n_real=2, seed=1) != sizes[1]
    assert asked(n_real=1) == asked(n_real=5) == asked(n_real=5, seed=1) != asked(query_seed=1)
    assert len(set(asked())) == 6
    assert set(asked()) < {row["path"] for row in rows_of(make(n_query=4).test_dataloader())}
    rows = [row for row in trained(make()) if row["answer"] == "Adder"]
    one, other = ({row["path"] for row in rows if row["pair_id"] == pair_id(p["target"], "Adder")} for p in PAIRS)
    assert one == other  # the same support in all of its pairs
    assert len(one) == 2


def test_queries_held_out_of_training_are_never_supports(make: Make) -> None:
    data = make(query_from="train", n_query=3, n_real=5)
    asked = {row["path"] for row in rows_of(data.test_dataloader())}
    assert not {row["path"] for row in trained(data)} & asked
    assert len(asked) == 9
    assert {path.split("/")[0] for path in asked} == {"train"}
    with pytest.raises(ValueError, match="Adder has 5 training pictures, and 6 are needed"):
        make(query_from="train", n_query=3, n_real=6)


@pytest.mark.parametrize("method", ["crop", "flip"])
def test_baselines_make_as_many_pictures_as_asked(make: Make, method: str) -> None:
    origins = [row["origin"] for row in trained(make(n_real=2, n_synthetic=7, method=method, pair=FIRST))]
    assert (origins.count("real"), origins.count(method)) == (2 * 2, 2 * 7)
    rows, again = (trained(make(n_real=0, n_synthetic=4, n_source=2, method=method)) for _ in range(2))
    assert {row["origin"] for row in rows} == {method}
    assert len({row["path"] for row in rows}) == 2 * 3
    assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in again]


def test_crops_and_flips_are_those_of_the_baselines() -> None:
    image = photo(0, (100, 50))
    crops = [crop_or_flip(image, "crop", str(key)) for key in range(200)]
    for axis, side in ((0, 100), (1, 50)):
        sizes = [crop.size[axis] / side for crop in crops]
        assert 0.3 <= min(sizes) < 0.36
        assert 0.94 < max(sizes) <= 1
    sideways, upside_down = (image.transpose(way).tobytes() for way in Image.Transpose if "FLIP" in way.name)
    flips = [crop_or_flip(image, "flip", str(key)).tobytes() for key in range(200)]
    assert 70 < flips.count(sideways) < 130
    assert flips.count(sideways) + flips.count(upside_down) == 200
    assert {crop_or_flip(image, "flip_horizontal", str(key)).tobytes() for key in range(9)} == {sideways}


def store(root: Path, kind: str = "visual") -> Path:
    """Write a store of three accepted pictures and a rejected one, ``000.png``, of each side of each pair."""
    folder = root.parent / "store"
    for p, pair in enumerate(PAIRS):
        for r, role in enumerate(("target", "confusable")):
            images = folder / pair_id(pair["target"], pair["confusable"]) / role / kind / "images"
            fill(images, 1000 + 100 * (2 * p + r), 4)
            for index in range(4):
                (images / f"{index:03d}.json").write_text(json.dumps({"accepted": index > 0}))
    return folder


def test_synthetic_pictures_come_from_the_store_if_they_were_accepted(make: Make, root: Path) -> None:
    args: dict[str, Any] = {"method": "synthetic", "n_synthetic": 2, "synthetic_root": str(store(root))}
    rows = [row for row in trained(make(**args)) if row["origin"] == "synthetic"]
    assert len(rows) == 2 * 2 * 2
    assert all(Path(row["path"]).stem in ("001", "002") for row in rows)
    assert all(row["path"].startswith(f"{row['pair_id']}/{row['role']}/") for row in rows)
    store(root, "textual")
    assert {row["origin"] for row in trained(make(**args, synthetic_kind="textual"))} == {"real", "textual"}
    for path in Path(args["synthetic_root"]).rglob("textual/images/002.json"):
        path.write_text("{")
    for changed, message in (
        ({"n_synthetic": 4, "synthetic_kind": "visual"}, r"Adder has 3 synthetic pictures in pair .*; make more or"),
        ({}, "holds the kinds textual, visual; give synthetic_kind"),
        ({"synthetic_kind": "textual"}, r"002.png has no record 002.json that says whether it was accepted"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**args | changed)
    with pytest.raises(FileNotFoundError, match="There is no folder of synthetic pictures"):
        make(**args | {"synthetic_root": str(root / "none")})


def test_synthetic_pictures_come_from_a_folder_of_classes(make: Make, root: Path) -> None:
    for index, name in enumerate(NAMES):
        fill(root.parent / "made" / name.replace(" ", "_"), 2000 + 100 * index, 3)
    rows = trained(make(method="synthetic", n_synthetic=3, synthetic_root=str(root.parent / "made")))
    assert len(rows) == 2 * 2 * 5
    assert all(row["answer"].replace(" ", "_") in row["path"] for row in rows)


def test_further_pictures_may_be_drawn_with_a_probability(make: Make) -> None:
    args: dict[str, Any] = {"n_real": 4, "n_synthetic": 2, "method": "crop", "sampling": "probability"}
    loader, origins = make(**args).train_dataloader(), []
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        origins += [row["origin"] for row in rows_of(loader)]
    assert len(origins) == 6 * 2 * 2 * 4
    assert 0.3 < origins.count("crop") / len(origins) < 0.7
    for chance, origin in ((0.0, "real"), (1.0, "crop")):
        assert {row["origin"] for row in trained(make(**args, synthetic_probability=chance))} == {origin}


def test_one_pair_may_be_taken_alone_and_the_data_are_described(make: Make) -> None:
    text = make().describe()
    for line in ("2 pairs of 3 concepts", "train: 8 to 8 pictures", "asks about validation, test about test"):
        assert line in text
    data = make(pair=FIRST)
    assert {row["pair_id"] for row in trained(data)} == {FIRST}
    assert data.num_classes == 2
    with pytest.raises(ValueError, match=f"pair must be one of {FIRST}, .*, got 'x'"):
        make(pair="x")


def test_known_concepts_are_rehearsed_and_asked_about(make: Make, root: Path) -> None:
    for index, name in enumerate(("Mole", "Hedgehog", "Tanager", "Buzzard")):
        for split, first, number in (("train", 0, 4), ("test", 50, 2), ("validation", 70, 2)):
            fill(root / split / name, 3000 + 100 * index + first, number)
    replay, probe = root / "replay.json", root / "probe.json"
    replay.write_text(json.dumps([{"target": "Mole", "confusable": "Hedgehog"}]))
    probe.write_text(json.dumps([{"target": "Tanager", "confusable": "Buzzard"}]))
    data = make(replay_pairs=str(replay), replay_ratio=0.5, retention_pairs=str(probe))
    parts = [row["part"] for row in trained(data)]
    assert (parts.count("pairs"), parts.count("replay")) == (8, 4)
    asked = rows_of(data.test_dataloader())
    assert {row["part"] for row in asked} == {"pairs", "retention"}
    assert {row["answer"] for row in asked if row["part"] == "retention"} == {"Tanager", "Buzzard"}
    assert data.classes[:3] == tuple(sorted(NAMES))
    with pytest.raises(ValueError, match="retention_pairs: Mole is trained on"):
        make(replay_pairs=str(replay), replay_ratio=0.5, retention_pairs=str(replay))
    with pytest.raises(ValueError, match="replay_pairs have 8 training pictures, and 80 are needed"):
        make(replay_pairs=str(replay), replay_ratio=10)


def test_more_options_come_from_the_super_category(make: Make, root: Path) -> None:
    rows = [{"name": name, "supercategory": "Reptiles", "aliases": ["Vipera"]} for name in NAMES]
    (root / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = rows_of(make(n_way=3, n_orders=3).test_dataloader())
    assert {frozenset(row["options"]) for row in asked} == {frozenset(NAMES)}
    assert len({row["options"] for row in asked}) > 3
    assert asked[0]["supercategory"] == "Reptiles"
    assert "Vipera" in asked[0]["aliases"][0]
    with pytest.raises(ValueError, match="n_way must be at most 3 for Puff Adder"):
        make(n_way=4)


def test_features_stand_before_questions_only_if_asked_for(make: Make, root: Path) -> None:
    path = root / "features.json"
    listed = [
        {"target": "Puff Adder", "confusable": "Adder", "features": ["a broad head", "chevrons"]},
        {"target": "Adder", "confusable": "Puff Adder", "features": ["a zigzag band"]},
    ]
    path.write_text(json.dumps(listed))
    args: dict[str, Any] = {"features": str(path), "pair": FIRST}
    row = rows_of(make(**args).test_dataloader())[0]
    features = dict(zip(row["options"], row["features"], strict=True))
    assert features == {"Puff Adder": ("a broad head", "chevrons"), "Adder": ("a zigzag band",)}
    assert "zigzag" not in row["prompt"]
    data = make(**args, method="crop", n_synthetic=1, feature_context=True)
    for row in rows_of(data.test_dataloader()):
        *lines, _ = row["prompt"].splitlines()
        assert sorted(lines) == ["Adder: a zigzag band.", "Puff Adder: a broad head, chevrons."]
    assert "zigzag" not in trained(data)[0]["prompt"]
    path.write_text('[{"target": "Adder"}]')
    with pytest.raises(ValueError, match="features entry 0 must have target, confusable and features"):
        make(**args)


def test_all_problems_are_told_at_once(make: Make, root: Path) -> None:
    adders = sorted((root / "train" / "Adder").iterdir())
    buffer = io.BytesIO()
    photo(7).save(buffer, "JPEG")
    contents = [b"<html>", adders[1].read_bytes()[:-200], buffer.getvalue(), b""]
    contents.append((root / "test" / "Adder" / "000.png").read_bytes())
    for path, content in zip(adders, contents, strict=False):
        path.write_bytes(content)
    (root / "validation" / "Puff_Adder" / "001.png").write_bytes(adders[5].read_bytes())
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


def test_the_same_picture_elsewhere_is_refused(make: Make, root: Path) -> None:
    source = root / "train" / "Adder" / "003.png"
    photo(5000, (160, 120)).save(source)
    Image.open(source).resize((80, 60), Image.Resampling.BOX).save(root / "test" / "Adder" / "009.jpg", quality=90)
    with pytest.raises(ValueError, match=r"003.png.*test/Adder/009.jpg, which it is asked about, are nearly the same"):
        make(n_real=8)
    make(n_real=8, near_duplicates=False)
    for path, colour in ((source, "red"), (root / "test" / "Adder" / "009.jpg", "blue")):
        Image.new("RGB", (8, 8), colour).save(path)
    make(n_real=8)  # alike but for their colours
    first = root / "train" / "Adder" / "000.png"
    (root / "train" / "Puff_Adder" / "000.png").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"of Adder and .* of Puff Adder are the same|of Puff Adder and .* of Adder"):
        make(n_real=8)
    photo(4000).save(root / "train" / "Puff_Adder" / "000.png")
    (root / "train" / "Adder" / "001.png").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="of one support are the same file"):
        make(n_real=8)


def test_missing_pictures_and_pair_files_say_the_way_out(make: Make, root: Path) -> None:
    (root / "train").rename(root.parent / "train")
    data = FewShotPairs(str(root))
    data.setup("test")  # needs no training pictures
    assert len(data.split("test")) == 2 * 2 * 6 * 2
    with pytest.raises(ValueError, match="Adder has 0 training pictures, and 2 are needed"):
        make()
    (root.parent / "train").rename(root / "train")
    with pytest.raises(ValueError, match=r"'Ader' is not among the 3 classes; did you mean 'Adder'\?"):
        make(pairs=[{"target": "Ader", "confusable": "Puff Adder"}])
    (root / "pairs.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*pairs.json; give `pairs`, or find the pairs"):
        make()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"method": "zoom"}, "method must be of 'real', .*, got 'zoom'"),
        ({"n_real": 0}, "n_real and n_synthetic must not both be 0"),
        ({"method": "synthetic", "n_synthetic": 1}, "method 'synthetic' needs synthetic_root"),
        ({"method": "crop", "n_synthetic": 1, "n_real": 0}, "needs n_source"),
        ({"sampling": "probability"}, "sampling 'probability' needs real pictures and others"),
        ({"n_orders": 3}, "n_orders must be at most 2 for two options, got 3"),
        ({"replay_ratio": 1.0}, "replay_ratio must be positive with replay_pairs and 0 without"),
        ({"question": "What?"}, "question must have the place '{options}', got 'What\\?'"),
        ({"feature_context": True}, "feature_context needs features"),
        ({"n_context": 6}, "n_context must be at most n_real, 5, as examples are supports; got 6"),
        ({"mix": "mixup"}, "mix 'mixup' needs image_size"),
    ],
)
def test_wrong_arguments_are_refused_at_once(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotPairs(**args)


def test_the_official_pair_file_is_read_as_it_is(data_folder: Path) -> None:
    pairs = read_pairs(data_folder / "novelspecies" / "inat_confusable_pairs_example.json")
    assert len({pair.pair_id for pair in pairs}) == 19
    assert len({pair.target_dir for pair in pairs} | {pair.confusable_dir for pair in pairs}) == 23
    first = pairs[0]
    assert (first.target, first.confusable, first.error_rate) == ("Puff Adder", "Timber Rattlesnake", 0.26)
    assert first.target_dir == "05110_Animalia_Chordata_Reptilia_Squamata_Viperidae_Bitis_arietans"
    both = {(pair.target, pair.confusable) for pair in pairs}
    assert {("Common Chameleon", "Cape Dwarf Chameleon"), ("Cape Dwarf Chameleon", "Common Chameleon")} <= both


def test_pairs_are_written_with_the_model_and_read_again(tmp_path: Path) -> None:
    folders = {"target_dir": "a", "confusable_dir": "b"}
    pairs = [ConfusablePair("Adder", "Grass Snake", 0.5, **folders, fields={"note": 1})]  # type: ignore[arg-type]
    pairs.append(ConfusablePair("Grass Snake", "Adder"))
    path = tmp_path / "new" / "pairs.json"
    write_pairs(path, pairs, model="llava")
    content = json.loads(path.read_text())
    assert (content["model"], content["pairs"][0]["pair_id"]) == ("llava", pair_id("Adder", "Grass Snake"))
    assert read_pairs(path) == pairs
    assert read_pairs(path)[0].fields == {"note": 1}


@pytest.mark.parametrize("name", ["../../etc", "a/b\\c", "<script>", "蛇", "a" * 150, "."])
def test_the_id_of_a_pair_is_safe_as_a_folder_whatever_the_names(name: str) -> None:
    made = pair_id(name, "Adder")
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(made) <= 100
    assert made != pair_id("Adder", name)
    assert read_pairs([{"target": name, "confusable": "Adder"}])[0].pair_id == made


def test_all_problems_of_pairs_are_in_one_error() -> None:
    both = {"target": "A", "confusable": "C"}
    entries: dict[str, Any] = {
        "target and confusable must differ, got 'Adder' twice": {"target": "Adder", "confusable": "adder"},
        "target must be a name, got ''": {"target": "", "confusable": "Adder"},
        "target must have no line breaks": {"target": "A\nB", "confusable": "C"},
        "error_rate must be from 0 to 1, got True": {**both, "rate_of_error": True},
        "ground_truth and target mean the same": {**both, "ground_truth": "B"},
        "target_dir must be a folder below the root, got '../secret'": {**both, "target_dir": "../secret"},
        "pair_id must be letters": {**both, "pair_id": "a/b"},
        "must be an object, got 'Adder'": "Adder",
        "pair_id 'x' is that of pair 8": {"target": "B", "confusable": "A", "pair_id": "x"},
        "'A' and 'B' come twice, and not alike": {"target": "A", "confusable": "B", "error_rate": 0.4},
    }
    first = {"target": "A", "confusable": "B", "pair_id": "x"}
    values = list(entries.values())
    with pytest.raises(ValueError, match="has 10 problems") as error:
        read_pairs([*values[:8], first, dict(first), *values[8:]])
    numbers = [*range(8), 10, 11]  # the pair that comes twice alike is taken once
    for number, text in zip(numbers, entries, strict=True):
        assert f"pair {number}: {text}" in str(error.value)


def test_files_that_are_no_pair_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    with pytest.raises(FileNotFoundError, match="There is no pair file"):
        read_pairs(path)
    messages = {"{": "must be JSON", '{"a": 1}': "must hold a list of pairs", "3": "must hold a list", "[]": "one pair"}
    for text, message in messages.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_pairs(path)
        assert official_folders(path) == {}
