"""A model's folder runs nothing of its own, whatever opens it: no module beside it, none that it names, no pickle."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from datamodules import LUME
from lit_modules import ClassifierUpdate, NGDiff
from lit_modules.coda.backends.local import DiffusersEdits, DiffusersImages, LocalChat
from lit_modules.coda.core.image_text_models import load_model, load_processor
from lit_modules.metrics.gibberish import cleanness
from lit_modules.metrics.image_text import ImageTextEncoder
from lit_modules.networks import TransformersClassifier, load_recogniser
from lit_modules.studies.stress.attacks import load_quantized
from lit_modules.synthia.backbones.kandinsky3_weights import load_movq
from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.backbones.stable_diffusion import StableDiffusion
from lit_modules.synthia.judge.models import LocalJudge
from lit_modules.synthia.ontology.text_encoder import TextEncoder
from lit_modules.synthia.pairs.images import PipelineImages
from lit_modules.unlearning.core.pretrained import load_causal_lm

Open = Callable[[str], Any]

PICTURE = torch.zeros(1, 3, 8, 8)

OF_TRANSFORMERS: dict[str, Open] = {
    "causal language model": load_causal_lm,
    "quantised model": lambda folder: load_quantized(folder, 8),
    "NGDiff": lambda folder: NGDiff(folder).configure_model(),
    "tokenizer of the data": lambda folder: LUME(folder)._load_tokenizer(),
    "image-text model": lambda folder: load_model(folder, torch.float32),
    "processor": load_processor,
    "ClassifierUpdate": lambda folder: ClassifierUpdate(folder, num_classes=2).configure_model(),
    "TransformersClassifier": TransformersClassifier,
    "LocalChat": lambda folder: LocalChat(folder)._loaded,
    "LocalJudge": lambda folder: LocalJudge(folder)._load(),
    "TextEncoder": lambda folder: TextEncoder(folder)(["sit"]),
    "ImageTextEncoder": lambda folder: ImageTextEncoder(folder).images(PICTURE),
    "gibberish": lambda folder: cleanness(["a"], folder),
}
OF_DIFFUSERS: dict[str, Open] = {
    "PipelineImages": lambda folder: PipelineImages(folder)._load(),
    "DiffusersImages": lambda folder: DiffusersImages(folder)._pipeline,
    "DiffusersEdits": lambda folder: DiffusersEdits(folder)._pipeline,
    "StableDiffusion": lambda folder: StableDiffusion(folder).component_class("unet"),
}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a module `evil` on the path, which leaves a mark; check that there is none."""
    mark = tmp_path / "executed"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Net: pass\n")
    yield mark
    assert not mark.exists()
    assert "evil" not in sys.modules


def hostile_folder(folder: Path) -> str:
    """Write a model whose every file of configuration names the module `evil`, and a copy of it."""
    folder.mkdir()
    heads = ("CausalLM", "ImageClassification", "ImageTextToText", "SequenceClassification")
    kinds = ("Config", "Model", "Tokenizer", "Processor", "ImageProcessor", *(f"ModelFor{head}" for head in heads))
    named = {f"Auto{kind}": "evil.Net" for kind in kinds} | {"AutoTokenizer": ["evil.Net", "evil.Net"]}
    plain = {"model_type": "evil", "architectures": ["Net"], "tokenizer_class": "Net", "processor_class": "Net"}
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        (folder / f"{name}.json").write_text(json.dumps(plain | {"auto_map": named}))
    (folder / "evil.py").write_text((folder.parent / "evil.py").read_text())
    return str(folder)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_no_module_of_a_model_is_imported(name: str, executed: Path) -> None:
    folder = hostile_folder(executed.parent / "model")
    with pytest.raises((ValueError, OSError)):
        OF_TRANSFORMERS[name](folder)


@pytest.mark.parametrize("name", OF_DIFFUSERS)
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", ["evil", "Net"], "evil"])
def test_no_module_of_a_pipeline_is_imported(name: str, kind: Any, executed: Path) -> None:
    folder = executed.parent / "pipeline"
    parts = ("unet", "vae", "scheduler", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    for part in parts:
        (folder / part).mkdir(parents=True)
        for place in (folder, folder / part):
            (place / "evil.py").write_text((executed.parent / "evil.py").read_text())
    index = {"_class_name": kind, "_diffusers_version": "0.1"} | {part: ["evil", "Net"] for part in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, OSError, AttributeError, TypeError)):
        OF_DIFFUSERS[name](str(folder))


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
PATCHES = {"image_size": 8, "patch_size": 4, **SMALL}
PICKLED: dict[str, tuple[Callable[[], Any], Open]] = {
    "causal language model": (lambda: LlamaForCausalLM(LlamaConfig(vocab_size=8, **SMALL)), load_causal_lm),
    "classifier": (
        lambda: ViTForImageClassification(ViTConfig(**PATCHES)),
        lambda folder: ClassifierUpdate(folder, num_classes=2).configure_model(),
    ),
    "classifier of pixels": (
        lambda: ViTForImageClassification(ViTConfig(**PATCHES)),
        lambda folder: TransformersClassifier(folder, mean=[0.5] * 3, std=[0.5] * 3),
    ),
    "encoder": (
        lambda: CLIPModel(CLIPConfig(text_config=SMALL, vision_config=PATCHES, projection_dim=4)),
        lambda folder: ImageTextEncoder(folder).images(PICTURE),
    ),
}


@pytest.mark.parametrize("name", PICKLED)
def test_no_pickle_of_weights_is_executed(name: str, executed: Path) -> None:
    make, open_ = PICKLED[name]
    folder = executed.parent / "model"
    make().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(executed)}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError)):
        open_(str(folder))


def test_no_pickle_of_a_small_model_is_executed(executed: Path) -> None:
    backbone = PixelDiffusion(image_size=16, widths=(8, 16))
    backbone.load("network")
    folder = executed.parent / "pixel"
    backbone.save_pretrained(str(folder), adapter=False)
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": Bomb(executed)}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="weights"):
        PixelDiffusion(str(folder), image_size=16, widths=(8, 16)).load("network")


@pytest.mark.parametrize("open_", [load_recogniser, load_movq])
def test_no_file_of_weights_is_unpickled(open_: Open, executed: Path) -> None:
    path = executed.parent / "weights.pt"
    torch.save({"weight": Bomb(executed)}, path)
    with pytest.raises(ValueError, match=r"weights\.pt"):
        open_(str(path))


def test_the_hostile_module_would_leave_a_mark(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "mark"), tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "mark").exists()
