"""Adapters on quantised weights."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from callbacks import AdaptiveLR, SavePretrained
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
    trainer = bench.fit(trained, bench.pairs(8) * 16, [AdaptiveLR(period=8)], **settings)
    numbers = trainer.callback_metrics
    assert numbers["train/forget_loss"] > numbers["train/retain_loss"] + 0.2
    assert model_hash(trained.model) == weights  # the base has not moved
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    losses = [
        bench.trainer(accelerator=accelerator).validate(each, bench.labelled(), path, verbose=False)[0]
        for each, path in ((trained, None), (module(), str(tmp_path / "end.ckpt")))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def int8() -> Any:
    pytest.importorskip("torchao")
    weights = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}  # as a file of options has it
    return {"quant_method": "torchao", "quant_type": {"default": weights}}


def nf4() -> Any:
    pytest.importorskip("bitsandbytes")
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


def llm_int8() -> Any:
    pytest.importorskip("bitsandbytes")
    return {"load_in_8bit": True}


@pytest.mark.parametrize("method", [NGDiff, NPO])
@pytest.mark.parametrize(
    ("quantization", "accelerator"),
    [
        (int8, "cpu"),
        pytest.param(int8, "cuda", marks=pytest.mark.gpu),
        pytest.param(nf4, "cuda", marks=pytest.mark.gpu),
        pytest.param(llm_int8, "cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_named_model_is_quantised_when_it_is_loaded(
    quantization: Callable[[], Any], accelerator: str, method: Any, base: Path, bench: Any, tmp_path: Path
) -> None:
    options = {"quantization_config": quantization(), "device_map": accelerator}

    def module(model: Path = base, **arguments: Any) -> Any:
        built = bench.build(method, str(model), model_kwargs=options, **arguments)
        torch.manual_seed(0)
        built.configure_model()
        return built

    def fit(trained: Any, epochs: int, checkpoint: str | None = None) -> None:
        trainer = bench.trainer([SavePretrained(str(tmp_path / "adapter"))], accelerator=accelerator, max_epochs=epochs)
        trainer.fit(trained, bench.loader(bench.pairs(8)), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")

    def logits(any_module: Any) -> Any:
        network = any_module.model.eval()
        with torch.no_grad():
            return network(input_ids=bench.forget["input_ids"].to(network.device)).logits.cpu()

    with pytest.raises(ValueError, match=r"are quantised, so \w+ cannot train them; give a peft_config"):
        fit(module(), 1)
    first, whole = module(peft_config=lora(r=4)), module(peft_config=lora(r=4))
    weights, untouched = model_hash(whole.model), logits(whole)
    assert all(
        parameter.dtype == torch.float32 and "lora_" in name
        for name, parameter in whole.model.named_parameters()
        if parameter.requires_grad
    )
    layer = whole.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert type(layer) is not torch.nn.Parameter  # a kind of its own, with the scales
    fit(first, 1)
    fit(whole, 2)
    state = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state if name.startswith("model."))
    assert model_hash(whole.model) == weights  # the base has not moved
    assert not torch.allclose(logits(whole), untouched, atol=1e-3)
    resumed = module(peft_config=lora(r=4))
    fit(resumed, 2, str(tmp_path / "1.ckpt"))
    torch.testing.assert_close(logits(resumed), logits(whole), rtol=0, atol=1e-4 if accelerator == "cpu" else 0.05)
    again = method.load_from_checkpoint(tmp_path / "2.ckpt", tokenizer=bench.tokenizer(), weights_only=True)
    for loaded in (again, module(tmp_path / "adapter")):
        torch.testing.assert_close(logits(loaded), logits(whole), rtol=0, atol=1e-4 if accelerator == "cpu" else 1e-2)
        assert loaded.model.get_base_model().is_quantized
    with pytest.raises(ValueError, match=r"merge=True cannot merge this adapter, as the model's weights are quantised"):
        whole.save_pretrained(str(tmp_path / "merged"), merge=True)


def test_four_bits_do_not_train_on_the_cpu(base: Path, bench: Any) -> None:
    options = {"quantization_config": nf4()}
    module = bench.build(NGDiff, str(base), model_kwargs=options, peft_config=lora())
    with pytest.raises(ValueError, match=r"4 bits on the CPU, .*; train on a GPU, or give a quantization_config of 8"):
        bench.fit(module, bench.pairs(8))
    bench.trainer().validate(module, bench.labelled(), verbose=False)


def test_a_missing_library_is_named(base: Path) -> None:
    if find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ValueError, match="requires bitsandbytes: `pip install"):
        NGDiff(str(base), model_kwargs={"quantization_config": {"load_in_4bit": True}}).configure_model()


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
