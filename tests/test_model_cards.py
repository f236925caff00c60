"""Cards that `save_pretrained` of each family writes beside the weights, read as the Hub reads them."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from lightning.pytorch import LightningDataModule
from peft import LoraConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import datamodules
from callbacks import SavePretrained
from datamodules import Digits
from lit_modules import ClassifierUpdate, CoDA, NGDiff, PGDTraining, Synthia
from lit_modules.attacks import LinfPGD
from lit_modules.cli import main
from lit_modules.networks import LeNet5, TransformersClassifier, small_llama
from lit_modules.synthia import LinearContrast, PixelDiffusion, StableDiffusion
from lit_modules.utils.model_cards import Origin, base_licence, command_line
from tests.coda.tiny_llava import write
from tests.small_runs import quiet_trainer

FACTS = "---\nlicense: other\nlicense_name: a-licence\nlicense_link: LICENSE.md\n---\n\n# A base\n"


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def section(card: ModelCard, heading: str) -> str:
    return re.split(r"\n## ", card.text)[[name.split("\n")[0] for name in re.split(r"\n## ", card.text)].index(heading)]


def blocks(card: ModelCard, heading: str) -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", section(card, heading), re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def use(card: ModelCard, folder: Path, **names: Any) -> dict[str, Any]:
    """Run the lines that load the weights; return what they define, and the names that they may use."""
    (code,) = re.findall(r"```python\n(.*?)```", section(card, "Use"), re.DOTALL)
    exec(code.replace("FOLDER", str(folder)), names)
    return names


def test_a_run_of_the_command_line_tells_everything(
    ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_causal_lm).save_pretrained(base)
    for path in tiny_causal_lm.glob("tokenizer*"):
        (base / path.name).write_bytes(path.read_bytes())
    (base / "README.md").write_text("---\nlicense: llama3.2\nbase_model: some/other\n---\n", encoding="utf-8")
    args = ["fit", *ngdiff, f"--model.model={base}", "--model.clip_norm=0.5", "--seed_everything=7"]
    args += ["--trainer.max_epochs=1", "--trainer.callbacks+=callbacks.SavePretrained", "--trainer.logger=false"]
    args += [f"--trainer.callbacks.init_args.folder={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["/bin/lit-modules", *args])
    main()
    card = card_of(tmp_path / "out")
    assert card.data.to_dict() == {
        "license": "llama3.2",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lit-modules", "ngdiff"],
    }
    assert card.text.startswith("\n# base trained by NGDiff\n")
    assert "Base: `base`." in card.text
    assert "arXiv 2410.22086" in card.text
    arguments = blocks(card, "Method")
    assert (arguments["model"], arguments["clip_norm"], arguments["max_new_tokens"]) == (str(base), 0.5, 2)
    data = section(card, "Data")
    assert data.startswith("Data\n\n`LUME`: Forget and retain sets of LUME")
    assert "Licence: Apache-2.0, copyright Amazon.com; the texts of Task3 are from Wikipedia, CC BY-SA." in data
    assert blocks(card, "Data")["batch_size"] == 4
    rows = re.findall(r"^\| (\S+) \| (\S+) \|$", section(card, "Results"), re.MULTILINE)
    results = {name: float(value) for name, value in rows[2:]}
    assert {"train/retain_loss", "val/forget_loss", "val/retain_loss"} <= set(results)
    assert all(value > 0 for name, value in results.items() if name.endswith("loss"))
    facts = blocks(card, "Reproduce")
    assert (facts["seed"], facts["epochs"], facts["precision"]) == (7, 1, "32-true")
    assert facts["optimizer_steps"] > 0
    settings = {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    assert facts["optimizers"] == [{"class": "AdamW", **settings}]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["lightning"] == lightning.__version__
    assert f"lit-modules fit --model=NGDiff --model.model={tiny_causal_lm}" in section(card, "Reproduce")
    loaded = use(card, tmp_path / "out")["model"]
    wanted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_an_adapter_of_a_language_model_names_its_base(tmp_path: Path) -> None:
    small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(FACTS, encoding="utf-8")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    module = NGDiff(str(tmp_path / "base"), peft_config=config)
    for merge, library, tags in ((False, "peft", ["lora", "adapter"]), (True, "transformers", ["merged-adapter"])):
        folder = tmp_path / library
        module.save_pretrained(str(folder), merge=merge)
        card = card_of(folder)
        assert (card.data.library_name, card.data.tags) == (library, ["lit-modules", "ngdiff", *tags])
        # the link is to a file beside the card of a base that is on this machine alone
        assert (card.data.license, card.data["license_name"]) == ("other", "a-licence")
        assert card.data.get("license_link") is None
        adapter = blocks(card, "Method")["peft_config"]
        assert (adapter["class"], adapter["r"], adapter["target_modules"]) == ("LoraConfig", 2, ["q_proj"])
        loaded = use(card, folder)["model"]
        assert isinstance(loaded, PeftModel) is not merge
        ids = torch.arange(4)[None]
        wanted = module.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
        assert "Data\n" not in card.text  # the module was never in a trainer
        assert "Results\n" not in card.text


class Pictures(LightningDataModule):
    """A user's own pictures."""

    licence = "CC0"

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
        batch = {"prompt": ["to sit"], "pos": pixels[:1], "neg": pixels[None, 1:], "pair_id": torch.tensor([7])}
        return DataLoader([batch | {"neg_mask": torch.tensor([[True, True]])}], batch_size=None)  # type: ignore[arg-type]


def test_cards_of_a_new_network_and_of_an_adapter_on_it(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 16, "num_steps": 2}
    module = Synthia(PixelDiffusion(widths=(8, 16), **sizes), objective=LinearContrast(beta=0.5))
    quiet_trainer(tmp_path).fit(module, Pictures())
    module.save_pretrained(str(tmp_path / "base"))
    card = card_of(tmp_path / "base")
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    assert card.data.to_dict() == facts | {"tags": ["lit-modules", "synthia"]}
    assert "Base:" not in card.text
    arguments = blocks(card, "Method")
    assert (arguments["objective"]["class"], arguments["objective"]["beta"]) == ("LinearContrast", 0.5)
    assert arguments["backbone"]["image_size"] == 16
    assert "`Pictures`: A user's own pictures.\n\nLicence: CC0." in section(card, "Data")
    assert "| train/loss | " in section(card, "Results")
    same_weights(use(card, tmp_path / "base")["backbone"], module)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    tuned = Synthia(PixelDiffusion(str(tmp_path / "base"), **sizes), peft_config=config)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    card = card_of(tmp_path / "adapter")
    assert card.data.to_dict() == facts | {"tags": ["lit-modules", "synthia", "lora", "adapter"]}
    assert "Base: `base`." in card.text
    same_weights(use(card, tmp_path / "adapter")["backbone"], tuned)


def same_weights(backbone: Any, module: Synthia) -> None:
    backbone.load("network")
    state = module.network.state_dict()
    loaded = {name.replace(".default_0.", ".default."): value for name, value in backbone.network.state_dict().items()}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize("adapted", [False, True])
def test_what_a_pipeline_loads_is_said_in_its_card(adapted: bool, stable_diffusion: str, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian") if adapted else None
    module = Synthia(StableDiffusion(stable_diffusion, image_size=16, precision="float32"), peft_config=config)
    module.save_pretrained(str(tmp_path / "out"))
    card = card_of(tmp_path / "out")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    pipeline = use(card, tmp_path / "out")["pipeline"]
    own = {name: value for name, value in module.network.state_dict().items() if "lora" not in name}
    unet = {name: value for name, value in pipeline.unet.state_dict().items() if "lora" not in name}
    assert all(torch.equal(own[name], value) for name, value in unet.items())
    assert any("lora" in name for name in pipeline.unet.state_dict()) is adapted


def test_cards_of_coda(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    (Path(base) / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    module = CoDA(base, rank=2, dtype="float32", gradient_checkpointing=False)
    for merge, library in ((False, "peft"), (True, "transformers")):
        module.save_pretrained(str(tmp_path / library), merge=merge)
        card = card_of(tmp_path / library)
        assert (card.data.library_name, card.data.license) == (library, "apache-2.0")
        assert (card.data.pipeline_tag, card.data.tags[:2]) == ("image-text-to-text", ["lit-modules", "coda"])
        assert "arXiv 2502.17709" in card.text
        assert blocks(card, "Method")["rank"] == 2
        use(card, tmp_path / library)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "transformers")


def test_card_of_a_classifier_that_was_given(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_labels": 2, "hidden_size": 8, "intermediate_size": 16}
    config = ViTConfig(image_size=8, patch_size=4, num_hidden_layers=1, num_attention_heads=2, **sizes)
    module = ClassifierUpdate(ViTForImageClassification(config), mean=[0.5] * 3, std=[0.5] * 3)
    module.save_pretrained(str(tmp_path))
    card = card_of(tmp_path)
    facts = {"library_name": "transformers", "pipeline_tag": "image-classification"}
    assert card.data.to_dict() == {**facts, "tags": ["lit-modules", "classifierupdate"]}
    assert card.text.startswith("\n# Model trained by ClassifierUpdate\n")
    loaded = use(card, tmp_path)["model"]
    assert all(torch.equal(value, module.model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_hardened_classifier_of_ours_is_put_into_one_built_alike(tmp_path: Path, compiled: bool) -> None:
    network = LeNet5("small", image_size=8)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    module = PGDTraining(
        torch.compile(network) if compiled else network, LinfPGD(eps=0.1, steps=1), optimizer=optimizer
    )
    if not compiled:
        trainer = quiet_trainer(tmp_path, SavePretrained(str(tmp_path)), max_steps=1, limit_val_batches=0)
        trainer.fit(module, Digits(batch_size=10))
    else:
        module.save_pretrained(str(tmp_path))
    card = card_of(tmp_path)
    facts = {"library_name": "pytorch", "pipeline_tag": "image-classification"}
    assert card.data.to_dict() == {**facts, "tags": ["lit-modules", "pgdtraining"]}
    assert blocks(card, "Method")["attack"].items() >= {"class": "LinfPGD", "eps": 0.1, "steps": 1}.items()
    other = LeNet5("small", image_size=8)
    use(card, tmp_path, classifier=other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_hardened_classifier_of_transformers_is_loaded_by_its_folder(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_labels": 2, "hidden_size": 8, "intermediate_size": 16}
    config = ViTConfig(image_size=8, patch_size=4, num_hidden_layers=1, num_attention_heads=2, **sizes)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    ViTImageProcessor(size=8, image_mean=[0.1] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path / "base")
    classifier = TransformersClassifier(str(tmp_path / "base"))
    torch.nn.init.normal_(classifier.network.classifier.weight)
    module = PGDTraining(classifier, LinfPGD(eps=0.1, steps=1), optimizer=partial(torch.optim.SGD, lr=0.1))
    module.save_pretrained(str(tmp_path / "out"))
    card = card_of(tmp_path / "out")
    assert card.data.library_name == "transformers"
    assert "Base: `base`." in card.text
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(use(card, tmp_path / "out")["classifier"].eval()(images), classifier.eval()(images))


def test_a_readme_of_the_users_stays_and_a_card_of_ours_is_replaced(tmp_path: Path) -> None:
    module = NGDiff(small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("# My project\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"README\.md is no model card of this project, and was left as it is"):
        module.save_pretrained(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "README.md").read_text(encoding="utf-8") == "# My project\n"
    assert (tmp_path / "mine" / "config.json").is_file()
    module.save_pretrained(str(tmp_path / "ours"))
    path = tmp_path / "ours" / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nan old line\n", encoding="utf-8")
    module.save_pretrained(str(tmp_path / "ours"))
    assert "an old line" not in path.read_text(encoding="utf-8")


def test_licence_of_a_base_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # read at each call
    folder = tmp_path / "models--owner--base"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc", encoding="utf-8")
    (folder / "snapshots" / "abc" / "README.md").write_text(FACTS, encoding="utf-8")
    facts = {"license": "other", "license_name": "a-licence"}
    link = "https://huggingface.co/owner/base/blob/main/LICENSE.md"
    assert base_licence(Origin("peft", "", "owner/base")) == {**facts, "license_link": link}
    assert base_licence(Origin("peft", "", "owner/unknown")) == {}
    assert base_licence(Origin("peft", "")) == {}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "README.md").write_text("---\n[\n---\n", encoding="utf-8")
    assert base_licence(Origin("peft", "", str(tmp_path / "broken"))) == {}


def test_base_on_the_hub_and_its_dataset_stand_in_the_front_matter(tmp_path: Path) -> None:
    network = small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2)
    network.name_or_path = network.config.name_or_path = "owner/base"
    module = NGDiff(network)
    trainer = quiet_trainer(tmp_path)
    trainer.datamodule = datamodules.NovelSpecies()  # type: ignore[attr-defined]
    module.trainer = trainer
    module.save_pretrained(str(tmp_path / "out"))
    card = card_of(tmp_path / "out")
    assert (card.data.base_model, card.data.datasets) == ("owner/base", ["bryanzhou008/NovelSpecies"])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/bin/lit-modules", "fit", "-c", "a b.yaml"], "lit-modules fit -c 'a b.yaml'"),
        (["/lib/lit_modules/__main__.py", "fit"], "lit-modules fit"),
        (["/lib/torchrun/__main__.py", "--x"], "python -m torchrun --x"),
        (["train.py", "--lr", "1"], "python train.py --lr 1"),
        (["/bin/mytool", "go"], "mytool go"),
        ([""], None),
        (["-c"], None),
    ],
)
def test_command_line(argv: list[str], line: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert command_line() == line


@pytest.mark.parametrize("name", datamodules.__all__)
def test_a_licence_that_a_datamodule_names_stands_in_its_docstring(name: str) -> None:
    kind = getattr(datamodules, name)
    licence = kind.licence or ""
    words = set(
        re.findall(r"Apache-2\.0|MIT|CC BY(?:-SA)?(?: \d\.\d)?|redistribution|research|formal|pictures", licence)
    )
    assert words or kind.licence is None
    if "this software" not in licence:
        assert all(word in " ".join(kind.__doc__.split()) for word in words)
