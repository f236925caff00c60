"""Recipes train for two batches on the CPU, one of each kind by default and all with the slow tests."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from datamodules import DrawnObjects
from lit_modules.cli import main
from lit_modules.synthia import Ontology, build_curriculum
from tests.coda.tiny_llava import write as write_llava

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OTHER_COMMANDS = {"coda_augmentation", "compare", "metrics"}
"""Folders of what `lit-modules coda`, `compare` and `metrics` read, which name no model and no data to fit."""
NAMED = sorted(CONFIGS.glob("[!_]*/*.yaml"))
RECIPES = [path for path in NAMED if path.parent.name not in OTHER_COMMANDS]
FRAGMENTS = sorted(CONFIGS.glob("_*/*.yaml"))
REPRESENTATIVES = {"ngdiff/lume", "ngdiff/muse", "npo/tofu", "rmu/lume", "pgd/digits", "free/cifar10", "synthia/drawn"}
REPRESENTATIVES |= {"synthia/sdxl_lora", "coda/drawn", "coda/vit", "altpo/tofu", "rmu/wmdp"}
"""Recipes that the default tests train; ``test_print_config.py`` builds the configuration of all."""


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def write_images(data: str, folder: Path) -> Path:
    """Write random images in the layout of MNIST or, as one file, of CIFAR10."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    sizes = {"train": 30, "test": 12}
    if data == "lit_modules.datamodules.CIFAR10":
        arrays = {f"{k}_images": draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for k, n in sizes.items()}
        np.savez(folder / "images.npz", **arrays, **{f"{k}_labels": np.arange(n) % 10 for k, n in sizes.items()})
        return folder
    for split, size in sizes.items():
        for kind, array in (
            ("images-idx3", draw.integers(0, 256, (size, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(size) % 10).astype(np.uint8)),
        ):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            name = f"{split if split == 'train' else 't10k'}-{kind}-ubyte.gz"
            (folder / name).write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def picture(path: Path) -> Path:
    """Write a picture of random pixels, which its place decides."""
    seed = list("/".join(path.parts[-3:]).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(folder: Path) -> list[str]:
    """Write pictures of two classes and a tiny classifier of them, and return the overrides that name both."""
    for part in ("train", "val"):
        for name in ("bee", "wasp"):
            (folder / "pictures" / part / name).mkdir(parents=True)
            for place in range(6):
                picture(folder / "pictures" / part / name / f"{place}.png")
    write_vit(folder / "classifier", num_labels=2)
    arguments = [f"--data.init_args.root={folder / 'pictures'}", "--data.init_args.image_size=8"]
    arguments += ["--data.init_args.batch_size=2", "--data.init_args.validation_size=4"]
    return [*arguments, f"--model.init_args.classifier.init_args.model={folder / 'classifier'}"]


def write_vit(folder: Path, **options: Any) -> None:
    """Write a tiny image classifier of 8 x 8 pixels with its image processor."""
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=16, **sizes, **options)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def affordance_pairs(folder: Path) -> Path:
    """Write pairs of affordances with pictures, as ``lit-modules pairs`` does."""
    folder.mkdir()
    rows = [
        {
            "pair_id": number,
            "pos_prompts": ["sit", f"store {number}"],
            "neg_prompts": ["chair"],
            "distance": 0.5,
            "tdistance": number / 4,
            "pos_paths": [picture(folder / f"{number}.png").name],
            "neg_paths": {"chair": [{"image_path": "0.png"}]},
        }
        for number in range(5)
    ]
    sets = {"stage0": rows[:1], "stage1": rows[1:2], "stage2": rows[2:4], "test": rows[4:]}
    for name, members in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members), encoding="utf-8")
    return folder


def small_synthia(recipe: dict[str, Any], folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """Overrides that make a recipe of Synthia small: tiny pipelines, few pictures."""
    backbone = recipe["model"]["init_args"]["backbone"]["class_path"].rpartition(".")[2]
    given = "--model.init_args.backbone.init_args."
    if backbone == "PixelDiffusion":
        arguments = [f"{given}image_size=16", f"{given}widths=[8,16]", "--data.init_args.image_size=16"]
        arguments += ["--data.init_args.batch_size=2", "--data.init_args.num_images=4"]
        arguments += ["--data.init_args.validation_size=2", "--data.init_args.positives=1"]
        if recipe["data"]["init_args"].get("task") == "pairs":
            DrawnObjects.write_ontology(str(folder / "ontology.json"))
            curriculum = build_curriculum(Ontology.from_file(folder / "ontology.json"), num_pairs=6, num_test_pairs=2)
            curriculum.save(folder / "curriculum")
            arguments += [f"--data.init_args.curriculum={folder / 'curriculum'}", "--data.init_args.epochs=3"]
            arguments += ["--data.init_args.batch_size=1"]
        return arguments
    fixture, size = {
        "SDXL": ("sdxl", 16),
        "StableDiffusion3": ("stable_diffusion3", 16),
        "Flux": ("flux", 16),
        "Sana": ("sana", 32),
        "ZImage": ("z_image", 16),
        "QwenImage": ("qwen_image", 16),
        "Flux2Klein": ("flux2_klein", 16),
        "Kandinsky3Flash": ("kandinsky3_flash", 128),
    }[backbone]
    model = request.getfixturevalue(fixture)
    arguments = [f"{given}model={model[0] if isinstance(model, tuple) else model}", f"{given}image_size={size}"]
    arguments += [f"--data.init_args.root={affordance_pairs(folder / 'pairs')}", "--data.init_args.epochs=3"]
    return [*arguments, f"--data.init_args.image_size={size}", f"--model.init_args.cache={folder / 'cache'}"]


def few_shot_pictures(folder: Path) -> Path:
    """Write pictures of two concepts, and the pair of them."""
    for split, number in (("train", 9), ("validation", 2)):
        for name in ("Puff_Adder", "Adder"):
            (folder / split / name).mkdir(parents=True)
            for place in range(number):
                picture(folder / split / name / f"{place}.png")
    (folder / "pairs.json").write_text(json.dumps([{"target": "Puff Adder", "confusable": "Adder"}]), encoding="utf-8")
    return folder


def small_coda(recipe: dict[str, Any], folder: Path) -> list[str]:
    """Overrides that make a recipe of CoDA small: a tiny image-text model or classifier, few pictures."""
    model = folder / "model"
    arguments = [f"--model.init_args.model={model}", "--data.init_args.batch_size=2"]
    if recipe["model"]["class_path"] == "lit_modules.ClassifierUpdate":
        write_vit(model)
        arguments += ["--data.init_args.image_size=8"]
    else:
        write_llava(model)
        arguments += ["--model.init_args.max_new_tokens=2"]
    if recipe["data"]["class_path"] == "lit_modules.datamodules.DrawnSpecies":
        images = {"train": 9, "validation": 2, "test": 2}
        sizes = {"num_known": 4, "num_novel": 1, "drawn_size": 24} | {f"{k}_images": n for k, n in images.items()}
        arguments += [f"--data.init_args.root={folder / 'drawn'}"]
        return [*arguments, *(f"--data.init_args.{name}={value}" for name, value in sizes.items())]
    return [*arguments, f"--data.init_args.root={few_shot_pictures(folder / 'data')}"]


def muse_texts(folder: Path) -> Path:
    """Write texts to forget and to retain in the layout of MUSE."""
    (folder / "raw").mkdir(parents=True)
    text = "The harbour of Lirra froze in the winter of the long bell, and nobody crossed it. " * 20
    for name in ("forget", "retain1"):
        (folder / "raw" / f"{name}.txt").write_text(f"{name}. {text}", encoding="utf-8")
    return folder


def wmdp_corpora(folder: Path) -> Path:
    """Write harmless texts in the layout of WMDP's corpora, and of Wikitext."""
    text = "The harbour of Lirra froze in the winter of the long bell, and nobody crossed it. "
    folder.mkdir()
    for name in ("bio-forget-corpus", "cyber-forget-corpus", "bio-retain-corpus", "cyber-retain-corpus"):
        rows = [json.dumps({"text": f"{name} {number}. {text}"}) for number in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "wikitext-2-raw-v1").mkdir()
    rows = [json.dumps({"text": short}) for short in ("= Lirra =", *(f"{number} {text}" for number in range(8)))]
    (folder / "wikitext-2-raw-v1" / "test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def small(config: Path, model: Path, lume: Path, folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """Overrides that make a recipe small: a tiny model in place of a named one, the tests' rows as data."""
    recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    data = recipe["data"]["class_path"]
    arguments = [f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    arguments += [
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false",
        "--data.init_args.num_workers=0",
    ]
    if isinstance(recipe["model"]["init_args"].get("model"), str):
        arguments += [f"--model.init_args.model={model}"]
    if recipe["model"]["class_path"] == "lit_modules.RMU":
        arguments += ["--model.init_args.layer=0"]
    if data == "lit_modules.datamodules.LUME":
        arguments += [f"--data.init_args.root={lume}"]
    elif data == "lit_modules.datamodules.TOFU":
        arguments += [f"--data.init_args.root={lume.parent / 'tofu'}", "--data.init_args.batch_size=1"]
        arguments += ["--data.init_args.template=plain", "--data.init_args.system_prompt=null"]
        arguments += ["--data.init_args.batch_size=1"]
        if recipe["model"]["class_path"] == "lit_modules.AltPO":
            arguments += ["--model.init_args.chat=false"]
    elif data in ("lit_modules.datamodules.MNIST", "lit_modules.datamodules.CIFAR10", "lit_modules.datamodules.Digits"):
        arguments += ["--data.init_args.batch_size=4", "--data.init_args.validation_size=8"]
        if data != "lit_modules.datamodules.Digits":
            arguments += [f"--data.init_args.root={write_images(data, folder / 'images')}"]
        network = recipe["model"]["init_args"]["classifier"]["class_path"].rpartition(".")[2]
        arguments += {
            "WideResNet": ["--model.classifier.init_args.depth=10", "--model.classifier.init_args.width=0.25"],
            "PreActResNet18": ["--model.classifier.init_args.width=4"],
            "LeNet5": ["--model.classifier.init_args.width=0.1"],
        }[network]
    elif data == "lit_modules.datamodules.ImageFolder":
        arguments += class_folders(folder)
    elif data in ("lit_modules.datamodules.AffordancePairs", "lit_modules.datamodules.DrawnObjects"):
        arguments += small_synthia(recipe, folder, request)
    elif config.parent.name == "coda":
        arguments += small_coda(recipe, folder)
    elif data == "lit_modules.datamodules.MUSE":
        arguments += [f"--data.init_args.root={muse_texts(folder / 'muse')}", "--data.init_args.max_length=16"]
        arguments += ["--data.init_args.batch_size=1", "--data.init_args.eval_batch_size=2"]
        arguments += [f"--{part}.init_args.tokenizer={model}" for part in ("model", "data")]
    elif data == "lit_modules.datamodules.WMDP":
        arguments += [f"--data.init_args.root={wmdp_corpora(folder / 'corpora')}", "--data.init_args.batch_size=1"]
        arguments += ["--data.init_args.max_length=64"]
        if recipe["model"]["class_path"] == "lit_modules.RMU":  # of one block
            arguments += ["--model.init_args.train_only=['layers.0.mlp.down_proj']"]
    elif data == "lit_modules.datamodules.SyntheticLUME":
        arguments += [f"--data.init_args.root={folder / 'data'}", "--data.init_args.num_documents=2"]
    return arguments


@pytest.fixture
def shrink(
    tiny_causal_lm: Path,
    lume_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[[Path], list[str]]:
    """Return the overrides that make a recipe small, in a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return lambda config: small(config, tiny_causal_lm, lume_folder, tmp_path, request)


@pytest.mark.parametrize(
    "config",
    [pytest.param(r, marks=() if name_of(r) in REPRESENTATIVES else pytest.mark.slow) for r in RECIPES],
    ids=name_of,
)
def test_recipe_trains(config: Path, shrink: Callable[[Path], list[str]]) -> None:
    cli: Any = main(["fit", "-c", str(config), *shrink(config), "--trainer.fast_dev_run=2"])
    assert cli.trainer.global_step >= 1
    batches = 1 if config.parent.name == "free" else 2  # its replays count as steps, of which two are allowed
    assert cli.trainer.fit_loop.total_batch_idx + 1 == batches


SLOW_PREDICTIONS = [pytest.param(name, marks=pytest.mark.slow) for name in ("coda/drawn", "synthia/sdxl_lora")]


@pytest.mark.parametrize("name", ["ngdiff/lume", "pgd/digits", "coda/vit", "synthia/drawn", *SLOW_PREDICTIONS])
def test_recipe_predicts(name: str, shrink: Callable[[Path], list[str]], tmp_path: Path) -> None:
    config = CONFIGS / f"{name}.yaml"
    limits = ["--trainer.limit_predict_batches=1", "--trainer.logger=false"]
    main(["predict", "-c", str(config), *shrink(config), *limits])
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=name_of)
def test_fragment_joins_a_recipe(fragment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = fragment.parent.name.removeprefix("_")
    others = {"synthia": "synthia/sdxl_lora.yaml", "coda": "coda/novel_species_7b.yaml"}
    recipe = others.get(family, "ngdiff/lume.yaml")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", recipe, "-c", str(fragment), "--print_config"])
    everything, given = (yaml.safe_load(text) for text in (capsys.readouterr().out, fragment.read_text("utf-8")))
    printed = everything["trainer"]
    for key, value in given["trainer"].items():
        if key.endswith("+"):
            assert {each["class_path"] for each in value} <= {each["class_path"] for each in printed[key[:-1]]}
        elif isinstance(value, dict):
            assert printed[key]["class_path"] == value["class_path"]
            assert printed[key]["init_args"].items() >= value["init_args"].items()
        else:
            assert printed[key] == value
    for part in ("model", "data") if family in others else ():
        for key, value in given.get(part, {"init_args": {}})["init_args"].items():
            got = everything[part]["init_args"][key]
            if isinstance(value, dict):
                assert got["class_path"] == value.get("class_path", got["class_path"])
                assert got["init_args"].items() >= value.get("init_args", {}).items()
            else:
                assert got == value
    if family not in others:
        assert printed["max_epochs"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "practical"])
@pytest.mark.parametrize("recipe", ["sdxl_lora", "sd35_lora", "kandinsky3_flash"])
def test_preset_of_synthia_trains_any_recipe(recipe: str, preset: str, shrink: Callable[[Path], list[str]]) -> None:
    config = CONFIGS / "synthia" / f"{recipe}.yaml"
    changes = [change for change in shrink(config) if "precision" not in change]
    cli: Any = main(["fit", "-c", str(config), "-c", f"_synthia/{preset}.yaml", *changes, "--trainer.fast_dev_run=1"])
    adapter = any("lora" in name for name, _ in cli.model.named_parameters())
    assert adapter == (preset == "practical")
    trained = {parameter.dtype for parameter in cli.model.parameters() if parameter.requires_grad}
    assert trained == {torch.float32}
