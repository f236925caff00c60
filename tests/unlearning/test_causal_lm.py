"""Loading, evaluation, generation and the data's companions of the language-model modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from callbacks import AdaptiveLR
from datamodules import SyntheticLUME
from lit_modules import CausalLMFineTuning, NGDiff
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.loading import load_causal_lm


def quiet(folder: Path, **arguments: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(settings | arguments))


def data(folder: Path, **arguments: Any) -> SyntheticLUME:
    return SyntheticLUME(root=str(folder / "data"), num_documents=2, vocab_size=300, **({"batch_size": 4} | arguments))


def llama(vocab_size: int = 300) -> Any:
    torch.manual_seed(0)
    return small_llama(vocab_size, hidden_size=16, num_layers=1, num_heads=2)


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no model folder '/nowhere/at/all'\. Give the name or the folder"):
        load_causal_lm("/nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not load as a causal language model"):
        load_causal_lm(str(tmp_path / "empty"))
    T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="does not load as a causal language model"):
        load_causal_lm(str(tmp_path / "t5"))
    bert = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertForMaskedLM, which is no causal language model"):
        load_causal_lm(str(tmp_path / "bert"))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    model = llama()
    state = {name: value for name, value in model.state_dict().items() if "q_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM, such as .*q_proj"):
        load_causal_lm(str(tmp_path))


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 300 tokens and the model's embedding only 128 rows"):
        quiet(tmp_path, max_epochs=1).fit(NGDiff(llama(128)), datamodule=data(tmp_path))
    with pytest.raises(ValueError, match="has 300 tokens and the model's embedding only 128 rows"):
        quiet(tmp_path).test(NGDiff(llama(128)), datamodule=data(tmp_path))


def test_evaluation_gives_the_benchmarks_numbers(tmp_path: Path) -> None:
    module = NGDiff(llama(), metric=LUMEScore(), max_new_tokens=3)
    with pytest.raises(RuntimeError, match="NGDiff has no results yet"):
        module.results()
    numbers = quiet(tmp_path).test(module, datamodule=data(tmp_path), verbose=False)[0]
    assert numbers["test/task_aggregate"] == 0
    record = module.results()
    assert record["aggregate-score"] == -1
    assert record["mia_loss_acc"] is not None
    losses = quiet(tmp_path).validate(module, datamodule=data(tmp_path), verbose=False)[0]
    assert set(losses) == {"val/forget_loss", "val/retain_loss"}


def test_generation_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    prepared = data(tmp_path)
    prepared.prepare_data()
    prepared.setup("test")
    module = NGDiff(llama(), tokenizer=prepared.tokenizer, max_new_tokens=8)
    prompts = ["What is", "Who lives in the old city by the sea and why?", "A"]
    together = module.generate(prompts)
    assert together == [module.generate(prompt) for prompt in prompts]
    assert module.training
    with pytest.raises(ValueError, match="No tokenizer lies beside the model"):
        NGDiff(llama()).generate("What is")


def test_fine_tuning_lowers_the_loss_and_feeds_unlearning_by_path(tmp_path: Path) -> None:
    module = CausalLMFineTuning(llama(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer = quiet(tmp_path, max_epochs=8)
    trainer.fit(module, datamodule=data(tmp_path, subset="all"))
    assert float(trainer.callback_metrics["val/retain_loss"]) < 4.5
    module.save_pretrained(str(tmp_path / "target"))
    named = NGDiff(str(tmp_path / "target"))
    named.configure_model()
    named.configure_model()
    assert named.model.training
    assert next(named.model.parameters()).dtype == torch.float32
    assert torch.equal(named.model.lm_head.weight, module.model.lm_head.weight)


def test_loss_that_is_not_finite_stops_fine_tuning(tmp_path: Path) -> None:
    model = llama()
    module = CausalLMFineTuning(model, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    with pytest.raises(
        FloatingPointError, match=r"training loss is (nan|inf) at step \d on the rows .*lower the learning"
    ):
        quiet(tmp_path, max_epochs=1).fit(module, datamodule=data(tmp_path, subset="all"))


@pytest.mark.parametrize("probe_batch", ["current", "fresh"])
def test_run_killed_in_mid_epoch_resumes_as_if_nothing_had_happened(probe_batch: Any, tmp_path: Path) -> None:
    def module() -> NGDiff:
        return NGDiff(llama(), accumulate=2, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))

    def probe() -> AdaptiveLR:
        return AdaptiveLR(period=2, probe_batch=probe_batch, reject="halve")

    whole, second = module(), module()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    complete = quiet(tmp_path, max_epochs=3, callbacks=[probe(), saver], enable_checkpointing=True)
    complete.fit(whole, datamodule=data(tmp_path, batch_size=3))
    resumed = quiet(tmp_path, max_epochs=3, callbacks=[probe()])
    resumed.fit(second, datamodule=data(tmp_path, batch_size=3), ckpt_path=str(tmp_path / "step=5.ckpt"))
    assert complete.global_step == 12  # 20 rows in 7 batches are 4 steps an epoch
    assert resumed.global_step == complete.global_step
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (complete, resumed)]
    assert rates[0] == rates[1] != 1e-3
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
