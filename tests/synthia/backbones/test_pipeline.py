"""What every adapter of a pipeline promises, held against the real pipeline of the same folder."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, PeftModel

from lit_modules.synthia.backbones.flux import Flux
from lit_modules.synthia.backbones.kandinsky3 import Kandinsky3
from lit_modules.synthia.backbones.pipeline import PipelineBackbone
from lit_modules.synthia.backbones.stable_diffusion import SDXL, StableDiffusion
from lit_modules.synthia.backbones.stable_diffusion3 import StableDiffusion3
from lit_modules.synthia.core.randomness import generator_of

CASES: dict[str, tuple[type[PipelineBackbone], int, float]] = {
    "stable_diffusion": (StableDiffusion, 16, 7.5),
    "stable_diffusion_v": (StableDiffusion, 16, 7.5),
    "sdxl": (SDXL, 16, 5.0),
    "stable_diffusion3": (StableDiffusion3, 16, 4.5),
    "flux": (Flux, 16, 3.5),
    "flux_schnell": (Flux, 16, 3.5),
    "kandinsky3": (Kandinsky3, 64, 3.0),
}
PROMPTS = ["a cup", "a new design that pours"]


class Case:
    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.kind, self.size, self.guidance = CASES[name]

    def __call__(self, **more: Any) -> Any:
        settings: dict[str, Any] = {"image_size": self.size, "precision": "float32", "num_steps": 2}
        return self.kind(self.folder, **settings | more)

    def real(self) -> Any:
        pipeline = getattr(diffusers, self.kind.pipeline_name).from_pretrained(self.folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: Any, prompt: str, seed: int) -> torch.Tensor:
        drawn = pipeline(
            prompt,
            num_inference_steps=2,
            guidance_scale=self.guidance,
            height=self.size,
            width=self.size,
            generator=generator_of(seed),
            output_type="np",
        ).images
        return torch.from_numpy(drawn).permute(0, 3, 1, 2)


SOME = ("stable_diffusion_v", "flux", "kandinsky3")
"""One pipeline of each kind: a U-Net, a transformer of flow matching, and the one that is unlike the others."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, request.getfixturevalue(request.param))


def adapted(case: Case) -> Any:
    backbone = case()
    backbone.load("text", "network")
    backbone.network.requires_grad_(False)
    backbone.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=list(backbone.lora_targets)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in backbone.network.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def noised(backbone: Any, rows: int = 2) -> torch.Tensor:
    return torch.stack([torch.randn(backbone.latent_shape(), generator=generator_of(row)) for row in range(rows)])


def test_parts_are_loaded_one_by_one_and_images_are_those_of_the_pipeline(case: Case) -> None:
    backbone = case()
    backbone.load("text")
    condition = backbone.encode_prompt(PROMPTS)
    assert not hasattr(backbone, "network")
    assert set(backbone._held) == {"text"}
    backbone.free("text")
    backbone.load("network")
    generators = [generator_of(4), generator_of(5)]
    images = backbone.generate(condition, generators)
    assert set(backbone._held) == {"images"}
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, case.size, case.size)
    real = case.real()
    for row, prompt in enumerate(PROMPTS):  # each alone: a row does not depend on its batch
        torch.testing.assert_close(images[row : row + 1], case.draw(real, prompt, 4 + row), atol=1e-4, rtol=1e-3)
    again = backbone.generate(condition, [generator_of(4), generator_of(5)])
    assert torch.equal(images, again)


def test_images_become_scaled_latents_and_come_back_as_the_autoencoder_gives_them(case: Case) -> None:
    backbone = case()
    images = torch.rand(2, 3, case.size, case.size, generator=generator_of(0)) * 2 - 1
    mean, std = backbone.encode_image(images)
    assert mean.shape[1:] == backbone.latent_shape()
    assert mean.dtype == std.dtype == torch.float32
    vae = backbone.held("images", "vae")
    with torch.no_grad():
        if case.name == "kandinsky3":
            latents, scaled, spread = vae.encode(images).latents, mean, torch.zeros_like(std)
            decoded = vae.decode(latents, force_not_quantize=True).sample
        else:
            posterior, scale = vae.encode(images).latent_dist, vae.config.scaling_factor
            latents, spread = posterior.mean, posterior.std * scale
            scaled = mean / scale + (vae.config.shift_factor or 0)
            decoded = vae.decode(latents).sample
    torch.testing.assert_close(scaled, latents)
    torch.testing.assert_close(std, spread)
    given = mean.detach().requires_grad_()
    back = backbone.decode(given)
    torch.testing.assert_close(back.detach(), decoded, atol=1e-5, rtol=1e-4)
    back.square().mean().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize("case", SOME, indirect=True)
def test_an_adapter_trains_alone_and_can_be_switched_off(case: Case) -> None:
    plain, backbone = case(), adapted(case)
    plain.load("network")
    condition = backbone.encode_prompt(PROMPTS)
    times, latents = torch.tensor([3, 700]), noised(backbone)
    with torch.no_grad(), backbone.without_adapter():
        torch.testing.assert_close(
            backbone.denoise(latents, times, condition), plain.denoise(latents, times, condition)
        )
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            backbone.enable_checkpointing()
        backbone.network.train().zero_grad()
        prediction = backbone.denoise(latents, times, condition)
        assert prediction.shape == latents.shape
        prediction.square().mean().backward()
        trained = {name: value for name, value in backbone.network.named_parameters() if value.requires_grad}
        assert all("lora_" in name for name in trained)
        gradients.append(torch.cat([value.grad.flatten() for value in trained.values() if value.grad is not None]))
        assert not any(value.grad is not None for value in backbone.network.parameters() if not value.requires_grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    before = plain.denoise(latents, times, condition)
    assert (before - prediction).abs().max() > 1e-3


def test_the_pipeline_draws_the_same_with_a_saved_adapter(case: Case, tmp_path: Path) -> None:
    backbone = adapted(case)
    images = backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(4)])
    backbone.save_pretrained(str(tmp_path), adapter=True)
    real = case.real()
    assert (case.draw(real, PROMPTS[0], 4) - images).abs().max() > 1e-3
    if case.name == "kandinsky3":
        with pytest.raises(AttributeError):  # why its adapters are written as peft does
            real.load_lora_weights({"unet.conv_in.lora_A.weight": torch.zeros(1)})
        PeftModel.from_pretrained(real.unet, str(tmp_path))
    else:
        assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
        real.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(images, case.draw(real, PROMPTS[0], 4), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("case", SOME, indirect=True)
def test_a_whole_network_is_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    backbone = case()
    backbone.load("network")
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(0.01)
    backbone.save_pretrained(str(tmp_path), adapter=False)
    again = case(trained_network=str(tmp_path))
    again.load("network")
    condition, latents = again.encode_prompt(PROMPTS), noised(backbone)
    times = torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(
            again.denoise(latents, times, condition), backbone.denoise(latents, times, condition), atol=0, rtol=0
        )


def test_half_precision_works_and_answers_in_full(case: Case) -> None:
    backbone = case(precision="bfloat16")
    backbone.load("text", "network")
    backbone.network.requires_grad_(False)
    backbone.add_adapter(LoraConfig(r=2, target_modules=list(backbone.lora_targets)))
    for parameter in backbone.network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    condition = backbone.encode_prompt(PROMPTS[:1])
    assert backbone.network.dtype == condition["prompt_embeds"].dtype == torch.bfloat16
    prediction = backbone.denoise(noised(backbone, 1), torch.tensor([500]), condition)
    assert prediction.dtype == torch.float32
    images = backbone.generate(condition, [generator_of(0)])
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    wanted = torch.float32 if case.name == "sdxl" else torch.bfloat16
    assert backbone.held("images", "vae").dtype == wanted


def test_targets_are_noise_or_velocity_as_the_scheduler_says(case: Case) -> None:
    backbone = case()
    backbone.load("network")
    clean, noise = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    target = backbone.schedule.target(clean, noise, torch.tensor([400]))
    flows = case.kind in (StableDiffusion3, Flux)
    if case.name == "stable_diffusion_v":
        level = diffusers.DDIMScheduler.from_pretrained(case.folder, subfolder="scheduler").alphas_cumprod[400]
        torch.testing.assert_close(target, level.sqrt() * noise - (1 - level).sqrt() * clean)
    else:
        torch.testing.assert_close(target, noise - clean if flows else noise)
    times = backbone.draw_timesteps([generator_of(row) for row in range(2000)])
    assert times.is_floating_point() == flows
    middle = ((times > 250) & (times < 750)).float().mean()
    assert middle == pytest.approx(0.728 if flows else 0.5, abs=0.04)  # logit-normal, or even


@pytest.mark.parametrize("case", SOME, indirect=True)
def test_a_sampler_with_gradients_reaches_the_network(case: Case) -> None:
    backbone = adapted(case)
    sampler = backbone.few_step_sampler(num_steps=2, truncation=1)
    noise = sampler.draw_noise((1, *backbone.latent_shape()), generator_of(0))
    sampler.sample(backbone.denoise, noise, backbone.encode_prompt(PROMPTS[:1])).square().mean().backward()
    trained = [value.grad for value in backbone.network.parameters() if value.requires_grad]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in trained)


def test_a_wrong_model_is_named(stable_diffusion: str, sdxl: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes a StableDiffusionPipeline, got .* a StableDiffusionXLPipeline; SDXL"):
        StableDiffusion(sdxl).load("text")
    with pytest.raises(FileNotFoundError, match="There is no model '/nowhere'"):
        SDXL("/nowhere").load("network")
    with pytest.raises(FileNotFoundError, match=r"The unet of .* cannot be loaded"):
        StableDiffusion(stable_diffusion, image_size=16, trained_network=str(tmp_path)).load("network")
    with pytest.raises(ValueError, match="image_size must be a multiple of 8 for StableDiffusion, got 20"):
        StableDiffusion(stable_diffusion, image_size=20).load("images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "precision must be"),
        ({"encoder_precision": "int8"}, "encoder_precision must be"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"guidance": -1.0}, "guidance must not be negative"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDXL(**arguments)


def test_encodings_are_kept_by_what_they_depend_on(stable_diffusion: str) -> None:
    one, other = StableDiffusion(stable_diffusion), StableDiffusion(stable_diffusion, encoder_precision="float32")
    assert one.identity("text") != other.identity("text")
    longer = StableDiffusion3(stable_diffusion, prompt_length=64)
    assert longer.identity("text") != StableDiffusion3(stable_diffusion).identity("text")


def test_guidance_without_a_loaded_text_encoder_loads_it_for_a_moment(stable_diffusion: str) -> None:
    backbone = StableDiffusion(stable_diffusion, image_size=16, precision="float32", num_steps=2)
    backbone.load("text")
    condition = backbone.encode_prompt(PROMPTS)
    other = StableDiffusion(stable_diffusion, image_size=16, precision="float32", num_steps=2)
    images = other.generate(condition, [generator_of(0), generator_of(1)])
    torch.testing.assert_close(images, backbone.generate(condition, [generator_of(0), generator_of(1)]))
    assert set(other._held) == {"images"}


def test_slices_change_nothing(stable_diffusion: str) -> None:
    whole, sliced = (StableDiffusion(stable_diffusion, image_size=16, vae_slicing=slicing) for slicing in (False, True))
    images = torch.rand(2, 3, 16, 16, generator=generator_of(0)) * 2 - 1
    torch.testing.assert_close(whole.encode_image(images), sliced.encode_image(images))


def copy_of(folder: str, place: Path) -> Path:
    shutil.copytree(folder, place)
    return place


def test_a_variant_is_taken_where_a_part_has_it(sdxl: str, tmp_path: Path) -> None:
    folder = copy_of(sdxl, tmp_path / "mixed")
    u_net = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        u_net.conv_out.bias.fill_(0.25)  # tells the variant's file from the other one
    u_net.save_pretrained(folder / "unet", variant="fp16")
    for variant, value in (("fp16", 0.25), (None, None)):
        backbone = SDXL(str(folder), image_size=16, precision="float32", num_steps=2, variant=variant)
        backbone.load("network", "text", "images")
        assert bool((backbone.network.conv_out.bias == 0.25).all()) == (value is not None)
    assert backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(0)]).isfinite().all()


def test_a_variant_that_no_part_has_is_an_error(sdxl: str) -> None:
    backbone = SDXL(sdxl, image_size=16, variant="fp16")
    with pytest.raises(FileNotFoundError, match=r"has no files of variant 'fp16'; leave it out"):
        backbone.load("network")


def test_the_variants_of_a_model_on_the_hub_are_those_that_are_here(
    sdxl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models--team--model"
    copy_of(sdxl, store / "snapshots" / ("a" * 40))
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = SDXL("team/model", image_size=16)
    assert "unet/config.json" in backbone.files
    assert backbone.version == "a" * 40
    assert SDXL("team/other", image_size=16).version == "unreachable"


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler"])
def test_noise_cannot_be_predicted_without_signal(sdxl: str, tmp_path: Path, scheduler: str) -> None:
    folder = copy_of(sdxl, tmp_path / "zero")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler]
    (folder / "model_index.json").write_text(json.dumps(index))
    kind = getattr(diffusers, scheduler)
    for prediction in ("v_prediction", "epsilon"):
        kind(rescale_betas_zero_snr=True, prediction_type=prediction).save_pretrained(folder / "scheduler")
        backbone = SDXL(str(folder), image_size=16, precision="float32", num_steps=2)
        if prediction == "epsilon":
            with pytest.raises(ValueError, match=r"rescaled to zero terminal SNR.*set rescale_betas_zero_snr to false"):
                backbone.load("network")
        else:
            backbone.load("network")
            assert backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(0)]).isfinite().all()


def test_a_folder_that_changed_has_another_version(sdxl: str, tmp_path: Path) -> None:
    folder = copy_of(sdxl, tmp_path / "model")
    path = folder / "text_encoder" / "model.safetensors"
    before, times = SDXL(str(folder)).version, path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and time
    assert SDXL(str(folder)).version != before
    assert SDXL(str(copy_of(sdxl, tmp_path / "other"))).version == before


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("executed").touch()

class Net:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()
"""


@pytest.mark.parametrize(
    ("case", "entry"),
    [
        ("sdxl", ["evil", "Net"]),
        ("stable_diffusion3", ["transformers", "pipeline"]),
        ("flux", ["diffusers", "DiffusionPipeline"]),
        ("kandinsky3", ["evil"]),
    ],
    indirect=["case"],
)
def test_no_module_that_an_index_names_is_imported(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: list[str]
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    folder = copy_of(case.folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    parts = {case.kind.network_part: "network", case.kind.encoder_part: "images", "scheduler": "network"}
    parts |= dict.fromkeys(case.kind.text_parts, "text")
    for part, loaded in parts.items():
        (folder / part / "evil.py").write_text(EVIL)  # where diffusers look for a component's own module
        (folder / "model_index.json").write_text(json.dumps(index | {part: entry}))
        backbone = case.kind(str(folder), image_size=case.size, precision="float32")
        with pytest.raises(
            ValueError, match=rf"names .*{entry[0]}.* for its {part}, and parts are loaded by the models"
        ):
            backbone.load(loaded)
    assert not list(tmp_path.rglob("executed"))
    assert "evil" not in sys.modules


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", SOME, indirect=True)
def test_no_pickle_of_weights_is_executed(case: Case, tmp_path: Path) -> None:
    for part, loaded in {case.kind.network_part: "network", case.kind.encoder_part: "images"}.items() | {
        (name, "text") for name in case.kind.text_parts if name.startswith("text_encoder")
    }:
        folder = copy_of(case.folder, tmp_path / part)
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
            torch.save({"weight": Bomb(tmp_path / "executed")}, folder / part / name)
        with pytest.raises(
            (FileNotFoundError, ValueError),
            match=rf"The {part} of .* cannot be|The weights of .* of more than",
        ):
            case.kind(str(folder), image_size=case.size, precision="float32").load(loaded)
    assert not (tmp_path / "executed").exists()
