import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from callbacks import Curriculum
from datamodules import DrawnObjects
from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.core.objective import ContrastiveObjective
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.objectives import Denoise, DenoiseDPO, InfoNCE, LinearContrast, Triplet
from lit_modules.synthia.synthia import Synthia
from lit_modules.synthia.text_to_image import TextToImageTraining

Make = Callable[..., Any]


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian")


def first_batch(data: DrawnObjects) -> dict[str, Any]:
    data.setup("fit")
    data.hparams["epochs"] = 3
    batch: dict[str, Any] = next(iter(data.train_dataloader()))
    return batch


def losses_of(module: Synthia, batch: dict[str, Any]) -> dict[str, Tensor]:
    module.configure_model()
    module.network.eval()  # no dropout between two looks
    return module.losses(batch, module.row_generators(batch, "x"), module.conditions(batch), generator_of(1))


class Seen(Metric):
    """Counts images, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.seen: list[tuple[Tensor, Any]] = []

    def update(self, images: Tensor, batch: Any) -> None:
        self.count += len(images)
        self.seen.append((images, batch))

    def compute(self) -> dict[str, Tensor]:
        return {"count": self.count, "count/easy": self.count * 2}


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(2)


CASES: list[tuple[ContrastiveObjective, dict[str, Any]]] = [
    (Denoise(), {}),
    (Denoise(), {"min_snr_gamma": 5.0}),
    (Denoise(), {"peft": True, "prior_weight": 0.1, "prior_prompts": ["a jug"], "prior_images": 2}),
    (LinearContrast(), {"num_steps": 2, "prior_weight": 0.1, "prior_prompts": ["a jug"], "prior_images": 2}),
    (DenoiseDPO(scale=10.0), {"peft": True}),
    (LinearContrast(), {"num_steps": 2}),
    (LinearContrast(denoising_weight=0.0), {"num_steps": 2, "truncation": None, "pixel_size": 8}),
    (Triplet(), {"space": "latent", "num_steps": 2, "truncation": "random"}),
    (InfoNCE(), {"space": "embedding", "embedder": Mean(), "num_steps": 2}),
]


@pytest.mark.parametrize(("objective", "arguments"), CASES)
def test_every_objective_trains(
    objective: ContrastiveObjective, arguments: dict[str, Any], synthia: Make, pairs: Make, trainer: Make
) -> None:
    more = {**arguments}
    if more.pop("peft", False):
        more["peft_config"] = lora()
    module = synthia(objective=objective, **more)
    module.configure_model()
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    runner = trainer(max_epochs=3, limit_train_batches=1)
    runner.fit(module, pairs())
    changed = {n for n, value in module.network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert changed <= {n for n, parameter in module.network.named_parameters() if parameter.requires_grad}
    logged = {"train/loss", "train/positive", "train/negative", "val/positive", "val/negative", "val/gap"}
    assert logged <= set(runner.callback_metrics)
    assert all(math.isfinite(value) for value in runner.callback_metrics.values())


def test_denoise_is_the_formula(synthia: Make, pairs: Make) -> None:
    module, batch = synthia(objective=Denoise(negative_weight=0.5, margin=0.1)), first_batch(pairs(batch_size=1))
    losses = losses_of(module, batch)
    generators = module.row_generators(batch, "x")
    backbone, schedule = module.backbone, module.backbone.schedule
    with torch.no_grad():
        images = [batch["pos"], batch["neg"][:, 0], batch["neg"][:, 1]]
        latents = [backbone.encode_image(image)[0] for image in images]
        for draw in (latents[0].shape[1:], (2, *latents[0].shape[1:])):  # what the latents' own noise takes
            torch.randn(draw, generator=generators[0])
        errors = []
        order = module.row_generators(batch, "x")
        torch.randn(latents[0].shape[1:], generator=order[0])
        noise = torch.randn(latents[0].shape[1:], generator=order[0])[None]
        time = torch.randint(1000, (), generator=order[0])[None]
        for latent in latents:
            noised = schedule.add_noise(latent, noise, time)
            predicted = backbone.denoise(noised, time, backbone.encode_prompt(batch["prompt"]))
            errors.append((predicted - schedule.target(latent, noise, time)).square().mean())
    hinge = sum((0.1 + errors[0] - error).clamp(min=0) for error in errors[1:]) / 2
    torch.testing.assert_close(losses["loss"].detach(), errors[0] + 0.5 * hinge)


def test_rows_of_one_pair_have_noise_of_their_own(synthia: Make) -> None:
    module = synthia()
    module.configure_model()

    def draws(**batch: Any) -> list[list[float]]:
        rows = {"prompt": ["a cup"] * 4, "pair_id": torch.tensor([7, 7, 7, 8])} | batch
        generators = module.row_generators(rows, "train", 0, 0)
        times = module.backbone.draw_timesteps(generators)
        return [
            [float(time), *torch.randn(3, generator=each).tolist()]
            for time, each in zip(times, generators, strict=True)
        ]

    plain = draws()
    numbered = draws(draw=torch.tensor([5, 6, 5, 5]))
    assert len({tuple(row) for row in (*plain, *numbered)}) == 8
    assert draws() == plain
    alone = draws(prompt=["a cup"], pair_id=torch.tensor([8]), draw=torch.tensor([5]))
    assert alone == numbered[3:]  # a numbered row does not depend on its batch


def test_a_prediction_draws_what_a_test_draws(synthia: Make, pairs: Make, trainer: Make) -> None:
    module, data = synthia(metric=Seen(), images_per_prompt=2, seed=3), pairs(eval_batch_size=2)
    runner = trainer(limit_test_batches=1)
    predicted = runner.predict(module, data)
    assert sum(len(batch["prompt"]) for batch in predicted) == 4
    first = predicted[0]
    assert first["image"].shape == (2, 2, 3, 16, 16)
    assert 0 <= first["image"].min() <= first["image"].max() <= 1
    assert len(first["affordances"]) == len(first["pair_id"]) == 2
    runner.test(module, data, verbose=False)
    assert torch.equal(first["image"], torch.stack([images for images, _ in module.metric.seen], 1))
    twice = synthia(metric=Seen(), images_per_prompt=1)
    trainer(limit_test_batches=1).test(twice, pairs(samples_per_pair=2, eval_batch_size=2), verbose=False)
    ((images, _),) = twice.metric.seen  # one pair, drawn twice
    assert not torch.equal(images[0], images[1])


def test_prompts_alone_are_drawn_by_the_seed(synthia: Make, trainer: Make) -> None:
    prompts = DataLoader(["a cup", "a jug", "a cup"], batch_size=2)  # type: ignore[arg-type]
    draw = lambda seed: trainer().predict(synthia(seed=seed, images_per_prompt=1), prompts)  # noqa: E731
    one, again, other = draw(0), draw(0), draw(1)
    assert [batch["prompt"] for batch in one] == [["a cup", "a jug"], ["a cup"]]
    assert all(torch.equal(first["image"], second["image"]) for first, second in zip(one, again, strict=True))
    assert not torch.equal(one[0]["image"], other[0]["image"])
    assert not torch.equal(one[0]["image"][0], one[1]["image"][0])  # the same prompt in another row
    for kind in (Synthia, TextToImageTraining):
        module = kind(PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2), template="a {affordances}")
        images = module(["a cup", "a jug"], seed=4)
        torch.testing.assert_close(images[:1], module.generate(["cup"], seed=4))
        assert (images.shape, images.requires_grad) == ((2, 3, 16, 16), False)


def test_reference_terms_begin_at_their_values(synthia: Make, pairs: Make) -> None:
    batch = first_batch(pairs())
    losses = losses_of(synthia(objective=DenoiseDPO(), peft_config=lora()), batch)
    assert float(losses["preference"].detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_padding_counts_for_nothing_and_no_negatives_leave_the_denoising_term(synthia: Make, pairs: Make) -> None:
    batch = first_batch(pairs())
    batch["neg_mask"][:, 1] = False
    spoiled = {**batch, "neg": batch["neg"].clone()}
    spoiled["neg"][:, 1] = 0.123
    first, second = (losses_of(synthia(), given)["loss"] for given in (batch, spoiled))
    assert torch.equal(first, second)
    losses = losses_of(synthia(), {**batch, "neg": batch["neg"][:, :0], "neg_mask": batch["neg_mask"][:, :0]})
    assert torch.equal(losses["loss"], losses["positive"])


def test_three_stages_lower_the_error_and_raise_the_gap(synthia: Make, pairs: Make, trainer: Make) -> None:
    module = synthia(objective=Denoise(negative_weight=0.5, margin=0.2), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    data = pairs(positives=1, images_per_concept=1, negatives=1, batch_size=4, num_images=1)
    batch = first_batch(data)
    rows = data.split("train")[[(place, draw) for place in (4, 5) for draw in range(8)]]

    def look() -> tuple[float, float]:
        with torch.no_grad():
            losses = losses_of(module, rows)
        return float(losses["positive"]), float(losses["negative"] - losses["positive"])

    error, gap = look()
    runner = trainer(max_epochs=75, callbacks=[Curriculum()], limit_val_batches=0)
    runner.fit(module, data)
    after, wider = look()
    assert runner.callback_metrics["curriculum/stage"] == 2
    assert len(batch["prompt"]) == 2
    assert after < 0.8 * error
    assert wider > gap + 0.05


def test_generate_is_deterministic_and_takes_any_number_of_affordances(synthia: Make) -> None:
    module = synthia()
    for affordances in (["sit"], ["sit", "store", "pour", "fly"]):
        many, few = module.generate(affordances, 3, seed=1), module.generate(affordances, 1, seed=1)
        assert many.shape == (3, 3, 16, 16)
        assert many.min() >= 0
        assert many.max() <= 1
        torch.testing.assert_close(many[:1], few, atol=1e-5, rtol=1e-4)
    assert not torch.equal(module.generate(["sit"], seed=0), module.generate(["sit"], seed=1))


def test_what_cannot_be_drawn_or_trained_on_is_refused(synthia: Make, trainer: Make) -> None:
    module = synthia(known_affordances=["sit", "store"])
    for affordances, number, message in (
        ("sit", 1, "affordances must be a list of at least one, got 'sit'"),
        (["stire"], 1, "There is no affordance 'stire'.*store"),
    ):
        with pytest.raises(ValueError, match=message):
            module.generate(affordances, number)
    with pytest.raises(TypeError, match=r"Synthia draws a sequence of prompts, such as \['a cup'\], got str"):
        module("a cup")
    with pytest.raises(ValueError, match=r"Synthia draws what batch\['prompt'\] says, a list of texts, got image;"):
        module.predict_step({"image": torch.zeros(1)})
    data = DrawnObjects(image_size=16, num_images=4, validation_size=2, batch_size=2)
    with pytest.raises(ValueError, match=r"Synthia trains on batches with prompt, pos, neg, neg_mask.*without pos"):
        trainer(max_epochs=1, limit_val_batches=0).fit(module, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": DenoiseDPO()}, "DenoiseDPO compares with the network before tuning.*give a peft_config"),
        ({"prior_weight": 0.1}, "prior_weight must be 0, or positive with prior_prompts .*, got 0.1 with "),
        ({"prior_prompts": ["a jug"]}, r"positive with prior_prompts .*, got 0.0 with \['a jug'\]"),
        ({"prior_weight": -1.0, "prior_prompts": ["a jug"]}, "prior_weight must be 0, or positive .*, got -1.0"),
        ({"prior_weight": 1.0, "prior_prompts": "a jug"}, "prior_prompts must be a list of prompts.*, got 'a jug'"),
        ({"prior_weight": 1.0, "prior_prompts": ["a jug"], "prior_images": 0}, "prior_images must be at least 1"),
        ({"space": "sound"}, "space must be 'pixel', 'latent', 'embedding', got 'sound'"),
        ({"embedder": Mean()}, "An embedder goes with space 'embedding', got space 'pixel'"),
        ({"pixel_size": 17}, "pixel_size must be from 1 to the backbone's 16, got 17"),
        ({"template": "a thing"}, "template must have the place '{affordances}'"),
        ({"images_per_prompt": 0}, "images_per_prompt must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, synthia: Make) -> None:
    with pytest.raises(ValueError, match=message):
        synthia(**arguments)


def test_loss_that_is_not_finite_stops_the_run(synthia: Make, pairs: Make, trainer: Make, tmp_path: Path) -> None:
    module = synthia()

    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 1:
                batch["pos"][0] = math.nan

    message = r"training loss is nan at step 1 on the rows \d+.*last_good_step_1.ckpt"
    with pytest.raises(FloatingPointError, match=message):
        trainer(max_epochs=3, limit_train_batches=2, callbacks=[Spoil()]).fit(module, pairs(batch_size=1))
    state = torch.load(tmp_path / "last_good_step_1.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_rising_error_is_warned_of_once(synthia: Make, pairs: Make, trainer: Make) -> None:
    module = synthia(optimizer=partial(torch.optim.SGD, lr=0.3, maximize=True))
    module.monitor.window = 2
    with pytest.warns(UserWarning, match="error on the positives has risen to") as said:
        trainer(max_epochs=9, limit_val_batches=0).fit(module, pairs(batch_size=1))
    assert sum("error on the positives" in str(warning.message) for warning in said) == 1


def test_metric_gets_images_and_batch(synthia: Make, pairs: Make, trainer: Make) -> None:
    metric = Seen()
    module = synthia(metric=metric, images_per_prompt=2, validation_images=1)
    with pytest.raises(RuntimeError, match="has no results yet"):
        module.results()
    runner = trainer(max_epochs=3, limit_train_batches=1)
    runner.fit(module, pairs())
    assert runner.callback_metrics["val/count"] == 4
    metric.seen.clear()
    runner.test(module, pairs(), verbose=False)
    assert module.results() == {"count": 8, "count/easy": 16}
    assert runner.callback_metrics["test/count/easy"] == 16
    (images, batch), (others, _) = metric.seen
    assert images.shape == (4, 3, 16, 16)
    assert len(batch["affordances"]) == 4
    assert not torch.equal(images, others)
    plain = {name: value for name, value in batch.items() if name not in ("pos", "neg")}
    runner = trainer()  # no pictures, no errors of the noise
    runner.validate(module, DataLoader([plain], batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert set(runner.callback_metrics) == {"val/count", "val/count/easy"}


def test_min_snr_weighs_the_denoising_term(synthia: Make, pairs: Make) -> None:
    batch = first_batch(pairs(batch_size=1))
    plain, weighed = (losses_of(synthia(min_snr_gamma=gamma), batch) for gamma in (None, 5.0))
    module = synthia()
    module.configure_model()
    generators = module.row_generators(batch, "x")
    for shape in ((16, 4, 4), (16, 4, 4)):
        torch.randn(shape, generator=generators[0])
    snr = module.backbone.schedule.snr(torch.randint(1000, (1,), generator=generators[0]))
    weight = snr.clamp(max=5) / (snr + 1)
    lighter = (plain["loss"] - weighed["loss"]).detach()
    torch.testing.assert_close(lighter, (plain["positive"].detach() * (1 - weight))[0].float(), atol=1e-5, rtol=1e-4)


def test_captions_train_the_model_first(trainer: Make, tmp_path: Path) -> None:
    module = TextToImageTraining(
        PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
    )
    data = DrawnObjects(image_size=16, num_images=32, validation_size=16, batch_size=16)
    runner = trainer(max_epochs=25, check_val_every_n_epoch=25)
    first = runner.validate(module, data, verbose=False)[0]["val/loss"]
    runner.fit(module, data)
    assert float(runner.callback_metrics["val/loss"]) < 0.9 * first
    module.save_pretrained(str(tmp_path / "saved"))
    tuned = Synthia(PixelDiffusion(str(tmp_path / "saved"), num_steps=2))
    assert torch.equal(module.generate(["sit"], seed=1), tuned.generate(["sit"], seed=1))
    silent = TextToImageTraining(PixelDiffusion(image_size=16, widths=(8, 16)), caption_dropout=1.0)
    asked: list[str] = []
    encode = silent.backbone.encode_prompt
    silent.backbone.encode_prompt = lambda prompts: asked.extend(prompts) or encode(prompts)  # type: ignore[method-assign]
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(silent, data)
    assert asked == [""] * 16
