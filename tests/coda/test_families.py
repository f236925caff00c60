"""All that CoDA does with a model, on a tiny one of each family: the rows of a table in the documentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lit_modules.coda import CoDA
from lit_modules.metrics.few_shot import PairAccuracy
from tests.coda.families import BROKEN, FAMILIES, REFUSED, write
from tests.coda.test_updating import Data, make, names_that_train, rows, scores_of, trainer

SIZES = ((40, 40), (90, 33), (20, 75), (61, 47))


def tuned(model: str, folder: Path, **arguments: Any) -> CoDA:
    """Take two steps."""
    module = make(model, rank=2, alpha=4, learning_rate=1e-2, metric=PairAccuracy(resamples=0), **arguments)
    trainer(folder).fit(module, Data())
    return module


def scores(module: CoDA, images: list[Image.Image] | None = None) -> list[list[float]]:
    batch = rows()
    return module.option_scores(images or batch["image"], batch["prompt"], batch["options"])


def fits(model: str, folder: Path) -> None:
    """Two steps move adapters in the language model, and no other weight."""
    module = tuned(model, folder)
    parts = module.trainable_parts()
    assert parts["language model"] > 0 == parts["projector"] == parts["vision tower"]
    assert all("lora_" in name for name in names_that_train(module))
    assert scores(module) != scores(make(model, tuning="none"))


def answers(model: str, folder: Path) -> None:
    """Pictures of several sizes and questions of several lengths together are answered as each alone is."""
    module, batch = make(model, tuning="none", metric=PairAccuracy(resamples=0)), rows()
    images = [Image.effect_noise(size, 80).convert("RGB") for size in SIZES]
    prompts = [prompt + " Look at it well." * (index % 2) for index, prompt in enumerate(batch["prompt"])]
    together = module.answer(images, prompts)
    assert together == [module.answer([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert 0 <= scores_of(folder, module)["acc_macro"] <= 1


def scores_options(model: str, folder: Path) -> None:
    """Options are scored alike together and alone, and by what the picture shows."""
    del folder
    module, batch = make(model, tuning="none"), rows()
    images = [Image.effect_noise(size, 80).convert("RGB") for size in SIZES]
    questions = list(zip(images, batch["prompt"], batch["options"], strict=True))
    alone = [module.option_scores([image], [prompt], [options])[0] for image, prompt, options in questions]
    torch.testing.assert_close(scores(module, images), alone, rtol=0, atol=1e-4)
    assert scores(module, images) != scores(module, [Image.new("RGB", size) for size in SIZES])


def saves(model: str, folder: Path) -> None:
    """Adapters, and the model that they are merged into, say after loading what they said before."""
    module = tuned(model, folder)
    for name, merge in (("adapters", False), ("merged", True)):
        module.save_pretrained(str(folder / name), merge=merge)
        loaded = make(str(folder / name), tuning="none")
        torch.testing.assert_close(scores(loaded), scores(module), rtol=0, atol=1e-3)


def checkpoints(model: str, folder: Path) -> None:
    """Gradient checkpointing changes nothing."""
    plain, again = (tuned(model, folder, gradient_checkpointing=on) for on in (False, True))
    torch.testing.assert_close(scores(again), scores(plain), rtol=0, atol=1e-4)


def tunes_projector(model: str, folder: Path) -> None:
    """The projector is found, trains with adapters, and is saved with them; the vision tower stays as it is."""
    module = tuned(model, folder, projector_learning_rate=1e-2)
    parts = module.trainable_parts()
    assert parts["projector"] > 0 == parts["vision tower"]
    module.save_pretrained(str(folder / "adapters"))
    torch.testing.assert_close(scores(make(str(folder / "adapters"), tuning="none")), scores(module), rtol=0, atol=1e-3)


def tunes_fully(model: str, folder: Path) -> None:
    """All but the vision tower trains."""
    parts = tuned(model, folder, tuning="full", projector_learning_rate=1e-2).trainable_parts()
    assert min(parts["language model"], parts["projector"]) > 0 == parts["vision tower"]


def computes_in_bfloat16(model: str, folder: Path) -> None:
    """Frozen weights of 16 bits, adapters of 32."""
    module = tuned(model, folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in module.trainable_parameters()} == {torch.float32}
    assert module.model.dtype == torch.bfloat16 or any(p.dtype == torch.bfloat16 for p in module.model.parameters())
    assert len(module.answer(rows()["image"], rows()["prompt"])) == 4


ROLES: dict[str, Callable[[str, Path], None]] = {
    "fit": fits,
    "generate": answers,
    "likelihood": scores_options,
    "save and reload": saves,
    "gradient checkpointing": checkpoints,
    "projector": tunes_projector,
    "full tuning": tunes_fully,
    "bfloat16": computes_in_bfloat16,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    written: dict[str, str] = {}

    def find(family: str) -> str:
        if family not in written:
            written[family] = write(family, tmp_path_factory.mktemp("family"))
        return written[family]

    return find


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(
    family: str, role: str, folder_of: Callable[[str], str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if family == "SmolVLM":
        pytest.importorskip("num2words", reason="the processor of SmolVLM needs it")
    if family in BROKEN:
        error, reason = BROKEN[family]
        request.applymarker(pytest.mark.xfail(raises=error, reason=reason, strict=False))
    ROLES[role](folder_of(family), tmp_path)


def torchao_int8() -> dict[str, Any]:
    """Return weights of 8 bits by torchao, as a configuration file says them."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    return {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
    }


def bitsandbytes_int8() -> dict[str, Any]:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return {"load_in_8bit": True}


QUANTISED = {"8 bits, torchao": torchao_int8, "8 bits, bitsandbytes": bitsandbytes_int8}


@pytest.mark.slow
@pytest.mark.parametrize("role", QUANTISED)
@pytest.mark.parametrize("family", ["LLaVA-1.5", "Qwen3-VL"])
def test_quantised_family(family: str, role: str, folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """Adapters train on a base of 8 bits that stays as it is, are saved, and go on from a checkpoint."""
    model, given = folder_of(family), {"model_kwargs": {"quantization_config": QUANTISED[role]()}}
    module = tuned(model, tmp_path, gradient_checkpointing=True, **given)
    assert all("lora_" in name for name in names_that_train(module))
    before, after = scores(make(model, tuning="none", **given)), scores(module)
    assert before != scores(make(model, tuning="none")) != after
    with module.model.disable_adapter():
        torch.testing.assert_close(scores(module), before, rtol=0, atol=0)
    module.save_pretrained(str(tmp_path / "adapters"))
    torch.testing.assert_close(scores(make(str(tmp_path / "adapters"), tuning="none", **given)), after)
    module.trainer.save_checkpoint(tmp_path / "one.ckpt")
    torch.testing.assert_close(scores(CoDA.load_from_checkpoint(tmp_path / "one.ckpt")), after)
    with pytest.raises(ValueError, match="cannot merge this adapter, as the model's weights are quantised"):
        module.save_pretrained(str(tmp_path / "merged"), merge=True)
    with pytest.raises(ValueError, match="is quantised and cannot train; set projector_learning_rate to 0"):
        make(model, projector_learning_rate=1e-2, **given).configure_model()


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_refused_family(family: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Say in a sentence why, before the first step."""
    folder = write(family, tmp_path)
    with pytest.raises(ValueError, match=REFUSED[family][1]) as caught:
        make(folder).configure_model()
    record_property("refused", str(caught.value))
