import io
import json
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from datamodules.few_shot.datasets import INaturalistPairs, NovelSpecies, SUNPairs
from datamodules.few_shot.few_shot import FewShotPairs
from datamodules.few_shot.layouts import read_folder
from datamodules.few_shot.pairs import read_pairs

OFFICIAL = "novelspecies/inat_confusable_pairs_example.json"
ADDER = "05129_Animalia_Chordata_Reptilia_Squamata_Viperidae_Vipera_berus"
PUFF_ADDER = "05110_Animalia_Chordata_Reptilia_Squamata_Viperidae_Bitis_arietans"


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((15, 12)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, number: int = 2) -> None:
    folder.mkdir(parents=True)
    for place in range(number):
        (folder / f"{place}.png").write_bytes(png(crc32(f"{folder}/{place}".encode())))


def ready(data: FewShotPairs) -> FewShotPairs:
    data.setup("fit")
    return data


def test_the_official_pair_file_reads_inaturalist_s_folders(tmp_path: Path, data_folder: Path) -> None:
    pairs = read_pairs(data_folder / OFFICIAL)
    for folder in {str(place) for pair in pairs for place in (pair.target_dir, pair.confusable_dir)}:
        fill(tmp_path / "train_mini" / folder, 1)
        fill(tmp_path / "val" / folder, 1)
    data = ready(INaturalistPairs(str(tmp_path), str(data_folder / OFFICIAL), n_real=1, n_query=1))
    assert len(data.pairs) == 19
    assert data.num_classes == 23
    assert len(data.split("train")) == 2 * 19
    assert len(data.split("test")) == 2 * 19 * 2
    assert {"Adder", "Puff Adder", "Southeastern Five-lined Skink"} <= set(data.classes)
    groups = {concept.supercategory for concept in data.concepts.values()}
    assert groups == {"Reptiles", "Mammals", "Birds"}
    concept = data.concepts[ADDER]
    assert (concept.scientific_name, concept.kind, concept.source) == ("Vipera berus", "animal", "inat")


def test_the_official_configuration_names_its_folders(tmp_path: Path) -> None:
    entry = {"ground_truth": "Adder", "confusing_class": "Puff Adder", "rate_of_error": 0.5}
    entry |= {"ground_truth_full_name": ADDER, "confusing_class_full_name": PUFF_ADDER}
    places = {"real_images_path": "real", "val_images_path": "asked", "synthetic_images_path": "/nowhere"}
    for name in (ADDER, PUFF_ADDER):
        fill(tmp_path / "real" / name)
        fill(tmp_path / "asked" / name)
    (tmp_path / "config.json").write_text(json.dumps({**places, "pairs": [entry]}))
    data = ready(FewShotPairs(str(tmp_path), n_real=2))
    assert data.classes == ("Puff Adder", "Adder")
    assert data.folder.splits == ("train", "validation")


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("base", ["", "data"])
def test_the_published_tree_is_read(tmp_path: Path, images: bool, base: str) -> None:
    folders = [f"iNaturalist/{ADDER}", "NovelSpecies/Leopardus_pardinoides", "SUN/c/campus", "SUN/s/stadium/football"]
    for split in ("train", "val"):
        for folder in folders:
            fill(tmp_path / base / split / folder / ("images" if images else ""))
    found = read_folder(tmp_path, "readme")
    assert found.problems == []
    assert [c.name for c in found.concepts.values()] == [
        "Leopardus pardinoides",
        "campus",
        "stadium football",
        "Vipera berus",
    ]
    assert [c.source for c in found.concepts.values()] == ["novel_species", "sun", "sun", "inat"]
    assert found.splits == ("train", "validation")
    pairs = [{"target": "leopardus_pardinoides", "confusable": "Adder", "confusable_dir": ADDER}]
    data = ready(NovelSpecies(str(tmp_path), pairs, n_real=2))
    assert data.classes == ("leopardus pardinoides", "Adder")
    assert [c.kind for c in data.concepts.values()] == ["animal", "animal"]
    scenes = ready(SUNPairs(str(tmp_path), [{"target": "football stadium", "confusable": "campus"}], n_real=2))
    assert set(scenes.classes) == {"football stadium", "campus"}
    assert {c.kind for c in scenes.concepts.values()} == {"scene"}


def test_sun_is_read_without_splits(tmp_path: Path) -> None:
    for folder in ("c/campus", "s/stadium/football", "s/stadium/baseball"):
        fill(tmp_path / "SUN397" / folder, 4)
    pairs = [{"target": "s/stadium/football", "confusable": "s/stadium/baseball"}]
    with pytest.raises(ValueError, match="has no pictures to ask about in validation; add some, or set query_from"):
        ready(SUNPairs(str(tmp_path), pairs, n_real=2))
    data = ready(SUNPairs(str(tmp_path), pairs, n_real=2, n_query=2, query_from="train"))
    assert len(data.split("test")) == 2 * 2 * 2
    assert set(data.classes) == {"stadium football", "stadium baseball"}


def test_imagefolder_with_metadata_keeps_all_fields(tmp_path: Path) -> None:
    rows = []
    for split, role in (("train", "support"), ("validation", "query")):
        for place in range(3):
            for name in ("Clouded Tiger Cat", "Ocelot"):
                fill(tmp_path / split / f"x{place}" / name.replace(" ", "_"), 1)
                row = {"file_name": f"x{place}/{name.replace(' ', '_')}/0.png", "class_name": name, "url": "u"}
                rows.append((split, {**row, "split_role": role, "scientific_name": f"L. {name}"}))
        lines = [json.dumps(row) for where, row in rows if where == split]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    concepts = [{"name": "Clouded Tiger Cat", "known": False, "aliases": ["tigrina"], "year_described": 2024}]
    (tmp_path / "concepts.jsonl").write_text(json.dumps(concepts[0]) + "\n")
    data = ready(FewShotPairs(str(tmp_path), [{"target": "Tigrina", "confusable": "ocelot"}], n_real=3))
    cat = data.concepts["Clouded Tiger Cat"]
    assert (cat.name, cat.known, cat.fields["year_described"]) == ("Clouded Tiger Cat", False, 2024)
    assert cat.scientific_name == "L. Clouded Tiger Cat"
    assert cat.pictures["train"][0].fields["url"] == "u"


def test_all_problems_of_metadata_and_concepts_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 3)
    rows: list[Any] = [
        {"file_name": "a/0.png", "class_name": "A"},
        {"file_name": "a/0.png", "class_name": "A"},
        {"file_name": "../../secret.png", "class_name": "A"},
        {"file_name": "/etc/passwd", "class_name": "A"},
        {"file_name": "a/9.png", "class_name": "A"},
        {"file_name": "a/1.png"},
        {"file_name": "a/2.png", "class_name": "A", "split_role": "dev"},
    ]
    text = "\n".join([*map(json.dumps, rows), "[1]", "{"])
    (tmp_path / "train" / "metadata.jsonl").write_text(text)
    described = [
        {"name": ""},
        {"name": "A", "aliases": "B"},
        {"name": "A", "known": "yes"},
        {"name": "A", "aliases": []},
    ]
    (tmp_path / "concepts.jsonl").write_text("\n".join(map(json.dumps, described)))
    problems = "\n".join(read_folder(tmp_path).problems)
    for text in (
        "row 2: a/0.png comes twice",
        "row 3: file_name must be a file below train, got '../../secret.png'",
        "row 4: file_name must be a file below train, got '/etc/passwd'",
        "train/a/9.png is missing; train/metadata.jsonl row 5 names it",
        "row 6: class_name must be a name, got None",
        "row 7: split_role must be 'support' or 'query', got 'dev'",
        "metadata.jsonl:8 must be a JSON object",
        "metadata.jsonl:9 must be a JSON object",
        "train/a/1.png is not in train/metadata.jsonl; add it or move it away",
        "concepts.jsonl row 1: name must be a name",
        "concepts.jsonl row 2: aliases must be a list of names, got 'B'",
        "concepts.jsonl row 3: known must be true or false, got 'yes'",
    ):
        assert text in problems


def test_folders_that_do_not_fit_the_layout_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "Reptiles" / "Adder")
    fill(tmp_path / "val" / "Reptiles" / "Adder")
    assert read_folder(tmp_path).concepts["Reptiles/Adder"].supercategory == "Reptiles"
    for layout, message in (
        ("imagefolder", "lies 2 levels deep"),
        ("readme", "must lie in a folder of iNaturalist, NovelSpecies or SUN"),
        ("sun", "must lie in the folder of its first letter"),
    ):
        assert message in "\n".join(read_folder(tmp_path, layout).problems)  # type: ignore[arg-type]
    fill(tmp_path / "train" / "Adder")
    assert "must be named as 05129" in "\n".join(read_folder(tmp_path, "inaturalist").problems)
    found = read_folder(tmp_path)
    assert "may be Adder or Reptiles/Adder; give its folder" in found.find("adder")
    assert found.find("adder", "Reptiles/Adder") is found.concepts["Reptiles/Adder"]
    (tmp_path / "train" / "0.png").write_bytes(png(0))
    fill(tmp_path / "valid" / "Adder")
    problems = "\n".join(read_folder(tmp_path).problems)
    assert "train holds pictures outside of the folder of a class" in problems
    assert "holds val and valid; say in `folders` which is the split validation" in problems
    chosen = read_folder(tmp_path, folders={"train": "train", "validation": "valid"})
    assert "Reptiles/Adder" in chosen.concepts
    assert "there is no folder" in read_folder(tmp_path, folders={"train": "none"}).problems[0]
    with pytest.raises(ValueError, match="folders must be of train, validation, test, got 'dev'"):
        read_folder(tmp_path, folders={"dev": "x"})


def test_annotations_give_common_names(tmp_path: Path) -> None:
    fill(tmp_path / "train" / ADDER)
    notes = tmp_path / "train.json"
    row = {"image_dir_name": ADDER, "common_name": "Common Adder", "supercategory": "Reptiles"}
    notes.write_text(json.dumps({"categories": [row]}))
    assert read_folder(tmp_path, annotations=str(notes)).concepts[ADDER].name == "Common Adder"
    notes.write_text("[]")
    with pytest.raises(ValueError, match="must be iNaturalist's JSON"):
        read_folder(tmp_path, annotations=str(notes))
    with pytest.raises(FileNotFoundError, match="There is no annotation file"):
        read_folder(tmp_path, annotations=str(tmp_path / "none.json"))


# --- Parquet


def parquet(path: Path, paths: list[str | None], **columns: Any) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    metadata = columns.pop("metadata", None)
    images = [{"bytes": png(crc32(f"{path}/{place}".encode())), "path": name} for place, name in enumerate(paths)]
    table = arrow.table({"image": images, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, row_group_size=2)


@pytest.mark.parametrize("stored", ["001.jpg", None, "/cache/datasets/ab12/001.jpg"])
def test_parquet_without_labels_is_refused_with_the_reason(tmp_path: Path, stored: str | None) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [stored] * 3)
    message = (
        "its pictures have no labels: it has no column of labels, only image, .* Labels are never guessed from the"
    )
    with pytest.raises(ValueError, match=message):
        ready(NovelSpecies(str(tmp_path), [{"target": "A", "confusable": "B"}]))


def test_parquet_whose_paths_name_the_class_is_read(tmp_path: Path) -> None:
    classes = ("Leopardus_pardinoides", "Ocelot")
    for split in ("train", "validation"):
        paths = [f"data/{split}/NovelSpecies/{name}/images/{place}.png" for place in range(3) for name in classes]
        parquet(tmp_path / f"{split}-00000-of-00001.parquet", list(paths))
    data = ready(NovelSpecies(str(tmp_path), [{"target": "leopardus pardinoides", "confusable": "ocelot"}], n_real=2))
    assert list(data.concepts) == ["NovelSpecies/Leopardus_pardinoides", "NovelSpecies/Ocelot"]
    assert len(data.split("train")) == 4
    batch = next(iter(data.train_dataloader()))
    assert batch["image"][0].size == (15, 12)


def test_parquet_with_labels_is_read(tmp_path: Path) -> None:
    features = {"image": {}, "label": {"names": ["Adder", "Ocelot"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet(tmp_path / "train" / "0.parquet", ["a.png"] * 3, label=[0, 1, 0], metadata=metadata)
    parquet(tmp_path / "validation" / "0.parquet", ["a.png"] * 2, class_name=["Adder", "Ocelot"])
    found = read_folder(tmp_path)
    assert {name: {s: len(p) for s, p in c.pictures.items()} for name, c in found.concepts.items()} == {
        "Adder": {"train": 2, "validation": 1},
        "Ocelot": {"train": 1, "validation": 1},
    }
    parquet(tmp_path / "train" / "0.parquet", ["a.png"] * 3, label=[0, 1, 0])
    with pytest.raises(ValueError, match="it has no names for its label"):
        read_folder(tmp_path)
    (tmp_path / "train" / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train/0.parquet is no Parquet file"):
        read_folder(tmp_path)


CARD = """---
license: cc-by-4.0
dataset_info:
{lead}  features:
    - name: image
      dtype: image
    - name: label
      dtype:
        class_label:
          names:
            '0': Adder
            '1': {second}
---
# The dataset
"""


def test_parquet_whose_card_alone_names_the_labels_is_read(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ["a.png"] * 3, label=[0, 1, 0])
    for card in (CARD.format(lead="", second="Ocelot"), CARD.format(lead="- config_name: a\n", second="Ocelot")):
        (tmp_path / "README.md").write_text(card)
        folder = read_folder(tmp_path)
        assert {name: len(concept.pictures["train"]) for name, concept in folder.concepts.items()} == {
            "Adder": 2,
            "Ocelot": 1,
        }
    two = CARD.format(lead="- config_name: a\n", second="Ocelot").split("---\n")[1]
    two += two.partition("dataset_info:\n")[2].replace("Ocelot", "Viper")
    for card in ("# No head", CARD.format(lead="", second="[a]"), f"---\n{two}---\n", "---\n- a\n---\n"):
        (tmp_path / "README.md").write_text(card.replace("'1': [a]", "'2': Ocelot"))
        with pytest.raises(ValueError, match=r"no names for its label, nor has README\.md one list of them"):
            read_folder(tmp_path)
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match=r"The head of .*README\.md must be YAML, and is not"):
        read_folder(tmp_path)


def test_the_three_datasets_have_their_own_folders() -> None:
    roots = [kind().root.name for kind in (NovelSpecies, INaturalistPairs, SUNPairs)]
    assert roots == ["novel_species", "inaturalist_pairs", "sun_pairs"]
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*novel_species; it must hold train/CLASS"):
        ready(NovelSpecies())


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r'holds Parquet files, .* pip install "lit-modules\[parquet\]"'):
        read_folder(tmp_path)
