"""Loading options: what they reach, what is refused, and that checkpoints keep them as plain values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig

from lit_modules import NPO, UNDIAL, CausalLMFineTuning, NGDiff
from lit_modules.cli import main
from lit_modules.unlearning.core.losses import sequence_nll
from lit_modules.utils.model_kwargs import check_model_kwargs
from tests.unlearning.conftest import lora


@pytest.fixture
def folder(bench: Any, tmp_path: Path) -> str:
    """Folder of a model whose weights are saved in bfloat16."""
    bench.network(layers=2).bfloat16().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("method", [NGDiff, NPO, UNDIAL, CausalLMFineTuning])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_reaches_the_model_and_its_reference(method: Any, attention: str, folder: str, bench: Any) -> None:
    module = bench.build(method, folder, model_kwargs={"attn_implementation": attention})
    bench.fit(module, bench.rows(method))
    networks = [module.model, *getattr(module, "_frozen", [])]
    assert len(networks) == (2 if method is UNDIAL else 1)
    for network in networks:
        assert network.config._attn_implementation == attention
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_implementations_of_attention_agree(folder: str, bench: Any) -> None:
    losses = []
    for attention in ("eager", "sdpa"):
        module = bench.build(NGDiff, folder, model_kwargs={"attn_implementation": attention})
        bench.fit(module, bench.pairs(8))
        losses.append(sequence_nll(module.model.eval(), bench.forget)[0])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_checkpoint_keeps_the_options(folder: str, bench: Any, tmp_path: Path) -> None:
    options = {"attn_implementation": "eager", "local_files_only": True}
    module = bench.build(NGDiff, folder, model_kwargs=options)
    bench.fit(module, bench.pairs(8)).save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["model_kwargs"] == options
    again = NGDiff.load_from_checkpoint(tmp_path / "one.ckpt", tokenizer=bench.tokenizer(), weights_only=True)
    assert again.model.config._attn_implementation == "eager"
    other = NGDiff.load_from_checkpoint(
        tmp_path / "one.ckpt", tokenizer=bench.tokenizer(), model_kwargs={"attn_implementation": "sdpa"}
    )
    assert other.model.config._attn_implementation == "sdpa"


def test_the_base_of_an_adapter_is_loaded_with_the_options(folder: str, bench: Any, tmp_path: Path) -> None:
    module = bench.build(NGDiff, folder, peft_config=lora())
    bench.fit(module, bench.pairs(8))
    module.save_pretrained(str(tmp_path / "adapter"))
    again = NGDiff(str(tmp_path / "adapter"), model_kwargs={"attn_implementation": "eager"})
    again.configure_model()
    assert isinstance(again.model, PeftModel)
    assert again.model.config._attn_implementation == "eager"


def test_the_revision_of_the_base_stands_in_its_adapter(folder: str, bench: Any, tmp_path: Path) -> None:
    module = bench.build(NGDiff, folder, peft_config=lora(), model_kwargs={"revision": "main"})
    module.save_pretrained(str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == "main"


@pytest.mark.parametrize("source", ["command line", "file"])
def test_options_come_from_the_command_line_and_from_files(source: str, ngdiff: list[str], tmp_path: Path) -> None:
    given = ["--model.model_kwargs.attn_implementation", "eager"]
    if source == "file":
        (tmp_path / "more.yaml").write_text("model: {init_args: {model_kwargs: {attn_implementation: eager}}}")
        given = ["-c", str(tmp_path / "more.yaml")]
    fitted: Any = main(["fit", *ngdiff, *given, "--trainer.max_steps=1"])
    assert fitted.model.model.config._attn_implementation == "eager"
    assert fitted.model.hparams["model_kwargs"] == {"attn_implementation": "eager"}
    written = next(tmp_path.rglob("config.yaml")).read_text()
    assert "attn_implementation: eager" in written


def test_a_quantization_is_kept_as_a_mapping() -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    options = check_model_kwargs({"quantization_config": config}, "folder")
    kept = options["quantization_config"]
    assert json.loads(json.dumps(options)) == options
    assert (kept["quant_method"], kept["bnb_4bit_quant_type"]) == ("bitsandbytes", "nf4")
    assert type(kept["quant_method"]) is str
    module = NGDiff("folder", model_kwargs={"quantization_config": config})
    assert module.hparams["model_kwargs"] == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "takes no 'dtype': dtype is an argument of its own, beside model_kwargs"),
        ({"torch_dtype": torch.float16}, "takes no 'torch_dtype': dtype is an argument of its own"),
        ({"token": "secret"}, "takes no 'token': .* set the environment variable HF_TOKEN"),
        ({"weights_only": False}, "takes no 'weights_only': .* could run code"),
        ({"config": object()}, "takes texts, numbers, lists and mappings, .* got config=<object"),
        ({"quantization_config": "nf4"}, r"must be a mapping, such as {'load_in_4bit': True}.* got 'nf4'"),
        ({"device_map": "auto"}, "device_map must name one device, such as 'cuda:0', got 'auto': the trainer moves"),
        ({"device_map": {"model": 0, "lm_head": "cpu"}}, "device_map must name one device"),
    ],
)
def test_options_that_are_not_the_users_to_set(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGDiff("folder", model_kwargs=options)


def test_one_device_is_allowed(folder: str, bench: Any) -> None:
    for place in ("cpu", {"": "cpu"}):
        module = bench.build(NGDiff, folder, model_kwargs={"device_map": place})
        bench.fit(module, bench.pairs(8))


def test_options_of_a_given_model_are_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match=r"a LlamaForCausalLM is given, got revision; load it with them, and leave"):
        NGDiff(bench.network(), model_kwargs={"revision": "main"})


@pytest.mark.parametrize(
    "options", [{"attn_implementation": "none_such"}, {"no_such_option": 1}, {"quantization_config": {"bits": 4}}]
)
def test_options_that_transformers_refuses_are_named(options: dict[str, Any], folder: str) -> None:
    with pytest.raises(
        ValueError, match=r"does not load .* It was asked for with model_kwargs=\{'" + next(iter(options))
    ):
        NGDiff(folder, model_kwargs=options).configure_model()


def test_no_checkpoint_alone_runs_code_of_a_model(folder: str, bench: Any, tmp_path: Path) -> None:
    module = bench.build(NGDiff, folder, model_kwargs={"trust_remote_code": True})
    bench.fit(module, bench.pairs(8)).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"asks to run code of the model .* if you trust the model, give load_from_ch"):
        NGDiff.load_from_checkpoint(tmp_path / "one.ckpt", tokenizer=bench.tokenizer())
    again = NGDiff.load_from_checkpoint(
        tmp_path / "one.ckpt", tokenizer=bench.tokenizer(), model_kwargs={"trust_remote_code": True}
    )
    assert torch.equal(bench.vector(again.model), bench.vector(module.model))


def test_a_given_model_takes_the_place_of_a_checkpoints(folder: str, bench: Any, tmp_path: Path) -> None:
    module = bench.build(NGDiff, folder, model_kwargs={"attn_implementation": "eager"})
    bench.fit(module, bench.pairs(8)).save_checkpoint(tmp_path / "one.ckpt")
    given: dict[str, Any] = {"model": bench.network(layers=2), "tokenizer": bench.tokenizer()}
    with pytest.raises(ValueError, match=r"got attn_implementation; .*; model_kwargs=None drops those of a checkpoint"):
        NGDiff.load_from_checkpoint(tmp_path / "one.ckpt", **given)
    again = NGDiff.load_from_checkpoint(tmp_path / "one.ckpt", model_kwargs=None, **given)
    assert torch.equal(bench.vector(again.model), bench.vector(module.model))
