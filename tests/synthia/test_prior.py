"""Class pictures: drawn once by the untuned model, and a term of the loss for whatever trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from peft import LoraConfig
from torch import nn
from torch.utils.data import DataLoader

from lit_modules.synthia import StableDiffusion
from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.core.prior import PriorPictures
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.synthia import Synthia
from lit_modules.synthia.text_to_image import TextToImageTraining

Make = Callable[..., Any]
CLASSES = ["a photo of a jug", "a photo of a bus"]
PRIOR: dict[str, Any] = {"prior_weight": 2.0, "prior_prompts": CLASSES, "prior_images": 3}


def pixel(**more: Any) -> PixelDiffusion:
    return PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2, **more)


def batches(number: int = 3, side: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=generator).float() / 127.5 - 1
    batch = {
        "prompt": ["a design to sit", "a design to pour"],
        "pos": pixels[:2],
        "image": pixels[:2],
        "neg": pixels[1:, None],
        "neg_mask": torch.tensor([[True], [True]]),
        "pair_id": torch.tensor([7, 8]),
    }
    return DataLoader([batch] * number, batch_size=None)  # type: ignore[arg-type]


class Named(LightningDataModule):
    """Data that name their prompts."""

    def prompts(self) -> list[str]:
        return ["a design to sit", "a design to pour"]

    def train_dataloader(self) -> DataLoader[Any]:
        return batches()


def everything(prior: PriorPictures) -> torch.Tensor:
    return prior.pictures(range(len(prior)))


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2)], ids=["whole", "adapter"])
def test_the_term_is_the_error_on_pictures_of_the_untuned_model(peft_config: Any) -> None:
    module = Synthia(pixel(), peft_config=peft_config, min_snr_gamma=5.0, **PRIOR)
    module.configure_model()
    module.network.eval()
    for parameter in module.trainable_parameters():
        nn.init.normal_(parameter, std=0.1)
    batch = next(iter(batches()))
    losses = module.losses(batch, module.row_generators(batch, "x"), module.conditions(batch))
    generators = [generator_of("row", row) for row in range(2)]
    both = module.with_prior(losses, generators)
    torch.testing.assert_close(both["loss"], losses["loss"] + 2 * both["prior"])
    assert {name: value for name, value in both.items() if name not in ("loss", "prior")} == {
        name: value for name, value in losses.items() if name != "loss"
    }
    base = pixel()
    base.load("network")
    base.network.eval()
    backbone, errors = module.backbone, []
    for generator in (generator_of("row", row) for row in range(2)):
        index = int(torch.randint(6, (), generator=generator))
        prompt = CLASSES[index // 3]
        drawn = base.generate(base.encode_prompt([prompt]), [generator_of(0, "prior", prompt, index % 3)])
        latents = backbone.encode_image((drawn * 255).round() / 127.5 - 1)[0]
        torch.randn(latents.shape[1:], generator=generator)  # of the latents' own distribution
        noise = torch.randn(latents.shape[1:], generator=generator)[None]
        time = torch.randint(1000, (), generator=generator)[None]
        schedule = backbone.schedule
        predicted = backbone.denoise(schedule.add_noise(latents, noise, time), time, backbone.encode_prompt([prompt]))
        snr = schedule.snr(time)
        weight = snr.clamp(max=5) / (snr + 1)
        errors.append((predicted - schedule.target(latents, noise, time)).square().mean() * weight.float())
    torch.testing.assert_close(both["prior"], torch.cat(errors).mean(), atol=1e-5, rtol=1e-4)


CONVOLUTIONS = LoraConfig(r=8, lora_alpha=8, target_modules=["conv1", "conv2", "conv_in", "conv_out"])


@pytest.mark.parametrize(("kind", "peft_config"), [(Synthia, None), (TextToImageTraining, CONVOLUTIONS)])
def test_what_the_model_drew_is_remembered(kind: Any, peft_config: Any, trainer: Make) -> None:
    errors = []
    for prior in ({}, PRIOR | {"prior_weight": 20.0}):
        optimizer = partial(torch.optim.AdamW, lr=1e-2)
        module = kind(pixel(), peft_config=peft_config, optimizer=optimizer, **prior)
        runner = trainer(max_epochs=30)
        runner.fit(module, batches(2))
        assert ("train/prior" in runner.callback_metrics) == bool(prior)
        look = Synthia(module.backbone, **PRIOR)  # draws by a network of its own, whatever was trained
        look.network = module.network.eval()
        with torch.no_grad():
            generators = [generator_of("look", row) for row in range(16)]
            errors.append(float(look.with_prior({"loss": torch.tensor(0.0)}, generators)["prior"]))
    assert errors[1] < 0.8 * errors[0]


def test_pictures_are_those_of_the_model_before_any_tuning(
    stable_diffusion: str, trainer: Make, tmp_path: Path
) -> None:
    backbone = StableDiffusion(stable_diffusion, image_size=16, precision="float32", num_steps=2)
    module = Synthia(backbone, cache=str(tmp_path / "cache"), optimizer=partial(torch.optim.AdamW, lr=0.1), **PRIOR)
    trainer(max_epochs=1).fit(module, Named())
    assert module.prior is not None
    assert "text" not in backbone._held  # all prompts were encoded before the network was loaded
    kept = everything(module.prior)
    assert kept.shape == (6, 3, 16, 16)
    assert kept.dtype == torch.uint8
    untuned = StableDiffusion(stable_diffusion, image_size=16, precision="float32", num_steps=2)
    condition = untuned.encode_prompt([CLASSES[1]])
    drawn = untuned.generate(condition, [generator_of(0, "prior", CLASSES[1], 2)])
    assert (kept[5].int() - (drawn[0] * 255).round().int()).abs().max() <= 1
    tuned = backbone.generate(condition, [generator_of(0, "prior", CLASSES[1], 2)])
    assert (tuned - drawn).abs().max() > 0.05
    late = PriorPictures(backbone, CLASSES, 3, 0, None)  # by a backbone whose network was tuned
    assert (everything(late).int() - kept.int()).abs().max() <= 1


def test_pictures_are_drawn_once_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    generate = PixelDiffusion.generate

    def counted(self: PixelDiffusion, condition: Any, generators: Any, **more: Any) -> torch.Tensor:
        if len(drawn) == 1 and not resumed:
            raise KeyboardInterrupt
        drawn.append(len(generators))
        return generate(self, condition, generators, **more)

    monkeypatch.setattr(PixelDiffusion, "generate", counted)
    make = lambda number=3, seed=0, **more: PriorPictures(pixel(**more), CLASSES, number, seed, str(tmp_path))  # noqa: E731
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        make().prepare()
    resumed = True
    first = make()
    first.prepare()
    assert drawn == [4, 2]  # the first four were there
    pictures = everything(first)
    assert torch.equal(everything(make()), pictures)
    more = make(number=4)
    assert torch.equal(more.pictures([0, 1, 2, 4, 5, 6]), pictures)
    assert sum(drawn) == 6
    more.prepare()
    assert sum(drawn) == 8
    assert not torch.equal(everything(make(seed=1)), pictures)
    assert not torch.equal(everything(make(guidance=1.0)), pictures)
    assert sum(drawn) == 20
    path = next(path for path in tmp_path.rglob("*.safetensors") if path.stem == first._keys[0])  # type: ignore[index]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        assert torch.equal(everything(make()), pictures)
    shares = [make(seed=2) for _ in range(2)]
    for rank, share in enumerate(shares):
        share.prepare(rank, 2)
        assert share.cache.misses == 3
    assert sum(drawn) == 27


def test_a_resumed_run_meets_the_same_class_pictures(trainer: Make, tmp_path: Path) -> None:
    def make() -> Synthia:
        return Synthia(pixel(), optimizer=partial(torch.optim.AdamW, lr=1e-2), **PRIOR)

    whole = make()
    trainer(max_epochs=2).fit(whole, batches())
    half, rest = make(), make()
    runner = trainer(max_epochs=1)
    runner.fit(half, batches())
    runner.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_epochs=2).fit(rest, batches(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value)
    loaded = Synthia.load_from_checkpoint(tmp_path / "half.ckpt", backbone=pixel())
    assert loaded.prior is not None
    assert (loaded.prior_weight, loaded.prior.prompts) == (2.0, CLASSES)
