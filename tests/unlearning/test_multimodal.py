"""Image-text models that are used for text: the language part trains, and the whole model is saved and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from callbacks import SavePretrained
from datamodules import TOFU
from lit_modules import NPO, RMU, UNDIAL, NGDiff
from lit_modules.unlearning.core.memory import meta_network
from tests.coda.families import write
from tests.unlearning.conftest import Workbench, adamw

FAMILIES = ("Gemma 3", "Qwen2.5-VL", "Qwen3-VL")
Folder = Callable[[str], str]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    written: dict[str, str] = {}

    def find(family: str) -> str:
        if family not in written:
            written[family] = write(family, tmp_path_factory.mktemp("family"))
        return written[family]

    return find


def data(model: str, repository: Path) -> TOFU:
    root = str(repository / "tests" / "data" / "tofu")
    return TOFU(tokenizer=model, root=root, num_workers=0, batch_size=3, max_rows=3, eval_rows=2)


def tuned(model: str, bench: Workbench, repository: Path, method: Any = NGDiff, **arguments: Any) -> Any:
    """Train for an epoch on a few rows."""
    more = {"layer": 0} if method is RMU else {}
    module = method(model, optimizer=adamw, max_new_tokens=4, **more, **arguments)
    callbacks = [SavePretrained(str(bench.folder / "saved"))]
    bench.trainer(callbacks).fit(module, datamodule=data(model, repository))
    return module


def names_that_train(module: Any) -> list[str]:
    return [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.arange(100, 120).view(2, 10)
    result: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return result


def of_language(name: str) -> bool:
    return "language_model" in name or "lm_head" in name


@pytest.mark.parametrize("family", FAMILIES)
def test_language_part_trains_and_the_whole_is_saved(
    family: str, folder_of: Folder, bench: Workbench, repository: Path
) -> None:
    model = folder_of(family)
    module = tuned(model, bench, repository)
    assert names_that_train(module)
    assert all(map(of_language, names_that_train(module)))
    before = AutoModelForImageTextToText.from_pretrained(model)
    after, start = module.model.state_dict(), before.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, start[name])}
    assert moved
    assert all(map(of_language, moved))
    scores = bench.trainer().test(module, datamodule=data(model, repository), verbose=False)
    assert len(scores) == 2
    assert isinstance(module.generate("Where was the author born?"), str)
    saved = bench.folder / "saved"
    again = AutoModelForImageTextToText.from_pretrained(saved)
    assert type(again) is type(before)
    torch.testing.assert_close(logits(again), logits(module.model), rtol=0, atol=0)
    assert type(AutoProcessor.from_pretrained(saved)) is type(AutoProcessor.from_pretrained(model))
    reloaded = NGDiff(str(saved))
    reloaded.configure_model()
    torch.testing.assert_close(logits(reloaded.model), logits(module.model), rtol=0, atol=0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "qkv"]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_put_on_the_language_part_alone(
    family: str, targets: Any, folder_of: Folder, bench: Workbench, repository: Path
) -> None:
    model = folder_of(family)
    module = tuned(model, bench, repository, peft_config=LoraConfig(r=2, target_modules=targets))
    adapted = [name for name, _ in module.model.named_parameters() if "lora_" in name]
    assert adapted
    assert all("language_model" in name for name in adapted)
    expected = logits(module.model)
    base = AutoModelForImageTextToText.from_pretrained(model)
    assert not torch.equal(logits(base), expected)
    loaded = PeftModel.from_pretrained(base, str(bench.folder / "saved"))
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    for peft_config in (None, LoraConfig(r=2, target_modules=targets)):
        again = NGDiff(str(bench.folder / "saved"), peft_config=peft_config)
        again.configure_model()
        torch.testing.assert_close(logits(again.model), expected, rtol=0, atol=1e-5)
        assert names_that_train(again) == names_that_train(module)
    module.save_pretrained(str(bench.folder / "merged"), merge=True)
    merged = AutoModelForImageTextToText.from_pretrained(bench.folder / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    AutoProcessor.from_pretrained(bench.folder / "merged")


@pytest.mark.parametrize("method", [NPO, UNDIAL, RMU])
def test_methods_with_a_reference(method: Any, folder_of: Folder, bench: Workbench, repository: Path) -> None:
    module = tuned(folder_of("Gemma 3"), bench, repository, method)
    assert all(map(of_language, names_that_train(module)))
    if method is RMU:  # what lies above the block is not reached
        assert all("language_model.layers.1" not in name for name in names_that_train(module))
    before = AutoModelForImageTextToText.from_pretrained(folder_of("Gemma 3"))
    assert not torch.equal(logits(module.model), logits(before))


def test_a_run_goes_on_from_its_checkpoint(folder_of: Folder, bench: Workbench, repository: Path) -> None:
    model = folder_of("Qwen2.5-VL")
    rows = data(model, repository)
    rows.setup("fit")

    def train(epochs: int, checkpoint: str | None = None) -> Any:
        module = NGDiff(model, optimizer=adamw)
        trainer = bench.trainer(max_epochs=epochs)
        trainer.fit(module, rows.train_dataloader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(bench.folder / f"{epochs}.ckpt")
        return module

    train(1)
    state = torch.load(bench.folder / "1.ckpt", weights_only=True)["state_dict"]
    assert all(of_language(name) for name in state if name.startswith("model."))
    whole, resumed = train(2), train(2, str(bench.folder / "1.ckpt"))
    torch.testing.assert_close(logits(resumed.model), logits(whole.model), rtol=0, atol=1e-5)


def test_positions_and_memory_are_those_of_the_language_model(folder_of: Folder, bench: Workbench) -> None:
    model = folder_of("Gemma 3")
    module = NGDiff(model)
    module.configure_model()
    ids = torch.zeros(1, 2049, dtype=torch.int64)
    task = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "id": ["long"]}
    with pytest.raises(ValueError, match="The model has 2048 positions, and the row long has 2049 tokens"):
        module.check_rows(task)
    numbers = [
        sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (module.model, meta_network(model))
    ]
    assert numbers[0] == numbers[1] < sum(p.numel() for p in module.model.parameters())


def test_kinds_of_adapters_and_what_they_exclude(folder_of: Folder) -> None:
    model = folder_of("Gemma 3")
    config = LoraConfig(r=2, target_modules="all-linear", exclude_modules=["down_proj"])
    kinds: list[Any] = [config, IA3Config(target_modules=["q_proj", "v_proj"], feedforward_modules=[])]
    for given in kinds:
        module = NGDiff(model, peft_config=given)
        module.configure_model()
        trained = names_that_train(module)
        assert trained
        assert all("language_model" in name and "down_proj" not in name for name in trained)
    assert config.exclude_modules == {"down_proj"}  # the user's stays as it is
    assert isinstance(module.model.get_base_model(), nn.Module)
