"""HiDream: experts that train, and a Llama that its pipeline goes without."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import AutoTokenizer

from lit_modules.synthia import HiDream
from lit_modules.synthia.core.randomness import generator_of


@pytest.mark.parametrize("size", [None, (64, 16)], ids=["square", "bucket"])
def test_training_predicts_what_evaluation_predicts_and_experts_get_gradients(size: object, hidream: str) -> None:
    backbone = HiDream(hidream, image_size=32, precision="float32", num_steps=2)
    backbone.load("text", "network")
    condition = backbone.encode_prompt(["a cup", "a jug"])
    shape = backbone.latent_shape(size)  # type: ignore[arg-type]
    noised = torch.stack([torch.randn(shape, generator=generator_of(row)) for row in range(2)])
    times = torch.tensor([30.0, 700.0])
    with torch.no_grad():
        wanted = backbone.denoise(noised, times, condition)
    backbone.network.train()
    answer = backbone.denoise(noised, times, condition)
    torch.testing.assert_close(answer.detach(), wanted, atol=1e-5, rtol=1e-4)
    answer.square().mean().backward()
    experts = {n: p for n, p in backbone.network.named_parameters() if ".experts." in n and p.grad is not None}
    assert any(parameter.grad.abs().sum() > 0 for parameter in experts.values())


def test_a_pipeline_without_llama_takes_it_from_elsewhere(hidream: str, tmp_path: Path) -> None:
    folder, llama = tmp_path / "hidream", tmp_path / "llama"
    shutil.copytree(hidream, folder)
    (folder / "text_encoder_4").rename(llama)
    AutoTokenizer.from_pretrained(folder / "tokenizer_4").save_pretrained(llama)
    shutil.rmtree(folder / "tokenizer_4")
    index = json.loads((folder / "model_index.json").read_text())
    for absent in ([None, None], None):
        changed = index | {"text_encoder_4": absent, "tokenizer_4": absent}
        if absent is None:
            changed = {key: value for key, value in index.items() if not key.endswith("_4")}
        (folder / "model_index.json").write_text(json.dumps(changed))
        made = HiDream(str(folder), image_size=16, precision="float32", num_steps=2, llama=str(llama))
        whole = HiDream(hidream, image_size=16, precision="float32", num_steps=2)
        for name, value in made.encode_prompt(["a cup"]).items():
            torch.testing.assert_close(value, whole.encode_prompt(["a cup"])[name])
    with pytest.raises(FileNotFoundError, match=r"The (tokenizer|text_encoder)_4 of '/nowhere' cannot be loaded"):
        HiDream(str(folder), image_size=16, llama="/nowhere").load("text")


def test_the_shift_is_that_of_the_pipeline(hidream: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    backbone = HiDream(hidream, image_size=16, precision="float32", num_steps=3)
    real = diffusers.HiDreamImagePipeline.from_pretrained(hidream, scheduler=scheduler)
    real.set_progress_bar_config(disable=True)
    backbone.load("network")
    backbone.scheduler = scheduler
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    real.default_sample_size = 8
    real("a cup", height=16, width=16, **settings)
    assert backbone.few_step_timesteps(3) == pytest.approx(real.scheduler.timesteps.tolist(), rel=1e-6)
