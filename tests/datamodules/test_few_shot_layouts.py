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


def png(seed: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(crc32(seed.encode())).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((15, 12)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, number: int = 2) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(png(f"{folder}/{index}"))


def ready(data: FewShotPairs) -> FewShotPairs:
    data.setup("fit")
    return data


def counts(folder: Path) -> dict[str, dict[str, int]]:
    concepts = read_folder(folder).concepts
    return {key: {split: len(p) for split, p in concept.pictures.items()} for key, concept in concepts.items()}


def test_the_official_pair_file_reads_inaturalist_s_folders(tmp_path: Path, data_folder: Path) -> None:
    pairs = read_pairs(data_folder / OFFICIAL)
    for folder in {str(name) for pair in pairs for name in (pair.target_dir, pair.confusable_dir)}:
        fill(tmp_path / "train_mini" / folder, 1)
        fill(tmp_path / "val" / folder, 1)
    data = ready(INaturalistPairs(str(tmp_path), str(data_folder / OFFICIAL), n_real=1, n_query=1))
    assert (len(data.pairs), data.num_classes) == (19, 23)
    assert (len(data.split("train")), len(data.split("test"))) == (2 * 19, 2 * 19 * 2)
    assert {"Adder", "Puff Adder", "Southeastern Five-lined Skink"} <= set(data.classes)
    assert {concept.supercategory for concept in data.concepts.values()} == {"Reptiles", "Mammals", "Birds"}
    concept = data.concepts[ADDER]
    assert (concept.scientific_name, concept.kind, concept.source) == ("Vipera berus", "animal", "inat")


def test_the_official_configuration_names_its_folders(tmp_path: Path) -> None:
    entry = {"ground_truth": "Adder", "confusing_class": "Puff Adder", "rate_of_error": 0.5}
    entry |= {"ground_truth_full_name": ADDER, "confusing_class_full_name": PUFF_ADDER}
    folders = {"real_images_path": "real", "val_images_path": "asked", "synthetic_images_path": "/nowhere"}
    for name in (ADDER, PUFF_ADDER):
        fill(tmp_path / "real" / name)
        fill(tmp_path / "asked" / name)
    (tmp_path / "config.json").write_text(json.dumps({**folders, "pairs": [entry]}))
    data = ready(FewShotPairs(str(tmp_path), n_real=2))
    assert data.classes == ("Puff Adder", "Adder")
    assert data.folder.splits == ("train", "validation")


@pytest.mark.parametrize(("base", "images"), [("", "images"), ("data", "")])
def test_the_published_tree_is_read(tmp_path: Path, images: str, base: str) -> None:
    folders = [f"iNaturalist/{ADDER}", "NovelSpecies/Leopardus_pardinoides", "SUN/c/campus", "SUN/s/stadium/football"]
    for name in folders:
        for split in ("train", "val"):
            fill(tmp_path / base / split / name / images)
    folder = read_folder(tmp_path, "readme")
    assert (folder.problems, folder.splits) == ([], ("train", "validation"))
    assert [(concept.name, concept.source) for concept in folder.concepts.values()] == [
        ("Leopardus pardinoides", "novel_species"),
        ("campus", "sun"),
        ("stadium football", "sun"),
        ("Vipera berus", "inat"),
    ]
    pairs = [{"target": "leopardus_pardinoides", "confusable": "Adder", "confusable_dir": ADDER}]
    data = ready(NovelSpecies(str(tmp_path), pairs, n_real=2))
    assert data.classes == ("leopardus pardinoides", "Adder")
    assert [concept.kind for concept in data.concepts.values()] == ["animal", "animal"]
    scenes = ready(SUNPairs(str(tmp_path), [{"target": "football stadium", "confusable": "campus"}], n_real=2))
    assert set(scenes.classes) == {"football stadium", "campus"}
    assert {concept.kind for concept in scenes.concepts.values()} == {"scene"}


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
    for split, role in (("train", "support"), ("validation", "query")):
        rows = []
        for index in range(3):
            for name in ("Clouded Tiger Cat", "Ocelot"):
                path = f"x{index}/{name.replace(' ', '_')}"
                fill(tmp_path / split / path, 1)
                row = {"file_name": f"{path}/0.png", "class_name": name, "url": "u", "split_role": role}
                rows.append({**row, "scientific_name": f"L. {name}"})
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    concept = {"name": "Clouded Tiger Cat", "known": False, "aliases": ["tigrina"], "year_described": 2024}
    (tmp_path / "concepts.jsonl").write_text(json.dumps(concept) + "\n")
    data = ready(FewShotPairs(str(tmp_path), [{"target": "Tigrina", "confusable": "ocelot"}], n_real=3))
    cat = data.concepts["Clouded Tiger Cat"]
    assert (cat.name, cat.known, cat.fields["year_described"]) == ("Clouded Tiger Cat", False, 2024)
    assert cat.scientific_name == "L. Clouded Tiger Cat"
    assert cat.pictures["train"][0].fields["url"] == "u"


def test_all_problems_of_metadata_and_concepts_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 3)
    rows: dict[str, Any] = {
        "train/a/1.png is not in train/metadata.jsonl; add it or move it away": {"file_name": "a/0.png"},
        "row 2: a/0.png comes twice": {"file_name": "a/0.png"},
        "row 3: file_name must be a file below train, got '../../secret.png'": {"file_name": "../../secret.png"},
        "train/a/9.png is missing; train/metadata.jsonl row 4 names it": {"file_name": "a/9.png"},
        "row 5: class_name must be a name, got None": {"file_name": "a/1.png", "class_name": None},
        "row 6: split_role must be 'support' or 'query', got 'dev'": {"file_name": "a/2.png", "split_role": "dev"},
        "train/metadata.jsonl:7 must be a JSON object": None,
    }
    lines = [json.dumps(row and {"class_name": "A", **row}) for row in rows.values()]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join([*lines, "{"]))
    concepts: dict[str, Any] = {
        "concepts.jsonl row 1: name must be a name": {"name": ""},
        "concepts.jsonl row 2: aliases must be a list of names, got 'B'": {"name": "A", "aliases": "B"},
        "concepts.jsonl row 3: known must be true or false, got 'yes'": {"name": "A", "known": "yes"},
    }
    (tmp_path / "concepts.jsonl").write_text("\n".join(map(json.dumps, [*concepts.values(), {"name": "A"}])))
    problems = "\n".join(read_folder(tmp_path).problems)
    for text in (*rows, *concepts, "train/metadata.jsonl:8 must be a JSON object"):
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
    folder = read_folder(tmp_path)
    assert "may be Adder or Reptiles/Adder; give its folder" in str(folder.find("adder"))
    assert folder.find("adder", "Reptiles/Adder") is folder.concepts["Reptiles/Adder"]
    (tmp_path / "train" / "0.png").write_bytes(png("0"))
    fill(tmp_path / "valid" / "Adder")
    problems = "\n".join(read_folder(tmp_path).problems)
    assert "train holds pictures outside of the folder of a class" in problems
    assert "holds val and valid; say in `folders` which is the split validation" in problems
    assert "Reptiles/Adder" in read_folder(tmp_path, folders={"train": "train", "validation": "valid"}).concepts
    assert "there is no folder" in read_folder(tmp_path, folders={"train": "none"}).problems[0]
    with pytest.raises(ValueError, match="folders must be of train, validation, test, got 'dev'"):
        read_folder(tmp_path, folders={"dev": "x"})


def test_the_three_datasets_have_their_own_folders() -> None:
    roots = [kind().root.name for kind in (NovelSpecies, INaturalistPairs, SUNPairs)]
    assert roots == ["novel_species", "inaturalist_pairs", "sun_pairs"]
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*novel_species; it must hold train/CLASS"):
        ready(NovelSpecies())


def test_annotations_give_common_names(tmp_path: Path) -> None:
    fill(tmp_path / "train" / ADDER)
    notes = tmp_path / "train.json"
    row = {"image_dir_name": ADDER, "common_name": "Common Adder", "supercategory": "Reptiles"}
    notes.write_text(json.dumps({"categories": [row]}))
    assert read_folder(tmp_path, annotations=str(notes)).concepts[ADDER].name == "Common Adder"
    notes.write_text("[]")
    with pytest.raises(ValueError, match="must be iNaturalist's JSON"):
        read_folder(tmp_path, annotations=str(notes))


def parquet(path: Path, paths: list[str | None], metadata: Any = None, **columns: Any) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": png(f"{path}/{index}"), "path": name} for index, name in enumerate(paths)]
    table = arrow.table({"image": images, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, row_group_size=2)


@pytest.mark.parametrize("stored", [None, "/cache/datasets/ab12/001.jpg"])
def test_parquet_without_labels_is_refused_with_the_reason(tmp_path: Path, stored: str | None) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [stored] * 3)
    message = "its pictures have no labels: it has no column of labels, only image, .* Labels are never guessed from th"
    with pytest.raises(ValueError, match=message):
        ready(NovelSpecies(str(tmp_path), [{"target": "A", "confusable": "B"}]))


def test_parquet_whose_paths_name_the_class_is_read(tmp_path: Path) -> None:
    classes = ("Leopardus_pardinoides", "Ocelot")
    for split in ("train", "validation"):
        paths = [f"data/{split}/NovelSpecies/{name}/images/{index}.png" for index in range(3) for name in classes]
        parquet(tmp_path / f"{split}-00000-of-00001.parquet", list(paths))
    data = ready(NovelSpecies(str(tmp_path), [{"target": "leopardus pardinoides", "confusable": "ocelot"}], n_real=2))
    assert list(data.concepts) == ["NovelSpecies/Leopardus_pardinoides", "NovelSpecies/Ocelot"]
    assert len(data.split("train")) == 4
    assert next(iter(data.train_dataloader()))["image"][0].size == (15, 12)


def test_parquet_with_labels_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"image": {}, "label": {"names": ["Adder", "Ocelot"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path = tmp_path / "train" / "0.parquet"
    parquet(path, ["a.png"] * 3, label=[0, 1, 0], metadata=metadata)
    parquet(tmp_path / "validation" / "0.parquet", ["a.png"] * 2, class_name=["Adder", "Ocelot"])
    assert counts(tmp_path) == {"Adder": {"train": 2, "validation": 1}, "Ocelot": {"train": 1, "validation": 1}}
    parquet(path, ["a.png"] * 3, label=[0, 1, 0])
    with pytest.raises(ValueError, match="it has no names for its label"):
        read_folder(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train/0.parquet is no Parquet file"):
        read_folder(tmp_path)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'holds Parquet files, .* pip install "lit-modules\[parquet\]"'):
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
    card = tmp_path / "README.md"
    for lead in ("", "- config_name: a\n"):
        card.write_text(CARD.format(lead=lead, second="Ocelot"))
        assert counts(tmp_path) == {"Adder": {"train": 2}, "Ocelot": {"train": 1}}
    two = CARD.format(lead="- config_name: a\n", second="Ocelot").split("---\n")[1]
    two += two.partition("dataset_info:\n")[2].replace("Ocelot", "Viper")
    gap = CARD.format(lead="", second="Ocelot").replace("'1'", "'2'")
    for text in (gap, f"---\n{two}---\n", "---\n- a\n---\n"):
        card.write_text(text)
        with pytest.raises(ValueError, match=r"no names for its label, nor has README\.md one list of them"):
            read_folder(tmp_path)
    card.write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match=r"The head of .*README\.md must be YAML, and is not"):
        read_folder(tmp_path)
