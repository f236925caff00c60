"""What every adapter of a pipeline promises, held against the real pipeline of the same folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, PeftModel

from lit_modules.synthia import (
    SDXL,
    Flux2Klein,
    Kandinsky3,
    PixArtSigma,
    QwenImage,
    Sana,
    StableDiffusion,
)
from lit_modules.synthia.backbones.pipeline import PipelineBackbone
from lit_modules.synthia.core.randomness import generator_of
from tests.tiny_pipelines import BACKBONES, CALLS, open_pipeline

CASES: dict[str, tuple[type[PipelineBackbone], int]] = {
    **BACKBONES,
    "stable_diffusion_v": BACKBONES["stable_diffusion"],
    "flux_schnell": BACKBONES["flux"],
}
NOISE = (StableDiffusion, SDXL, Kandinsky3, PixArtSigma)
"""Those that predict noise, or the velocity of diffusion, and no flow."""
PROMPTS = ["a cup", "a new design that pours"]


class Case:
    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.kind, self.size = CASES[name]

    def __call__(self, **more: Any) -> Any:
        settings: dict[str, Any] = {"image_size": self.size, "precision": "float32", "num_steps": 2}
        return self.kind(self.folder, **settings | more)

    def real(self) -> Any:
        return open_pipeline(self.kind.pipeline_name, self.folder, self.size)

    def draw(self, pipeline: Any, prompt: str, seed: int) -> torch.Tensor:
        settings = {"prompt": prompt, "num_inference_steps": 2, "output_type": "np"} | CALLS[self.name]
        drawn = pipeline(height=self.size, width=self.size, generator=generator_of(seed), **settings).images
        return torch.from_numpy(drawn).permute(0, 3, 1, 2)


SOME = ("stable_diffusion_v", "flux", "kandinsky3")
"""One pipeline of each kind: a U-Net, a transformer of flow matching, and the one that is unlike the others."""
NEW = ("sana", "pixart_sigma", "lumina2", "z_image", "qwen_image", "flux2_klein", "chroma", "hidream")
"""Those that are tried in every respect."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, request.getfixturevalue(request.param))


def adapted(case: Case, precision: str = "float32") -> Any:
    backbone = case(precision=precision)
    backbone.load("text", "network")
    backbone.network.requires_grad_(False)
    backbone.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=list(backbone.lora_targets)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in backbone.network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
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
    assert torch.equal(images, backbone.generate(condition, [generator_of(4), generator_of(5)]))
    assert torch.equal(images, case().generate(condition, [generator_of(4), generator_of(5)]))  # loads what is missing


def as_the_autoencoder(case: Case, vae: Any, images: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return raw latents, our mean without its scale, the scaled deviation, and the images of the raw latents."""
    if case.kind is Kandinsky3:
        latents = vae.encode(images).latents
        return latents, mean, torch.zeros_like(mean), vae.decode(latents, force_not_quantize=True).sample
    if case.kind is Sana:
        latents = vae.encode(images).latent
        return latents, mean / vae.config.scaling_factor, torch.zeros_like(mean), vae.decode(latents).sample
    if case.kind is QwenImage:
        posterior, shift, spread = vae.encode(images[:, :, None]).latent_dist, *latent_statistics(vae)
        decoded = vae.decode(posterior.mean).sample[:, :, 0]
        return posterior.mean[:, :, 0], mean * spread + shift, posterior.std[:, :, 0] / spread, decoded
    posterior = vae.encode(images).latent_dist
    if case.kind is Flux2Klein:
        real = case.real()
        spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()[:, None, None]
        std, decoded = real._patchify_latents(posterior.std) / spread, vae.decode(posterior.mean).sample
        return real._encode_vae_image(images, generator_of(0)), mean, std, decoded
    scale = vae.config.scaling_factor
    scaled = mean / scale + (vae.config.shift_factor or 0)
    return posterior.mean, scaled, posterior.std * scale, vae.decode(posterior.mean).sample


def latent_statistics(vae: Any) -> list[torch.Tensor]:
    return [torch.tensor(values)[:, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)]


def test_images_become_scaled_latents_and_come_back_as_the_autoencoder_gives_them(case: Case) -> None:
    backbone = case()
    images = torch.rand(2, 3, case.size, case.size, generator=generator_of(0)) * 2 - 1
    mean, std = backbone.encode_image(images)
    assert mean.shape[1:] == backbone.latent_shape()
    assert mean.dtype == std.dtype == torch.float32
    vae = backbone.held("images", "vae")
    with torch.no_grad():
        latents, scaled, spread, decoded = as_the_autoencoder(case, vae, images, mean)
    torch.testing.assert_close(scaled, latents)
    torch.testing.assert_close(std, spread)
    given = mean.detach().requires_grad_()
    back = backbone.decode(given)
    torch.testing.assert_close(back.detach(), decoded, atol=1e-5, rtol=1e-4)
    back.square().mean().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    if case.kind is not Kandinsky3:
        torch.testing.assert_close(case(vae_slicing=True).encode_image(images), (mean, std))


def test_targets_are_noise_or_velocity_as_the_scheduler_says(case: Case) -> None:
    backbone = case()
    backbone.load("network")
    clean, noise = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    target = backbone.schedule.target(clean, noise, torch.tensor([400]))
    flows = case.kind not in NOISE
    if case.name == "stable_diffusion_v":
        level = diffusers.DDIMScheduler.from_pretrained(case.folder, subfolder="scheduler").alphas_cumprod[400]
        torch.testing.assert_close(target, level.sqrt() * noise - (1 - level).sqrt() * clean)
    else:
        torch.testing.assert_close(target, noise - clean if flows else noise)
    times = backbone.draw_timesteps([generator_of(row) for row in range(2000)])
    assert times.is_floating_point() == flows
    middle = ((times > 250) & (times < 750)).float().mean()
    assert middle == pytest.approx(0.728 if flows else 0.5, abs=0.04)  # logit-normal, or even


@pytest.mark.parametrize("case", [*SOME, *NEW], indirect=True)
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
    assert (plain.denoise(latents, times, condition) - prediction).abs().max() > 1e-3
    backbone.network.zero_grad()
    sampler = backbone.few_step_sampler(num_steps=2, truncation=1)
    noise = sampler.draw_noise((1, *backbone.latent_shape()), generator_of(0))
    sampler.sample(backbone.denoise, noise, backbone.encode_prompt(PROMPTS[:1])).square().mean().backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in trained.values())


def test_the_pipeline_draws_the_same_with_a_saved_adapter(case: Case, tmp_path: Path) -> None:
    backbone = adapted(case)
    images = backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(4)])
    backbone.save_pretrained(str(tmp_path), adapter=True)
    real = case.real()
    assert (case.draw(real, PROMPTS[0], 4) - images).abs().max() > 1e-3
    if case.kind in (Kandinsky3, PixArtSigma):
        part = case.kind.network_part
        with pytest.raises(AttributeError):  # why its adapters are written as peft does
            real.load_lora_weights({f"{part}.conv_in.lora_A.weight": torch.zeros(1)})
        PeftModel.from_pretrained(getattr(real, part), str(tmp_path))
    else:
        assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
        real.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(images, case.draw(real, PROMPTS[0], 4), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("case", NEW, indirect=True)
def test_steps_by_our_predictions_are_those_of_the_pipeline(case: Case) -> None:
    backbone, real = case(), case.real()
    backbone.load("text", "network")
    condition = backbone.encode_prompt(PROMPTS)
    flows = case.kind not in NOISE
    unguided = {case.kind.guidance_argument: 1.0 - case.kind.guidance_offset, "negative_prompt": None}
    settings = CALLS[case.name] | {key: value for key, value in unguided.items() if key in CALLS[case.name]}
    settings |= {"num_inference_steps": 3, "output_type": "latent", "height": case.size, "width": case.size}
    scheduler = type(real.scheduler).from_config(real.scheduler.config)
    for row, prompt in enumerate(PROMPTS):
        wanted = backbone.unpacked(real(prompt=prompt, generator=generator_of(row), **settings).images)
        scheduler.set_timesteps(3, **backbone.timestep_arguments(3) if flows else {})
        given = backbone.stack(backbone.split(condition)[row : row + 1])
        latents = noised(backbone)[row : row + 1]
        with torch.no_grad():
            for time in scheduler.timesteps:
                latents = scheduler.step(backbone.denoise(latents, time[None], given), time, latents).prev_sample
        torch.testing.assert_close(latents, wanted.reshape(latents.shape), atol=1e-5, rtol=1e-4)
        if flows:
            assert backbone.few_step_timesteps(3) == pytest.approx(real.scheduler.timesteps.tolist(), rel=1e-6)


@pytest.mark.parametrize("case", NEW, indirect=True)
def test_the_pipeline_draws_the_same_with_a_saved_network(case: Case, tmp_path: Path) -> None:
    backbone = case()
    backbone.load("text", "network")
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator_of(2)), alpha=0.1)
    images = backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(4)])
    assert (case.draw(case.real(), PROMPTS[0], 4) - images).abs().max() > 1e-3
    backbone.save_pretrained(str(tmp_path), adapter=False)
    part = case.kind.network_part
    network = type(backbone.network).from_pretrained(tmp_path, subfolder=part)
    real = open_pipeline(case.kind.pipeline_name, case.folder, case.size, **{part: network})
    torch.testing.assert_close(images, case.draw(real, PROMPTS[0], 4), atol=1e-4, rtol=1e-3)


def test_half_precision_works_and_answers_in_full(case: Case) -> None:
    backbone = adapted(case, "bfloat16")
    condition = backbone.encode_prompt(PROMPTS[:1])
    assert backbone.network.dtype == condition["prompt_embeds"].dtype == torch.bfloat16
    assert backbone.denoise(noised(backbone, 1), torch.tensor([500]), condition).dtype == torch.float32
    images = backbone.generate(condition, [generator_of(0)])
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    wanted = torch.float32 if case.name == "sdxl" else torch.bfloat16
    assert backbone.held("images", "vae").dtype == wanted


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
    state = backbone.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.network.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "model", "part", "more", "message"),
    [
        (StableDiffusion, "sdxl", "text", {}, r"takes a StableDiffusionPipeline, got .* a StableDiffusionXLPipeline; "),
        (SDXL, "/nowhere", "network", {}, "There is no model '/nowhere'"),
        (SDXL, "sdxl", "network", {"trained_network": "/nowhere"}, r"The unet of .* cannot be loaded"),
        (SDXL, "sdxl", "images", {"image_size": 20}, "image_size must be a multiple of 8 for SDXL, got 20"),
        (SDXL, "sdxl", "network", {"variant": "fp16"}, "has no files of variant 'fp16'; leave it out"),
        (SDXL, "sdxl", "network", {"precision": "int8"}, "precision must be"),
        (SDXL, "sdxl", "network", {"guidance": -1.0}, "guidance must not be negative"),
    ],
)
def test_a_wrong_model_or_argument_is_named(
    kind: Any, model: str, part: Any, more: dict[str, Any], message: str, sdxl: str
) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        kind(sdxl if model == "sdxl" else model, **{"image_size": 16} | more).load(part)


def copy_of(folder: str, place: Path) -> Path:
    shutil.copytree(folder, place)
    return place


def test_a_pipeline_that_diffusers_do_not_have_is_named(sdxl: str, tmp_path: Path) -> None:
    class Later(SDXL):
        pipeline_name = "LaterPipeline"

    folder = copy_of(sdxl, tmp_path / "later")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "LaterPipeline"}))
    with pytest.raises(ImportError, match=rf"Later needs the LaterPipeline of diffusers, .*{diffusers.__version__}"):
        Later(str(folder), image_size=16).load("network")


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


def test_noise_cannot_be_predicted_without_signal(sdxl: str, tmp_path: Path) -> None:
    folder = copy_of(sdxl, tmp_path / "zero")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    kind = diffusers.EulerDiscreteScheduler
    for prediction in ("v_prediction", "epsilon"):
        kind(rescale_betas_zero_snr=True, prediction_type=prediction).save_pretrained(folder / "scheduler")
        backbone = SDXL(str(folder), image_size=16, precision="float32", num_steps=2)
        if prediction == "epsilon":
            with pytest.raises(ValueError, match=r"rescaled to zero terminal SNR.*set rescale_betas_zero_snr to false"):
                backbone.load("network")
        else:
            backbone.load("network")
            assert backbone.generate(backbone.encode_prompt(PROMPTS[:1]), [generator_of(0)]).isfinite().all()


def test_a_part_that_an_index_names_must_be_of_a_known_kind(sdxl: str, tmp_path: Path) -> None:
    folder = copy_of(sdxl, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    for entry in (["evil", "Net"], ["transformers", "pipeline"], ["diffusers", "DiffusionPipeline"], ["evil"]):
        (folder / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
        with pytest.raises(ValueError, match=rf"names .*{entry[0]}.* for its unet, and parts are loaded by the models"):
            SDXL(str(folder), image_size=16).load("network")


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
