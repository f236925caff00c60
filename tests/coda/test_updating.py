import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetImageProcessor,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)

from callbacks import SavePretrained
from datamodules.few_shot.few_shot import FewShotPairs
from lit_modules.coda.classifier_update import ClassifierUpdate
from lit_modules.coda.coda import CoDA
from lit_modules.coda.core.conversations import IGNORED
from lit_modules.coda.core.image_text_models import PRESETS
from lit_modules.coda.core.multiple_choice import read_options
from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy
from tests.coda.tiny_llava import picture

COLOURS = ("red", "blue")
NAMES = ("Puff Adder", "Adder")


def rows(orders: int = 2, part: str = "pairs", swapped: bool = False) -> dict[str, Any]:
    """Ask about a picture of each concept in both orders; the picture alone tells which is right."""
    names = [NAMES[::-1] if order else NAMES for _ in range(2) for order in range(orders)]
    sides = [side for side in (0, 1) for _ in range(orders)]
    labels = torch.tensor(sides)
    return {
        "image": [picture(COLOURS[1 - side if swapped else side]) for side in sides],
        "prompt": [f"{first} or {second}?" for first, second in names],
        "answer": [NAMES[side] for side in sides],
        "options": names,
        "aliases": [((), ())] * len(sides),
        "role": [("target", "confusable")[side] for side in sides],
        "path": [f"{side}.png" for side in sides],
        "pair_id": ["pair"] * len(sides),
        "part": [part] * len(sides),
        "answer_option": torch.tensor([both.index(NAMES[side]) for both, side in zip(names, sides, strict=True)]),
        "option_label": torch.tensor([[NAMES.index(name) for name in both] for both in names]),
        "query": labels,
        "label": labels,
        "index": torch.arange(len(sides)),
    }


class Data(LightningDataModule):
    def __init__(self, train: list[Any] | None = None, asked: list[Any] | None = None) -> None:
        super().__init__()
        self.train, self.asked = train or [rows()], asked or [rows()]

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=None, num_workers=0)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.asked, batch_size=None, num_workers=0)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def trainer(folder: Path, **more: Any) -> Trainer:
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False}
    settings |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**settings | {"default_root_dir": folder, "num_sanity_val_steps": 0} | more)


def make(folder: Any, **more: Any) -> CoDA:
    given: dict[str, Any] = {"dtype": "float32", "gradient_checkpointing": False, "dropout": 0.0, "max_new_tokens": 6}
    seed_everything(0, verbose=False)
    return CoDA(folder, **given | more)


def scores_of(folder: Path, module: Any, data: LightningDataModule | None = None, **more: Any) -> dict[str, float]:
    trainer(folder).test(module, data or Data(), verbose=False, **more)
    results: dict[str, float] = module.results()
    return results


def names_that_train(module: CoDA) -> list[str]:
    return [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]


def test_fit_save_reload_through_the_auto_classes_and_evaluate(tiny_llava: str, tmp_path: Path) -> None:
    module = make(
        tiny_llava, preset="coda_34b", rank=4, alpha=8, gradient_checkpointing=True, metric=PairAccuracy(resamples=0)
    )
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, Data())
    logged = {"train/loss", "val/loss", "val/acc_macro", "val/acc_target", "val/acc_confusable", "val/invalid"}
    assert logged | {"val/position_bias"} <= set(run.callback_metrics)
    adapters, merged = str(tmp_path / "adapters"), str(tmp_path / "merged")
    module.save_pretrained(adapters)
    module.save_pretrained(merged, merge=True)
    module.model.eval()
    encoded = module.encode(rows()["image"], rows()["prompt"])
    with torch.no_grad():
        wanted = module.model(**encoded).logits
        auto_model: Any = AutoModelForImageTextToText
        whole = auto_model.from_pretrained(merged).eval()
        torch.testing.assert_close(whole(**encoded).logits, wanted, atol=1e-4, rtol=1e-4)
        base = auto_model.from_pretrained(tiny_llava)
        added: Any = PeftModel.from_pretrained(base, adapters).eval()
        assert torch.equal(added(**encoded).logits, wanted)
        assert not torch.allclose(auto_model.from_pretrained(tiny_llava)(**encoded).logits, wanted)
    asked = {"images": rows()["image"][:1], "prompts": rows()["prompt"][:1], "options": rows()["options"][:1]}
    for folder in (adapters, merged):
        auto: Any = AutoProcessor
        assert auto.from_pretrained(folder).chat_template == module.processor.chat_template
        again = make(folder, tuning="none", scoring="loglik", metric=PairAccuracy(resamples=0))
        assert scores_of(tmp_path, again)["invalid"] == 0
        assert again.option_scores(**asked)[0] == pytest.approx(module.option_scores(**asked)[0], abs=1e-4)


def test_the_picture_matters(tiny_llava: str, tmp_path: Path) -> None:
    module = make(
        tiny_llava, tuning="full", learning_rate=1e-2, projector_learning_rate=1e-2, metric=PairAccuracy(resamples=0)
    )
    trainer(tmp_path, max_epochs=1).fit(module, Data([rows()] * 80))
    assert float(module.loss(rows()).detach()) < 0.1
    results = scores_of(tmp_path, module)
    assert (results["acc_macro"], results["position_bias"]) == (1, 0.5)
    assert scores_of(tmp_path, module, Data(asked=[rows(swapped=True)]))["acc_macro"] == 0
    module.scoring = "loglik"
    assert scores_of(tmp_path, module)["acc_macro"] == 1


def test_adapters_are_in_the_language_model_alone_and_the_base_stays_as_it_is(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava)
    module.configure_model()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    assert names_that_train(module)
    assert all("language_model" in name and "lora_" in name for name in names_that_train(module))
    assert module.trainable_parts()["projector"] == module.trainable_parts()["vision tower"] == 0
    trainer(tmp_path).fit(module, Data())
    after = module.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= set(names_that_train(module))
    parts = make(tiny_llava, tuning="full", projector_learning_rate=1e-5).trainable_parts()
    assert parts["vision tower"] == 0 < min(parts["projector"], parts["language model"])
    assert make(tiny_llava, tuning="full").trainable_parts()["projector"] == 0


def test_presets_are_those_of_the_table_and_the_projector_has_its_own_rate(tiny_llava: str, tmp_path: Path) -> None:
    names = ("rank", "alpha", "learning_rate", "projector_learning_rate", "dtype", "gradient_checkpointing")
    assert [PRESETS["coda_34b"][name] for name in names] == [128, 256, 2e-4, 2e-5, "bfloat16", True]
    assert [PRESETS["small"][name] for name in names] == [16, 32, 1e-4, 0, "bfloat16", True]
    half = make(tiny_llava, preset="coda_34b", rank=2, dtype=None)
    half.configure_model()
    types = {(parameter.requires_grad, parameter.dtype) for parameter in half.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    half.loss(rows()).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in half.trainable_parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    module = make(tiny_llava, preset="coda_34b", rank=2)
    run = trainer(tmp_path, max_epochs=10)
    run.fit(module, Data())
    groups = run.optimizers[0].param_groups
    assert [group["initial_lr"] for group in groups] == [2e-4, 2e-5]
    assert groups[0]["lr"] == pytest.approx(0)
    assert module.trainable_parts()["projector"] == sum(parameter.numel() for parameter in groups[1]["params"])


def logits(module: CoDA) -> torch.Tensor:
    module.configure_model()
    module.model.eval()
    with torch.no_grad():
        found: torch.Tensor = module.model(**module.encode(rows()["image"], rows()["prompt"])).logits
    return found


def test_saved_adapters_are_gone_on_with(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava, rank=2, alpha=6, learning_rate=1e-2)
    trainer(tmp_path).fit(module, Data())
    folder, name, said = tmp_path, str(tmp_path / "adapters"), logits(module)
    module.save_pretrained(name)
    assert not torch.allclose(said, logits(make(tiny_llava, tuning="none")), atol=1e-3)
    for given in ({}, {"rank": 2, "alpha": 6}, {"tuning": "none"}):
        torch.testing.assert_close(logits(make(name, **given)), said, atol=1e-5, rtol=0)
    module = make(name, learning_rate=1e-2)
    trainer(folder, callbacks=[SavePretrained(str(folder / "end"), merge=True)]).fit(module, Data())
    assert all("lora_" in parameter for parameter in names_that_train(module))
    again = logits(module)
    assert not torch.allclose(again, said, atol=1e-4)
    torch.testing.assert_close(logits(make(str(folder / "end"), tuning="none")), again, atol=1e-4, rtol=0)
    for given, message in (
        ({"alpha": 8}, "carries adapters with lora_alpha=6, got 8"),
        ({"projector_learning_rate": 1e-4}, "leave model.multi_modal_projector frozen"),
        ({"tuning": "full"}, "tuning='full' trains a whole model, and this one carries adapters"),
    ):
        with pytest.raises(ValueError, match=message):
            make(name, **given).configure_model()
    with pytest.raises(ValueError, match="holds an adapter, which would be loaded in place of the model"):
        trainer(folder, callbacks=[SavePretrained(name, merge=True)]).fit(make(tiny_llava), Data())


def test_a_checkpoint_holds_what_trains_and_is_not_loaded_under_other_adapters(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava, rank=2, alpha=6, learning_rate=1e-2, revision="main")
    run = trainer(tmp_path)
    run.fit(module, Data())
    path = tmp_path / "tuned.ckpt"
    run.save_checkpoint(path)
    kept = torch.load(path, weights_only=True)
    assert set(kept["state_dict"]) == {f"model.{name}" for name in names_that_train(module)}
    assert kept["lit_modules_base"] == {"model": tiny_llava, "revision": "main"}
    assert torch.equal(logits(CoDA.load_from_checkpoint(path, weights_only=True)), logits(module))
    for given, message in (
        ({"alpha": 4}, "lora_alpha=6, and lora_alpha=4 is asked for; give the arguments"),
        ({"tuning": "none"}, "holds adapters, and tuning='none' has none"),
        (
            {"projector_learning_rate": 1e-4},
            r"modules_to_save=None, and .*=\['model.multi_modal_projector'\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            scores_of(tmp_path, make(tiny_llava, **{"rank": 2, "alpha": 6} | given), ckpt_path=path)
    module.save_pretrained(str(tmp_path / "adapters"))
    assert PeftConfig.from_pretrained(tmp_path / "adapters").revision == "main"


def test_nested_names_are_credited_once_and_no_answer_is_dropped(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava, tuning="none", metric=PairAccuracy(resamples=0))
    said = ["Puff Adder.", "It is a puff adder", "a snake", "Adder"]
    assert read_options(said, rows()) == [0, 1, -1, 0]
    module.answer = lambda *_: said  # type: ignore[method-assign]
    numbers = scores_of(tmp_path, module)
    assert (numbers["acc_target"], numbers["acc_confusable"], numbers["invalid"]) == (1, 0.5, 0.25)
    # both orders: named first are rows 0 and 3 of the three valid ones
    assert numbers["position_bias"] == pytest.approx(2 / 3)
    module.score(rows(), read_options(said, rows()))
    assert isinstance(module.metric, PairAccuracy)
    (table,) = module.metric.pair_table().values()
    assert table.sum(1).tolist() == [1, 1]


def test_answers_are_the_likeliest_and_drawn_ones_come_from_the_seed(tiny_llava: str) -> None:
    images, prompts = rows()["image"], rows()["prompt"]
    module = make(tiny_llava, tuning="none")
    state = torch.get_rng_state()
    assert module.answer(images, prompts) == module.answer(images, prompts)
    alone = [module.answer([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert module.answer(images, prompts) == alone
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [make(tiny_llava, tuning="none", temperature=0.7, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (module.answer(images, prompts, [0, 1, 2, 3]) for module in drawn)
    assert one == same
    assert one != other


def test_known_pairs_are_scored_apart(tiny_llava: str, tmp_path: Path) -> None:
    given = {"tuning": "none", "scoring": "loglik", "metric": PairAccuracy(resamples=0)}
    data = Data(asked=[rows(), rows(part="retention")])
    module = make(tiny_llava, **given, retention_metric=PairAccuracy(resamples=0))
    results = scores_of(tmp_path, module, data)
    assert results["retention/acc_macro"] == results["acc_macro"]
    run = trainer(tmp_path)
    wrong = {**rows(part="retention"), "answer": ["another answer"] * 4}
    run.validate(module, Data(asked=[rows(), wrong]), verbose=False)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(module.loss(rows()).detach()), rel=1e-5)
    with pytest.raises(ValueError, match="retention_metric must be given"):
        scores_of(tmp_path, make(tiny_llava, **given), data)


def test_many_options_are_scored_by_the_other_metric(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava, tuning="none", scoring="loglik", metric=NWayAccuracy())
    assert 0 <= scores_of(tmp_path, module)["acc_macro"] <= 1
    answers = module.predict_step(rows())
    assert answers["question"] == rows()["prompt"]
    assert answers["answer"] == answers["name"]
    for names, name, option in zip(answers["options"], answers["name"], answers["option"], strict=True):
        assert names[option] == name
    assert [row.index(max(row)) for row in answers["option_scores"]] == answers["option"]
    many = {**rows(), "options": [(*names, "Mole") for names in rows()["options"]]}
    with pytest.raises(ValueError, match="PairAccuracy needs two options, got 3"):
        make(tiny_llava, metric=PairAccuracy()).score(many, [0, 0, 0, 0])


def test_defects_3_and_4_one_template_and_one_processing_train_and_ask(tiny_llava: str) -> None:
    module, batch = make(tiny_llava), rows()
    tokenizer = module.processor.tokenizer
    chat_ml = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
    )
    for template, end in ((module.processor.chat_template, ""), (chat_ml, "<|im_end|>")):
        module.processor.chat_template = template
        asked = module.encode(batch["image"], batch["prompt"])
        trained = module.encode(batch["image"], batch["prompt"], batch["answer"])
        assert trained["pixel_values"].shape[1] > 1  # in tiles, not one padded square
        assert all(torch.equal(trained[name], asked[name]) for name in ("pixel_values", "image_sizes"))
        for row, answer in enumerate(batch["answer"]):
            question, whole = (each["input_ids"][row][each["attention_mask"][row] == 1] for each in (asked, trained))
            labels = trained["labels"][row][trained["labels"][row] != IGNORED]
            assert torch.equal(whole, torch.cat([question, labels]))
            assert tokenizer.decode(labels) == f"{answer}{end}</s>"


def test_the_few_shot_data_are_what_it_is_updated_on_and_a_model_is_loaded_once_for_all_pairs(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    auto: Any = AutoModelForImageTextToText
    load = auto.from_pretrained
    monkeypatch.setattr(auto, "from_pretrained", lambda name, **more: loads.append(name) or load(name, **more))
    for side, name in enumerate(NAMES):
        for split, number in (("train", 2), ("test", 3)):
            folder = tmp_path / split / name.replace(" ", "_")
            folder.mkdir(parents=True)
            for place in range(number):
                picture(COLOURS[side], (40 + number, 30 + 4 * place)).save(folder / f"{place}.png")
    pairs = [{"target": name, "confusable": other} for name, other in (NAMES, NAMES[::-1])]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    data = FewShotPairs(str(tmp_path), n_real=2, batch_size=2, near_duplicates=False)
    module = make(tiny_llava, metric=PairAccuracy(), image_grid_pinpoints=[[28, 56]])
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert (len(data.pairs), loads) == (2, [tiny_llava])
    assert {"acc_macro_lower", "position_bias", "invalid"} <= set(module.results())
    metric: Any = module.metric
    assert metric.rows == []
    again = CoDA.load_from_checkpoint(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    for one, other in zip(module.trainable_parameters(), again.trainable_parameters(), strict=True):
        assert torch.equal(one, other)


def test_arguments_models_and_parts_that_are_wrong_are_refused(
    tiny_llava: str, tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tiny_llava, {"tuning": "some"}, "tuning must be 'lora' or 'full' or 'none', got 'some'"),
        (tiny_llava, {"preset": "smal"}, "no preset 'smal'; did you mean 'small'"),
        (tiny_llava, {"warmup_ratio": 2.0}, r"warmup_ratio must lie in \[0, 1\], got 2.0"),
        (tiny_llava, {"load_in_4bit": True, "tuning": "full"}, "load_in_4bit needs"),
        (tmp_path / "nothing", {}, "no model folder"),
        (tiny_causal_lm, {}, "does not load as an image-text model"),
        (tiny_llava, {"projector": "connector", "projector_learning_rate": 1e-5}, "has no module 'connector'"),
        (tiny_llava, {"target_modules": "nothing"}, "finds no layer"),
        (tiny_llava, {"image_grid_pinpoints": [[30, 28]]}, "multiples of 28 pixels"),
    ]
    for folder, given, message in cases:
        with pytest.raises(ValueError, match=message):
            make(str(folder), **given).configure_model()
    with pytest.raises(ValueError, match="takes no mixed pictures"):
        make(tiny_llava).loss({**rows(), "label_weights": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="Nothing trains"):
        trainer(tmp_path).fit(make(tiny_llava, tuning="none"), Data())
    with pytest.raises(RuntimeError, match="no results yet"):
        make(tiny_llava).results()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="load_in_4bit needs bitsandbytes"):
        make(tiny_llava, load_in_4bit=True).configure_model()


def test_a_loss_that_is_not_finite_stops_the_training(tiny_llava: str, tmp_path: Path) -> None:
    module = make(tiny_llava)
    module.configure_model()
    with torch.no_grad():
        module.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"training loss is nan at step 0 on the rows 0\.png"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, Data())


def test_fewer_tiles_make_shorter_questions(tiny_llava: str) -> None:
    few, many = make(tiny_llava, image_grid_pinpoints=[[28, 56]]), make(tiny_llava)
    lengths = [module.encode([picture("red")], ["Which?"])["input_ids"].shape[1] for module in (few, many)]
    assert lengths[0] < lengths[1]
    assert float(few.loss(rows()).detach()) > 0
    few.max_length = 8
    with pytest.raises(ValueError, match="never cut off"):
        few.loss(rows())


def test_a_classifier_is_updated_saved_and_asked_again(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_labels": 5, "hidden_size": 8, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    seed_everything(0, verbose=False)
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path)
    colours = torch.eye(3)[[0, 2]]
    batch = rows()
    batch["image"] = colours[batch["label"]][:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    given: dict[str, Any] = {"num_classes": 2, "mean": [0.5] * 3, "std": [0.5] * 3}
    module = ClassifierUpdate(str(tmp_path), learning_rate=1e-2, head_learning_rate=1e-2, **given)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, Data([batch] * 20))
    assert module.model.config.num_labels == 2
    module.save_pretrained(str(tmp_path / "updated"))
    again = ClassifierUpdate(str(tmp_path / "updated"), tuning="none", metric=PairAccuracy(resamples=0), **given)
    results = scores_of(tmp_path, again, Data(asked=[batch]))
    assert (results["acc_macro"], results["position_bias"]) == (1, 0.5)
    carrying: Any = get_peft_model(
        ViTForImageClassification(ViTConfig(**sizes)), LoraConfig(target_modules="all-linear")
    )
    with pytest.raises(ValueError, match="trains weights of the model itself, and this one carries an adapter"):
        ClassifierUpdate(carrying, mean=[0.5] * 3, std=[0.5] * 3).configure_model()
    with pytest.raises(TypeError, match="set image_size of the datamodule"):
        again.forward([picture("red")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes must be given"):
        ClassifierUpdate(str(tmp_path)).configure_model()
    with pytest.raises(ValueError, match="No image processor lies beside"):
        ClassifierUpdate(str(tmp_path), num_classes=2).configure_model()


def efficient_net() -> Any:
    config = EfficientNetConfig(
        image_size=32,
        width_coefficient=0.1,
        in_channels=[8, 8],
        out_channels=[8, 8],
        kernel_sizes=[3, 3],
        depthwise_padding=[],
        strides=[2, 1],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 2],
        hidden_dim=128,  # a tenth of the published one, as the other widths
        num_hidden_layers=2,
        num_labels=3,
    )
    return EfficientNetForImageClassification(config)


def mobile_vit() -> Any:
    config = MobileViTConfig(
        image_size=32,
        patch_size=2,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 8],
        num_attention_heads=2,
        num_labels=3,
    )
    return MobileViTForImageClassification(config)


PIXELS = {"height": 32, "width": 32}
CLASSIFIERS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "EfficientNet, twice normalised": (efficient_net, EfficientNetImageProcessor, {"size": PIXELS}),
    "EfficientNet, from -1 to 1": (
        efficient_net,
        EfficientNetImageProcessor,
        {"size": PIXELS, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ),
    "MobileViT, blue first": (
        mobile_vit,
        MobileViTImageProcessor,
        {"size": {"shortest_edge": 32}, "crop_size": PIXELS},
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_sees_pictures_as_its_image_processor_gives_them(name: str, tmp_path: Path) -> None:
    make_model, kind, settings = CLASSIFIERS[name]
    seed_everything(0, verbose=False)
    model, processor = make_model().eval(), kind(**settings)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    module = ClassifierUpdate(str(tmp_path), num_classes=3, tuning="none")
    module.configure_model()
    module.eval()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    inputs = processor(list(pictures), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(module.normalise(pictures / 255), inputs, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(module(pictures / 255), model(inputs).logits, atol=1e-4, rtol=1e-3)
    own = ClassifierUpdate(str(tmp_path), num_classes=3, mean=[0.5] * 3, std=[0.25] * 3)
    own.configure_model()
    torch.testing.assert_close(own.normalise(pictures / 255), (pictures / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loading_options_reach_the_model_and_its_checkpoint(tiny_llava: str, tmp_path: Path, attention: str) -> None:
    options = {"attn_implementation": attention, "local_files_only": True}
    module = make(tiny_llava, rank=2, learning_rate=1e-2, model_kwargs=options)
    run = trainer(tmp_path)
    run.fit(module, Data())
    assert module.model.config.text_config._attn_implementation == attention
    run.save_checkpoint(tmp_path / "one.ckpt")
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["hyper_parameters"]["model_kwargs"] == options
    again = CoDA.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert torch.equal(logits(again), logits(module))
    module.save_pretrained(str(tmp_path / "adapters"))
    loaded = make(str(tmp_path / "adapters"), model_kwargs=options)
    torch.testing.assert_close(logits(loaded), logits(module), atol=1e-5, rtol=0)
    assert loaded.model.config.text_config._attn_implementation == attention


def test_implementations_of_attention_agree(tiny_llava: str) -> None:
    eager, sdpa = (make(tiny_llava, model_kwargs={"attn_implementation": kind}) for kind in ("eager", "sdpa"))
    batch = rows()
    asked = (batch["image"], batch["prompt"], batch["options"])
    torch.testing.assert_close(eager.option_scores(*asked), sdpa.option_scores(*asked), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_kwargs": {"dtype": "float16"}}, "takes no 'dtype': dtype is an argument of its own"),
        ({"model_kwargs": {"revision": "main"}}, "revision is an argument of its own; give it beside model_kwargs"),
        ({"model_kwargs": {"trust_remote_code": True}}, "no code of a model's folder is run"),
        (
            {"model_kwargs": {"attn_implementation": "none"}},
            r"It was asked for with model_kwargs=\{'attn_implementation'",
        ),
        (
            {"model_kwargs": {"quantization_config": {"load_in_8bit": True}}, "tuning": "full"},
            "quantization_config needs",
        ),
        (
            {"model_kwargs": {"quantization_config": {"load_in_8bit": True}}, "load_in_4bit": True},
            "load_in_4bit and a quantization_config say the same; give one",
        ),
    ],
)
def test_loading_options_that_are_wrong_are_refused(tiny_llava: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_llava, **given).configure_model()


def test_a_projector_that_trains_and_the_head_are_not_quantised(tiny_llava: str, tmp_path: Path) -> None:
    assert make(tiny_llava)._float_modules() == ["lm_head"]
    module = make(tiny_llava, rank=2, projector_learning_rate=1e-3)
    assert module._float_modules() == ["model.multi_modal_projector", "lm_head"]
    module.save_pretrained(str(tmp_path / "adapters"))
    assert make(str(tmp_path / "adapters"))._float_modules() == ["lm_head"]
