"""Adapters of text-to-image models: kept with their configuration by every checkpoint, or refused."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.utils.data import DataLoader

from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.synthia import Synthia
from lit_modules.synthia.text_to_image import TextToImageTraining

Make = Callable[..., Any]
FILE = "pytorch_lora_weights.safetensors"
MODULES: list[Any] = [Synthia, TextToImageTraining]


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**({"r": 2, "lora_alpha": 6} | changes))


def make(kind: Any, **more: Any) -> Any:
    optimizer = partial(torch.optim.AdamW, lr=0.05)
    return kind(PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2), optimizer=optimizer, **more)


def batches() -> DataLoader[Any]:
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {
        "prompt": ["a design to sit"],
        "pos": pixels[:1],
        "image": pixels[:1],
        "neg": pixels[None, 1:],
        "neg_mask": torch.tensor([[True, True]]),
        "pair_id": torch.tensor([7]),
    }
    return DataLoader([batch] * 3, batch_size=None)  # type: ignore[arg-type]


def draw(module: Any) -> torch.Tensor:
    image: torch.Tensor = module.generate(["sit"], 1, seed=3)
    return image


@pytest.mark.parametrize("kind", MODULES)
def test_checkpoint_brings_its_adapter(kind: Any, trainer: Make, tmp_path: Path) -> None:
    config = lora()
    before = copy.deepcopy(config)
    module, runner = make(kind, peft_config=config), trainer(max_epochs=1)
    runner.fit(module, batches())
    path = tmp_path / "tuned.ckpt"
    runner.save_checkpoint(path)
    assert config == before
    tuned = draw(module)
    assert not torch.allclose(tuned, draw(make(kind)), atol=1e-3)
    backbone = PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2)
    loaded = kind.load_from_checkpoint(path, backbone=backbone, weights_only=True)
    assert torch.equal(draw(loaded), tuned)
    tested = make(kind)
    trainer().validate(tested, batches(), ckpt_path=path, verbose=False)
    assert torch.equal(draw(tested), tuned)
    tested.save_pretrained(str(tmp_path / "adapter"))
    plain = make(kind)
    plain.configure_model()
    plain.network.load_lora_adapter(str(tmp_path / "adapter"), prefix=None, weight_name=FILE)
    torch.testing.assert_close(draw(plain), tuned, atol=1e-6, rtol=0)
    for change, message in (
        ({"lora_alpha": 8}, "The checkpoint holds an adapter with lora_alpha=6, and lora_alpha=8 is asked for"),
        ({"target_modules": ["to_k"]}, "train different weights: the checkpoint holds 'network.*to_"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer().validate(make(kind, peft_config=lora(**change)), batches(), ckpt_path=path, verbose=False)
    resumed = [make(kind, peft_config=given) for given in (lora(), None)]
    for each in resumed:
        trainer(max_epochs=2).fit(each, batches(), ckpt_path=path)
    assert torch.equal(*map(draw, resumed))
    assert not torch.allclose(draw(resumed[0]), tuned, atol=1e-4)


def test_checkpoint_of_a_whole_network_is_not_loaded_under_an_adapter(trainer: Make, tmp_path: Path) -> None:
    kind = TextToImageTraining
    runner = trainer(max_epochs=1)
    runner.fit(make(kind), batches())
    runner.save_checkpoint(tmp_path / "whole.ckpt")
    with pytest.raises(ValueError, match="holds the weights of a whole model, and this module carries an adapter"):
        trainer().validate(make(kind, peft_config=lora()), batches(), ckpt_path=tmp_path / "whole.ckpt")
    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"]["network.another"] = checkpoint["state_dict"].pop(name)
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match=f"train different weights: the checkpoint lacks '{name}'"):
        trainer().validate(make(kind), batches(), ckpt_path=tmp_path / "broken.ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": "lora_only"}, "with bias='lora_only'; leave bias out"),
        ({"modules_to_save": ["conv_out"]}, r"with modules_to_save=\['conv_out'\]; leave modules_to_save out"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights='pissa'; it must be True, False, 'gaussian'"),
        ({"target_parameters": ["to_q.weight"]}, "with target_parameters"),
    ],
)
def test_settings_that_diffusers_do_not_load_are_refused_before_training(
    changes: dict[str, Any], message: str, trainer: Make
) -> None:
    with pytest.raises(ValueError, match=f"diffusers do not load an adapter {message}"):
        trainer(max_epochs=1).fit(make(Synthia, peft_config=lora(**changes)), batches())


def test_backbone_that_has_loaded_an_adapter_goes_on_with_it(trainer: Make, tmp_path: Path) -> None:
    module = make(Synthia, peft_config=lora(lora_dropout=0.5))
    trainer(max_epochs=1).fit(module, batches())
    module.save_pretrained(str(tmp_path / "adapter"))
    assert module.backbone.adapter.lora_dropout == 0.5
    again = []
    for given in (None, lora()):
        made = make(Synthia, peft_config=given)
        made.backbone.load("network")
        made.backbone.network.load_lora_adapter(
            str(tmp_path / "adapter"), prefix=None, adapter_name="default", weight_name=FILE
        )
        assert made.backbone.adapter.lora_dropout == 0
        again.append(made)
    with pytest.raises(ValueError, match="asks for a new adapter, and the backbone has loaded one"):
        again[1].configure_model()
    torch.testing.assert_close(draw(again[0]), draw(module), atol=1e-6, rtol=0)
    trainer(max_epochs=1).fit(again[0], batches())
    names = [name for name, parameter in again[0].named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert not torch.allclose(draw(again[0]), draw(module), atol=1e-4)
