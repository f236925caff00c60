"""Adapters on quantised weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from callbacks import AdaptiveLR
from lit_modules import NPO, CausalLMFineTuning, NGDiff
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.pretrained import model_hash
from tests.unlearning.conftest import lora


def torchao(folder: Path) -> Any:
    """Load int8 weights on the CPU."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)


def bitsandbytes(folder: Path) -> Any:
    """Load NF4 weights on a GPU."""
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": 0})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    small_llama(vocab_size=64, hidden_size=64, num_layers=2, num_heads=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("method", [NGDiff, NPO])
@pytest.mark.parametrize(
    ("load", "accelerator"), [(torchao, "cpu"), pytest.param(bitsandbytes, "cuda", marks=pytest.mark.gpu)]
)
def test_adapters_train_on_quantised_weights(
    load: Callable[[Path], Any], accelerator: str, method: Any, base: Path, bench: Any, tmp_path: Path
) -> None:
    def module() -> Any:
        torch.manual_seed(0)
        return method(load(base), peft_config=lora(r=4), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))

    trained = module()
    weights = model_hash(trained.model)
    settings = {"accelerator": accelerator, "precision": "32-true"}
    trainer = bench.fit(trained, bench.pairs(8) * 8, [AdaptiveLR(period=8)], **settings)
    numbers = trainer.callback_metrics
    assert numbers["train/forget_loss"] > numbers["train/retain_loss"] + 0.2
    assert model_hash(trained.model) == weights  # the base has not moved
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    losses = [
        bench.trainer(accelerator=accelerator).validate(each, bench.labelled(), path, verbose=False)[0]
        for each, path in ((trained, None), (module(), str(tmp_path / "end.ckpt")))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("method", [NGDiff, CausalLMFineTuning])
def test_quantised_weights_without_adapters_are_refused(method: Any, bench: Any) -> None:
    network = bench.network()
    network.is_quantized = True  # as transformers marks it
    before = bench.vector(network).clone()
    data = bench.pairs(8) if method is NGDiff else [bench.forget]
    with pytest.raises(ValueError, match=r"are quantised, so \w+ cannot train them; give a peft_config"):
        bench.fit(method(network), data)
    assert torch.equal(bench.vector(network), before)
    bench.trainer().validate(method(network), bench.loader([bench.forget]), verbose=False)
