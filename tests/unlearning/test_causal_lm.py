"""Loading, evaluation, generation and the data's companions of the language-model modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from callbacks import AdaptiveLR
from datamodules import SyntheticLUME
from lit_modules import NPO, CausalLMFineTuning, NGDiff
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.pretrained import load_causal_lm
from tests.unlearning.conftest import Workbench


def quiet(folder: Path, **arguments: Any) -> Trainer:
    return Workbench(folder).trainer(**arguments)


def data(folder: Path, **arguments: Any) -> SyntheticLUME:
    return SyntheticLUME(root=str(folder / "data"), num_documents=2, vocab_size=300, **({"batch_size": 4} | arguments))


def llama(vocab_size: int = 300) -> Any:
    torch.manual_seed(0)
    return small_llama(vocab_size, hidden_size=16, num_layers=1, num_heads=2)


TINY = {"vocab_size": 32, "num_layers": 1, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 16}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def without_queries(folder: Path) -> None:
    model = llama()
    model.save_pretrained(
        folder, state_dict={name: value for name, value in model.state_dict().items() if "q_proj" not in name}
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, r"There is no model folder '\S+'\. Give the name or the folder"),
        (Path.mkdir, "does not load as a causal language model"),
        (T5ForConditionalGeneration(T5Config(**TINY)).save_pretrained, "does not load as a causal language model"),
        (BertForMaskedLM(BertConfig(**BERT)).save_pretrained, "BertForMaskedLM, which is no causal language model"),
        (without_queries, r"lacks 1 weights of LlamaForCausalLM, such as .*q_proj"),
    ],
    ids=["missing", "empty", "T5", "BERT", "lacks weights"],
)
def test_folders_that_hold_no_causal_language_model_are_refused(write: Any, message: str, tmp_path: Path) -> None:
    if write is not None:
        write(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load_causal_lm(str(tmp_path / "model"))


def rows(seed: int, tokens: int = 8, **columns: Any) -> dict[str, Any]:
    ids = torch.randint(1, 300, (3, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, **columns}


def loader(*batches: Any) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def test_validation_loaders_as_in_training_give_two_losses(tmp_path: Path) -> None:
    forget, retain = rows(1), rows(2)
    named = loader({**forget, "split": ["forget"] * 3}, {**retain, "split": ["retain"] * 3})
    expected = quiet(tmp_path).validate(NGDiff(llama()), named, verbose=False)[0]
    assert set(expected) == {"val/forget_loss", "val/retain_loss"}
    for loaders in (
        {"forget": loader(forget), "retain": loader(retain)},
        loader({"forget": forget, "retain": retain}),
        CombinedLoader({"forget": loader(forget), "retain": loader(retain)}, "max_size"),
        loader({"forget_task1": forget, "retain_task1": retain}),
    ):
        assert quiet(tmp_path).validate(NGDiff(llama()), loaders, verbose=False)[0] == pytest.approx(expected)
    assert set(quiet(tmp_path).validate(NGDiff(llama()), loader(forget), verbose=False)[0]) == {"val/loss"}
    with pytest.raises(ValueError, match=r"validates batches with 'labels', or of named tasks with them, got \['input"):
        quiet(tmp_path).validate(NGDiff(llama()), loader({"input_ids": forget["input_ids"]}), verbose=False)


def test_test_batches_need_no_id(tmp_path: Path) -> None:
    scored, asked = rows(1), {name: value for name, value in rows(2).items() if name != "labels"}
    tokenizer = data(tmp_path)
    tokenizer.prepare_data()
    tokenizer.setup("test")
    module = NGDiff(llama(), tokenizer=tokenizer.tokenizer, max_new_tokens=2)
    quiet(tmp_path).test(module, [loader(scored), loader(asked)], verbose=False)
    module.metric = LUMEScore()
    with pytest.raises(ValueError, match="LUMEScore counts a row once, by its 'id', and the batch has only input_ids"):
        quiet(tmp_path).test(module, loader(scored), verbose=False)


@pytest.mark.parametrize("method", [NGDiff, NPO, CausalLMFineTuning])
def test_rows_beyond_the_positions_are_refused_before_training(method: Any, tmp_path: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    alone = method is CausalLMFineTuning
    own = data(tmp_path, **({"subset": "all"} if alone else {}))
    sentence = r"The model has 16 positions, and the row \S+ has \d\d+ tokens; give a smaller max_length, or a model"
    with pytest.raises(ValueError, match=sentence):
        quiet(tmp_path).fit(method(gpt2), datamodule=own)
    assert own.trainer.global_step == 0
    # of a user's own data, before the step
    short, long = rows(1, 16, id=["a", "b", "c"]), rows(2, 17, id=["d", "e", "f"])
    long["attention_mask"][0, -1] = 0
    batches = [short, long] if alone else [{"forget": short, "retain": task} for task in (short, long)]
    for stage, loaders in (("fit", loader(*batches)), ("validate", loader(long)), ("test", loader(long))):
        with pytest.raises(ValueError, match="The model has 16 positions, and the row e has 17 tokens"):
            getattr(quiet(tmp_path), stage)(method(gpt2), loaders)


@pytest.mark.parametrize("method", [NGDiff, CausalLMFineTuning])
def test_a_scheduler_that_wants_a_metric_is_refused(method: Any, tmp_path: Path) -> None:
    module = method(llama(), scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    batch = rows(1) if method is CausalLMFineTuning else {"forget": rows(1), "retain": rows(2)}
    with pytest.raises(ValueError, match="without a metric, and ReduceLROnPlateau needs one"):
        quiet(tmp_path).fit(module, loader(batch))


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_tokenizer_with_more_tokens_than_the_embedding_is_refused(stage: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 300 tokens and the model's embedding only 128 rows"):
        getattr(quiet(tmp_path), stage)(NGDiff(llama(128)), datamodule=data(tmp_path))


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
        quiet(tmp_path).fit(module, datamodule=data(tmp_path, subset="all"))


def test_run_with_fresh_probes_stopped_in_mid_epoch_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def run(folder: str, checkpoint: Path | None = None) -> tuple[Trainer, Any]:
        module = NGDiff(llama(), accumulate=2, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
        saver = ModelCheckpoint(dirpath=tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        probe = AdaptiveLR(period=2, probe_batch="fresh", reject="halve")
        trainer = quiet(tmp_path, max_epochs=3, callbacks=[probe, saver], enable_checkpointing=True)
        trainer.fit(module, datamodule=data(tmp_path, batch_size=3), ckpt_path=checkpoint)
        return trainer, module

    (complete, whole), (resumed, second) = run("whole"), run("second", tmp_path / "whole" / "step=5.ckpt")
    assert resumed.global_step == complete.global_step == 12  # 20 rows in 7 batches are 4 steps an epoch
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (complete, resumed)]
    assert rates[0] == rates[1] != 1e-3
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
