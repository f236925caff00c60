"""The life of an adapter: gone on with, never dropped in silence, whatever the method."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from callbacks import SavePretrained
from lit_modules.cli import main
from lit_modules.studies.stress.attacks import lm_eval_command, load_quantized, relearn, simulate_quantization_
from lit_modules.unlearning.core.losses import attended_logits
from lit_modules.unlearning.core.pretrained import load_causal_lm, model_hash
from lit_modules.unlearning.core.reference import row_hashes, sequence_log_probs
from lit_modules.unlearning.dpo import DPO
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.unlearning.kl_minimisation import KLMinimisation
from lit_modules.unlearning.ngdiff import NGDiff
from lit_modules.unlearning.npo import NPO
from lit_modules.unlearning.rmu import RMU
from lit_modules.unlearning.task_vector import TaskVector
from lit_modules.unlearning.undial import UNDIAL
from tests.unlearning.conftest import Workbench, adamw, lora

KINDS: list[Any] = [NGDiff, NPO, RMU, TaskVector, CausalLMFineTuning]
"""A method of each base class; what they inherit is the same in the others."""


def logits(model: Any, bench: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=bench.forget["input_ids"]).logits
    return found


def of(module: Any, bench: Any) -> Tensor:
    module.configure_model()
    return logits(module.model, bench)


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
    for given in (None, lora(), lora(lora_dropout=0.5, init_lora_weights=False)):
        module = bench.build(method, str(saved / "adapter"), peft_config=given)
        torch.testing.assert_close(of(module, bench), expected, atol=1e-5, rtol=0)
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        assert names
        assert all("lora_" in name for name in names)
    if method is TaskVector:
        with pytest.raises(ValueError, match=r"TaskVector takes LoRA adapters that begin at 0.*merged first"):
            bench.fit(bench.build(method, str(saved / "adapter")), bench.pairs(8))
        return
    module = bench.build(method, str(saved / "adapter"))
    bench.fit(module, bench.rows(method))
    module.save_pretrained(str(tmp_path / "two"))
    again = of(NGDiff(str(tmp_path / "two"), peft_config=lora()), bench)
    torch.testing.assert_close(again, of(module, bench), atol=1e-6, rtol=0)
    assert not torch.allclose(again, expected, atol=1e-4)


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


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"r": 4}, r"holds an adapter with r=2, and r=4 is asked for; leave peft_config out"),
    ({"lora_alpha": 8}, "lora_alpha=6, and lora_alpha=8 is asked for"),
    ({"use_rslora": True}, "use_rslora=False, and use_rslora=True is asked for"),
    ({"target_modules": ["q_proj"]}, "of other layers than peft_config names"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "of other layers than peft_config names"),
]


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [*((NGDiff, *change) for change in CHANGES), *((method, *CHANGES[0]) for method in KINDS[1:])],
)
def test_another_adapter_is_refused(method: Any, change: dict[str, Any], message: str, bench: Any, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench.build(method, str(saved / "adapter"), peft_config=lora(**change)).configure_model()


def test_adapter_of_another_base_or_none_is_refused(saved: Path, tmp_path: Path) -> None:
    config = (saved / "adapter" / "adapter_config.json").read_text()
    cases = {
        "nowhere": ("/nowhere/at/all", r"The base of the adapter in .*There is no model folder '/nowhere/at/all'"),
        "itself": (str(tmp_path / "itself"), "belongs to .* which holds an adapter and no whole model"),
        "nameless": ("", "does not say which model it belongs to"),
    }
    for name, (base, message) in cases.items():
        shutil.copytree(saved / "adapter", tmp_path / name)
        (tmp_path / name / "adapter_config.json").write_text(config.replace(str(saved / "base"), base))
        with pytest.raises(ValueError, match=message):
            NGDiff(str(tmp_path / name)).configure_model()
    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                 num_attention_heads=2)).save_pretrained(tmp_path / "deeper")  # fmt: skip
    shutil.copytree(saved / "adapter", tmp_path / "shallow")
    (tmp_path / "shallow" / "adapter_config.json").write_text(
        config.replace(str(saved / "base"), str(tmp_path / "deeper"))
    )
    with pytest.raises(ValueError, match=r"of other layers than its base model has: .*layers\.1"):
        NGDiff(str(tmp_path / "shallow")).configure_model()


@pytest.mark.parametrize("method", [NPO, DPO, KLMinimisation, UNDIAL, RMU])
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
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, attention_bias=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
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
def test_checkpoint_brings_its_adapter(method: Any, bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "base")
    module = bench.build(method, str(tmp_path / "base"), peft_config=lora())
    trainer = bench.fit(module, bench.rows(method))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    expected = of(module, bench)
    assert not torch.allclose(expected, of(NGDiff(str(tmp_path / "base")), bench), atol=1e-4)
    path = str(tmp_path / "one.ckpt")
    again = method.load_from_checkpoint(path, tokenizer=bench.tokenizer(), weights_only=True)
    torch.testing.assert_close(of(again, bench), expected, atol=0, rtol=0)
    tested = bench.build(method, str(tmp_path / "base"))
    bench.trainer().validate(tested, bench.labelled(), ckpt_path=path, verbose=False)
    torch.testing.assert_close(of(tested, bench), expected, atol=0, rtol=0)
    again.save_pretrained(str(tmp_path / "adapter"))
    torch.testing.assert_close(of(NGDiff(str(tmp_path / "adapter")), bench), expected, atol=1e-6, rtol=0)
    for change, message in (
        ({"lora_alpha": 8}, "The checkpoint holds an adapter with lora_alpha=6, and lora_alpha=8 is asked for"),
        ({"r": 4}, "The checkpoint holds an adapter with r=2"),
        ({"target_modules": ["q_proj"]}, "train different weights: the checkpoint holds '.*v_proj"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "train different weights: the checkpoint lacks '.*k_proj"),
    ):
        other = bench.build(method, str(tmp_path / "base"), peft_config=lora(**change))
        with pytest.raises(ValueError, match=message):
            bench.trainer().validate(other, bench.labelled(), ckpt_path=path, verbose=False)


def test_run_resumes_without_its_peft_config(bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "base")
    trainer = bench.fit(bench.build(NPO, str(tmp_path / "base"), peft_config=lora()), bench.pairs(8))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    ends = []
    for given in (lora(), None):
        module = bench.build(NPO, str(tmp_path / "base"), peft_config=given)
        bench.trainer(max_epochs=2).fit(module, bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "half.ckpt"))
        ends.append(of(module, bench))
    assert torch.equal(*ends)


def test_whole_checkpoint_is_not_loaded_under_an_adapter(bench: Any, tmp_path: Path) -> None:
    trainer = bench.fit(NGDiff(bench.network(), optimizer=adamw), bench.pairs(8))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    with pytest.raises(ValueError, match=r"holds the weights of a whole model, and this module carries an adapter"):
        bench.trainer().validate(
            NGDiff(bench.network(), peft_config=lora()), bench.loader([bench.forget]), ckpt_path=tmp_path / "whole.ckpt"
        )


def test_checkpoint_of_fewer_trained_weights_is_refused(bench: Any, tmp_path: Path) -> None:
    trainer = bench.fit(RMU(bench.network(), layer=0, train_only=["down_proj"], optimizer=adamw), bench.pairs(8))
    trainer.save_checkpoint(tmp_path / "few.ckpt")
    with pytest.raises(ValueError, match="train different weights: the checkpoint lacks"):
        bench.trainer().validate(
            RMU(bench.network(), layer=0, optimizer=adamw),
            bench.loader([bench.forget]),
            ckpt_path=tmp_path / "few.ckpt",
        )


def test_config_of_the_caller_stays_as_it_is(bench: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    before = copy.deepcopy(config)
    bench.fit(NGDiff(bench.network(), peft_config=config, optimizer=adamw), bench.pairs(24))
    assert config == before


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
    injected = AutoModelForCausalLM.from_pretrained(saved / "adapter")
    with pytest.raises(ValueError, match="carries an adapter which transformers has put into it"):
        NGDiff(injected).configure_model()
    given.add_adapter("other", lora())
    with pytest.raises(ValueError, match="must carry one adapter, 'default', got 'default', 'other'"):
        NGDiff(given).configure_model()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 5]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_model_says_what_the_adapted_one_says(
    tied: bool, changes: dict[str, Any], bench: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=tied)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    module = bench.build(NGDiff, str(tmp_path / "base"), peft_config=lora(**changes))
    bench.fit(module, bench.pairs(8))
    expected = of(module, bench)
    module.save_pretrained(str(tmp_path / "merged"), merge=True)
    torch.testing.assert_close(of(module, bench), expected, atol=0, rtol=0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, bench), expected, atol=1e-5, rtol=0)
    module.save_pretrained(str(tmp_path / "adapter"))
    torch.testing.assert_close(of(NGDiff(str(tmp_path / "adapter")), bench), expected, atol=1e-5, rtol=0)


def test_continued_adapter_merges(bench: Any, saved: Path, tmp_path: Path) -> None:
    module = bench.build(NGDiff, str(saved / "adapter"))
    bench.fit(module, bench.pairs(8), [SavePretrained(str(tmp_path / "end"), merge=True)])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "end")
    torch.testing.assert_close(logits(whole, bench), of(module, bench), atol=1e-5, rtol=0)


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
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=True)  # fmt: skip
    module = NeverTrains(LlamaForCausalLM(config), peft_config=lora(**changes))
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
    def evaluate(network: Any) -> dict[str, float]:
        return {"sum": float(logits(network, bench).square().sum())}

    merged = load_causal_lm(str(saved / "merged"))
    given = PeftModel.from_pretrained(load_causal_lm(str(saved / "base")), str(saved / "adapter"))
    expected = relearn(merged, [bench.forget], evaluate, (0, 2), learning_rate=1e-3)
    assert expected[0]["sum"] != pytest.approx(expected[1]["sum"], rel=1e-4)
    for model in (str(saved / "adapter"), given):
        found = relearn(model, [bench.forget], evaluate, (0, 2), learning_rate=1e-3)  # type: ignore[arg-type]
        for record, wanted in zip(found, expected, strict=True):
            assert record == pytest.approx(wanted, rel=1e-4)
    simulate_quantization_(merged, 8)
    rounded = load_quantized(str(saved / "adapter"), 8)
    torch.testing.assert_close(logits(rounded, bench), logits(merged, bench), atol=1e-3, rtol=0)
    rounded.save_pretrained(tmp_path / "rounded")
    again = load_causal_lm(str(tmp_path / "rounded"))
    torch.testing.assert_close(logits(again, bench), logits(rounded, bench), atol=1e-6, rtol=0)
    command = lm_eval_command(str(saved / "adapter"), ["mmlu"], "out")
    assert f"pretrained={saved / 'base'},peft={saved / 'adapter'},tokenizer={saved / 'adapter'}" in command


def test_adapters_of_a_given_network_are_told_from_new_ones(bench: Any) -> None:
    network = bench.network()
    get_peft_model(network, lora())  # puts the layers into the network itself
    with pytest.raises(ValueError, match="carries an adapter"):
        NGDiff(network, peft_config=lora()).configure_model()
