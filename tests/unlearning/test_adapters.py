"""The life of an adapter: gone on with, never dropped in silence, whatever the method."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from callbacks import SavePretrained
from lit_modules.cli import main
from lit_modules.studies.stress.attacks import lm_eval_command, load_quantized, relearn, simulate_quantization_
from lit_modules.unlearning.core.losses import attended_logits
from lit_modules.unlearning.core.pretrained import load_causal_lm, model_hash
from lit_modules.unlearning.core.reference import row_hashes, sequence_log_probs
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.unlearning.ngdiff import NGDiff
from lit_modules.unlearning.npo import NPO
from lit_modules.unlearning.rmu import RMU
from lit_modules.unlearning.task_vector import TaskVector
from lit_modules.unlearning.undial import UNDIAL
from tests.unlearning.conftest import Workbench, adamw, lora

KINDS: list[Any] = [NGDiff, NPO, RMU, TaskVector, CausalLMFineTuning]
"""A method of each base class; what they inherit is the same in the others."""


@torch.no_grad()
def logits(model: Any, bench: Any) -> Tensor:
    return model.eval()(input_ids=bench.forget["input_ids"]).logits  # type: ignore[no-any-return]


def of(module: Any, bench: Any) -> Tensor:
    module.configure_model()
    return logits(module.model, bench)


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(sizes | {"num_hidden_layers": 1} | changes)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model, `base`, of an adapter that was trained on it, `adapter`, and of the two merged, `merged`."""
    folder = tmp_path_factory.mktemp("saved")
    bench = Workbench(folder)
    bench.network().save_pretrained(folder / "base")
    module = bench.build(NGDiff, str(folder / "base"), peft_config=lora())
    bench.fit(module, bench.pairs(8))
    module.save_pretrained(str(folder / "adapter"))
    module.save_pretrained(str(folder / "merged"), merge=True)
    return folder


@pytest.mark.parametrize("method", KINDS)
def test_saved_adapter_is_gone_on_with(method: Any, bench: Any, saved: Path, tmp_path: Path) -> None:
    expected = of(NGDiff(str(saved / "merged")), bench)
    assert not torch.allclose(expected, of(NGDiff(str(saved / "base")), bench), atol=1e-3)
    for peft_config in (lora(lora_dropout=0.5, init_lora_weights=False), None):
        module = bench.build(method, str(saved / "adapter"), peft_config=peft_config)
        torch.testing.assert_close(of(module, bench), expected, atol=1e-5, rtol=0)
        assert {name.split(".")[-3] for name, p in module.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    if method is TaskVector:
        with pytest.raises(ValueError, match=r"TaskVector takes LoRA adapters that begin at 0.*merged first"):
            bench.fit(module, bench.pairs(8))
        return
    bench.fit(module, bench.rows(method), [SavePretrained(str(tmp_path / "merged"), merge=True)])
    module.save_pretrained(str(tmp_path / "two"))
    again = of(module, bench)
    assert not torch.allclose(again, expected, atol=1e-4)
    for saved_module in (NGDiff(str(tmp_path / "two"), peft_config=lora()), NGDiff(str(tmp_path / "merged"))):
        torch.testing.assert_close(of(saved_module, bench), again, atol=1e-5, rtol=0)


def test_the_runs_own_recipe_scores_the_unlearned_model(ngdiff: list[str], tmp_path: Path) -> None:
    adapter = ["--model.peft_config=peft.LoraConfig", "--model.peft_config.r=4"]
    adapter += ["--model.peft_config.target_modules=[q_proj,v_proj]", "--model.optimizer=torch.optim.AdamW"]
    adapter += ["--model.optimizer.lr=0.05", "--trainer.callbacks=callbacks.SavePretrained"]
    fitted: Any = main(
        ["fit", *ngdiff, *adapter, "--trainer.max_epochs=2", f"--trainer.callbacks.folder={tmp_path / 'one'}"]
    )
    recipe = next(tmp_path.rglob("config.yaml"))
    trained = fitted.model.model.eval()
    ids = torch.arange(8)[None]
    for given in ([f"--model.model={tmp_path / 'one'}"], ["--ckpt_path", str(next(tmp_path.rglob("*.ckpt")))]):
        tested: Any = main(["test", "-c", str(recipe), *given])
        with torch.no_grad():
            found = tested.model.model.eval()(input_ids=ids).logits
            torch.testing.assert_close(found, trained(input_ids=ids).logits, atol=1e-6, rtol=0)
            with trained.disable_adapter():
                assert not torch.allclose(found, trained(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        *((method, {"r": 4}, r"holds an adapter with r=2, and r=4 is asked for; leave") for method in KINDS),
        (NGDiff, {"lora_alpha": 8}, "lora_alpha=6, and lora_alpha=8 is asked for"),
        (NGDiff, {"target_modules": ["q_proj", "v_proj", "k_proj"]}, "of other layers than peft_config names"),
    ],
)
def test_another_adapter_is_refused(method: Any, change: dict[str, Any], message: str, bench: Any, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench.build(method, str(saved / "adapter"), peft_config=lora(**change)).configure_model()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/nowhere/at/all", r"The base of the adapter in .*There is no model folder '/nowhere/at/all'"),
        ("itself", "belongs to .* which holds an adapter and no whole model"),
        ("", "does not say which model it belongs to"),
        ("deeper", r"of other layers than its base model has: .*layers\.1"),
    ],
)
def test_adapter_of_another_base_or_none_is_refused(base: str, message: str, saved: Path, tmp_path: Path) -> None:
    llama(num_hidden_layers=2).save_pretrained(tmp_path / "deeper")
    folder = Path(shutil.copytree(saved / "adapter", tmp_path / "itself"))
    config = (folder / "adapter_config.json").read_text()
    path = str(tmp_path / base) if base in ("itself", "deeper") else base
    (folder / "adapter_config.json").write_text(config.replace(str(saved / "base"), path))
    with pytest.raises(ValueError, match=message):
        NGDiff(str(folder)).configure_model()


@pytest.mark.parametrize("method", [NPO, UNDIAL, RMU])
def test_reference_of_a_continued_adapter_is_the_model_before_this_run(method: Any, bench: Any, saved: Path) -> None:
    before = load_causal_lm(str(saved / "merged"))
    expected = attended_logits(before.eval(), bench.forget)
    module = bench.build(method, str(saved / "adapter"), peft_config=lora())
    bench.fit(module, bench.pairs(8))
    assert not torch.allclose(attended_logits(module.model.eval(), bench.forget), expected, atol=1e-4)
    after = {name: parameter.clone() for name, parameter in module.named_parameters()}
    module.model.train()
    with module.reference_network() as reference:
        assert not reference.training
        torch.testing.assert_close(attended_logits(reference, bench.forget), expected, atol=1e-5, rtol=0)
    assert all(torch.equal(after[name], parameter) for name, parameter in module.named_parameters())
    assert module._reference_hash != model_hash(before, "32-true")
    if method is NPO:
        kept = [module._cache.rows[row] for row in row_hashes(bench.forget)]
        torch.testing.assert_close(
            torch.tensor(kept), sequence_log_probs(before, bench.forget).float(), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("changes", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_reference_of_an_adapter_that_changes_the_base_is_the_base(
    changes: dict[str, Any], bench: Any, tmp_path: Path
) -> None:
    llama(attention_bias=True).save_pretrained(tmp_path / "base")
    expected = attended_logits(load_causal_lm(str(tmp_path / "base")).eval(), bench.forget)
    module = bench.build(UNDIAL, str(tmp_path / "base"), peft_config=lora(**changes))
    trainer = bench.fit(module, bench.pairs(8))
    with module.reference_network() as reference:
        torch.testing.assert_close(attended_logits(reference, bench.forget), expected, atol=1e-5, rtol=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module.save_pretrained(str(tmp_path / "adapter"))
    for again in (UNDIAL.load_from_checkpoint(tmp_path / "one.ckpt"), NGDiff(str(tmp_path / "adapter"))):
        torch.testing.assert_close(of(again, bench), of(module, bench), atol=1e-5, rtol=0)
    if "bias" in changes:
        resumed = bench.build(UNDIAL, str(tmp_path / "base"))  # whose adapter the checkpoint brings
        bench.trainer(max_epochs=2).fit(resumed, bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "one.ckpt"))
        with resumed.reference_network() as reference:
            torch.testing.assert_close(attended_logits(reference, bench.forget), expected, atol=1e-5, rtol=0)


def test_starts_that_no_saved_adapter_brings_back_are_refused(bench: Any) -> None:
    for start in ("pissa_niter_4", "loftq", "corda"):
        config = lora()
        config.init_lora_weights = start  # type: ignore[assignment]
        with pytest.raises(ValueError, match=f"init_lora_weights='{start}' changes the model's own weights"):
            NGDiff(bench.network(), peft_config=config).configure_model()


@pytest.mark.parametrize("method", KINDS)
def test_checkpoint_holds_the_adapter_alone_and_brings_it(method: Any, bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "base")
    module, path = bench.build(method, str(tmp_path / "base"), peft_config=lora()), str(tmp_path / "one.ckpt")
    bench.fit(module, bench.rows(method)).save_checkpoint(path)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {name for name in state if name.startswith("model.")} == trained
    assert all("lora_" in name for name in trained)
    assert getattr(module, "_frozen", []) == []  # the adapters switched off are the reference
    base = NGDiff(str(tmp_path / "base"))
    with module.model.disable_adapter():  # which has not moved
        assert torch.equal(of(module, bench), of(base, bench))
    expected = of(module, bench)
    assert not torch.allclose(expected, of(base, bench), atol=1e-4)
    again = method.load_from_checkpoint(path, tokenizer=bench.tokenizer(), weights_only=True)
    tested = bench.build(method, str(tmp_path / "base"))
    bench.trainer().validate(tested, bench.labelled(), ckpt_path=path, verbose=False)
    for restored in (again, tested):
        torch.testing.assert_close(of(restored, bench), expected, atol=0, rtol=0)
    for change, message in (
        ({"r": 4}, "The checkpoint holds an adapter with r=2"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "train different weights: the checkpoint lacks '.*k_proj"),
    ):
        other = bench.build(method, str(tmp_path / "base"), peft_config=lora(**change))
        with pytest.raises(ValueError, match=message):
            bench.trainer().validate(other, bench.labelled(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by", "message"),
    [
        ((NGDiff, {}), (NGDiff, {"peft_config": lora()}), "the weights of a whole model, and this module carries an"),
        ((RMU, {"train_only": ["down_proj"]}), (RMU, {}), "train different weights: the checkpoint lacks"),
    ],
)
def test_checkpoint_of_other_weights_is_refused(
    saved_by: tuple[Any, Any], loaded_by: tuple[Any, Any], message: str, bench: Any, tmp_path: Path
) -> None:
    modules = [bench.build(method, bench.network(), **arguments) for method, arguments in (saved_by, loaded_by)]
    bench.fit(modules[0], bench.pairs(8)).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=message):
        bench.trainer().validate(modules[1], bench.loader([bench.forget]), ckpt_path=tmp_path / "one.ckpt")


def test_model_that_is_given_with_an_adapter(bench: Any, saved: Path) -> None:
    base = load_causal_lm(str(saved / "base"))
    given = PeftModel.from_pretrained(copy.deepcopy(base), str(saved / "adapter"))  # which nothing of would train
    module = NGDiff(given, optimizer=adamw)  # type: ignore[arg-type]
    expected = of(NGDiff(str(saved / "merged")), bench)
    torch.testing.assert_close(of(module, bench), expected, atol=1e-5, rtol=0)
    bench.fit(module, bench.pairs(8))
    assert not torch.allclose(of(module, bench), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"asks for a new adapter, and the .* that is given carries one already"):
        NGDiff(given, peft_config=lora()).configure_model()  # type: ignore[arg-type]
    network = bench.network()
    get_peft_model(network, lora())  # puts the layers into the network itself
    for injected in (network, AutoModelForCausalLM.from_pretrained(saved / "adapter")):
        with pytest.raises(ValueError, match="carries an adapter which transformers has put into it"):
            NGDiff(injected).configure_model()
    given.add_adapter("other", lora())
    with pytest.raises(ValueError, match="must carry one adapter, 'default', got 'default', 'other'"):
        NGDiff(given).configure_model()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 5]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_model_says_what_the_adapted_one_says(
    tied: bool, changes: dict[str, Any], bench: Any, tmp_path: Path
) -> None:
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    module = bench.build(NGDiff, str(tmp_path / "base"), peft_config=lora(**changes))
    bench.fit(module, bench.pairs(8))
    expected = of(module, bench)
    module.save_pretrained(str(tmp_path / "merged"), merge=True)
    torch.testing.assert_close(of(module, bench), expected, atol=0, rtol=0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, bench), expected, atol=1e-5, rtol=0)
    module.save_pretrained(str(tmp_path / "adapter"))
    torch.testing.assert_close(of(NGDiff(str(tmp_path / "adapter")), bench), expected, atol=1e-5, rtol=0)


class NeverTrains(NGDiff):
    def on_train_batch_start(self, *arguments: Any) -> None:
        raise AssertionError("training began")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_bias": True}, "lora_bias needs a bias"),
        ({"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}, "ties the adapters of two layers"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layers that share their weights"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_training(
    changes: dict[str, Any], message: str, bench: Any, tmp_path: Path
) -> None:
    module = NeverTrains(llama(tie_word_embeddings=True), peft_config=lora(**changes))
    with pytest.raises(ValueError, match=f"merge=True cannot merge this adapter, as .*{message}"):
        bench.fit(module, bench.pairs(8), [SavePretrained(str(tmp_path / "end"), merge=True)])


def test_folders_that_would_load_as_something_else_are_refused_before_training(bench: Any, saved: Path) -> None:
    for peft_config, folder, merge, message in (
        (None, "adapter", False, "holds an adapter, which would be loaded in place of the model"),
        (lora(), "adapter", True, "holds an adapter, which would be loaded in place of the model"),
        (lora(), "base", False, "holds the model that the adapter belongs to"),
    ):
        module = NeverTrains(str(saved / "base"), peft_config=peft_config)
        with pytest.raises(ValueError, match=message):
            bench.fit(module, bench.pairs(8), [SavePretrained(str(saved / folder), merge=merge)])
        with pytest.raises(ValueError, match=message):
            module.save_pretrained(str(saved / folder), merge=merge)


def test_other_adapters_than_lora_live_alike(bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "base")
    config = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    module = bench.build(NGDiff, str(tmp_path / "base"), peft_config=config)
    trainer = bench.fit(module, bench.pairs(8))
    trainer.save_checkpoint(tmp_path / "ia3.ckpt")
    module.save_pretrained(str(tmp_path / "adapter"))
    for again in (NGDiff.load_from_checkpoint(tmp_path / "ia3.ckpt"), NGDiff(str(tmp_path / "adapter"))):
        torch.testing.assert_close(of(again, bench), of(module, bench), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"peft_type='IA3', and peft_type='LORA' is asked for"):
        NGDiff(str(tmp_path / "adapter"), peft_config=lora()).configure_model()


def test_stress_tests_take_adapters_merged(bench: Any, saved: Path, tmp_path: Path) -> None:
    def attacked(model: Any) -> list[dict[str, float]]:
        def evaluate(network: Any) -> dict[str, float]:
            return {"sum": float(logits(network, bench).square().sum())}

        return relearn(model, [bench.forget], evaluate, (0, 2), learning_rate=1e-3)

    merged, base = load_causal_lm(str(saved / "merged")), load_causal_lm(str(saved / "base"))
    expected = attacked(merged)
    assert expected[0]["sum"] != pytest.approx(expected[1]["sum"], rel=1e-4)
    for model in (str(saved / "adapter"), PeftModel.from_pretrained(base, str(saved / "adapter"))):
        for record, wanted in zip(attacked(model), expected, strict=True):
            assert record == pytest.approx(wanted, rel=1e-4)
    simulate_quantization_(merged, 8)
    rounded = load_quantized(str(saved / "adapter"), 8)
    torch.testing.assert_close(logits(rounded, bench), logits(merged, bench), atol=1e-3, rtol=0)
    command = lm_eval_command(str(saved / "adapter"), ["mmlu"], "out")
    assert f"pretrained={saved / 'base'},peft={saved / 'adapter'},tokenizer={saved / 'adapter'}" in command
