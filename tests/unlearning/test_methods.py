"""Promises of all methods: the step of the formula, accumulation, resume, adapters, the command line."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import logsigmoid

import lit_modules.unlearning
from lit_modules.unlearning.ceu import CEU
from lit_modules.unlearning.core.aggregators import LinearScalarisation, Normalised
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.gradient_pair import Unlearning
from lit_modules.unlearning.core.losses import attended_logits, scored_logits, target_tokens, token_nll
from lit_modules.unlearning.dpo import DPO
from lit_modules.unlearning.gradient_ascent import GradientAscent
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.kl_minimisation import KLMinimisation
from lit_modules.unlearning.loss_norm import LossNorm
from lit_modules.unlearning.ngdiff import NGDiff
from lit_modules.unlearning.npo import NPO
from lit_modules.unlearning.pdu import PDU, logit_margin_loss
from lit_modules.unlearning.rmu import RMU
from lit_modules.unlearning.sat_imp import SatImp
from lit_modules.unlearning.simnpo import SimNPO
from lit_modules.unlearning.task_vector import TaskVector
from lit_modules.unlearning.undial import UNDIAL, undial_loss
from lit_modules.unlearning.wga import WGA
from tests.unlearning.conftest import Optimizer, gradient_of, lora, mean_nll

EVERY: list[Any] = [getattr(lit_modules.unlearning, name) for name in lit_modules.unlearning.__all__]
METHODS = [method for method in EVERY if issubclass(method, Unlearning)]
LOSSES = [method for method in EVERY if issubclass(method, ForgetRetainLoss)]


def forget_loss(method: Any, network: Any, task: Any) -> torch.Tensor:
    """The forget loss of a method at the reference, written out."""
    if method is KLMinimisation:
        return -mean_nll(network, task)
    if method is PDU:
        return logit_margin_loss(scored_logits(network, task)[0]).mean()
    if method is UNDIAL:
        logits, labels, _ = scored_logits(network, task)
        return undial_loss(logits, logits, labels).mean()
    nll, rows = token_nll(network, task)
    p = nll.detach().neg().exp()
    if method is WGA:
        return -(p * nll).mean()
    if method is SatImp:
        return -(p**5 * (1 - p) * nll).mean()
    sums = torch.zeros(24).index_add(0, rows, nll)
    if method is NPO:  # at the reference the gradient is that of ascent on the sum of each row
        return -sums.mean()
    assert method is SimNPO
    return -2 / 4.5 * logsigmoid(4.5 * sums / torch.bincount(rows)).mean()


@pytest.mark.parametrize("method", [NPO, SimNPO, KLMinimisation, WGA, SatImp, PDU, UNDIAL])
def test_step_is_the_formulas(method: Any, bench: Any, sgd: Optimizer) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    module = bench.build(method, network, optimizer=sgd)
    forget = gradient_of(network, forget_loss(method, network, pair["forget"]))
    retain = gradient_of(network, mean_nll(network, pair["retain"]))
    if method is KLMinimisation:
        retain = torch.zeros_like(retain)  # the divergence from itself
    expected = module.forget_weight * forget + module.retain_weight * retain
    torch.testing.assert_close(bench.change(module, [pair]), -0.01 * expected, atol=2e-7, rtol=1e-4)
    if method is NPO:  # with the rule of NGDiff
        module = NPO(bench.network(), aggregator=Normalised(), optimizer=sgd)
        expected = retain / retain.norm() + forget / forget.norm()
        torch.testing.assert_close(bench.change(module, [pair]), -0.01 * expected, atol=2e-7, rtol=1e-4)


def test_steps_of_two_gradients_are_their_formulas(bench: Any, sgd: Optimizer) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    losses = [mean_nll(network, pair[task]) for task in ("retain", "forget")]
    retain, forget = (gradient_of(network, loss) for loss in losses)
    for method, expected, atol in (
        (NGDiff, retain / retain.norm() - forget / forget.norm(), 1e-7),
        (LossNorm, retain / losses[0].item() - forget / losses[1].item(), 2e-7),
        (GradientAscent, -forget, 1e-7),
        (TaskVector, -5 * forget, 1e-6),
    ):
        change = bench.change(method(bench.network(), optimizer=sgd), [pair])
        torch.testing.assert_close(change, -0.01 * expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("method", LOSSES)
def test_plain_sum_equals_the_linear_scalarisation(method: Any, bench: Any, sgd: Optimizer) -> None:
    plain, linear = (
        bench.change(bench.build(method, bench.network(), aggregator=aggregator, optimizer=sgd), bench.pairs(8))
        for aggregator in (None, LinearScalarisation())
    )
    assert plain.abs().sum() > 0
    torch.testing.assert_close(linear, plain, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(method: Any, bench: Any, sgd: Optimizer) -> None:
    results = []
    for size, accumulate in ((8, 1), (2, 4)):
        network = bench.network()
        trainer = bench.fit(bench.build(method, network, accumulate=accumulate, optimizer=sgd), bench.pairs(size))
        assert trainer.global_step == 3
        results.append(bench.vector(network))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [NGDiff, NPO, DPO, UNDIAL, PDU, TaskVector])  # tests/test_resume.py takes all
def test_stopped_and_resumed_run_equals_the_whole(method: Any, bench: Any, tmp_path: Path) -> None:
    def module(network: Any) -> Any:
        return bench.build(
            method, network, accumulate=2, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
        )

    whole = bench.network()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer = bench.fit(module(whole), bench.pairs(8), [saver], max_epochs=2, enable_checkpointing=True)
    assert trainer.global_step == 4  # of which the scheduler halves the rate at each
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**4)
    # the cache is gone: what a resumed run needs stands in the checkpoint
    for file in bench.folder.glob("reference_log_probs/*"):
        file.unlink()
    resumed = bench.network()
    bench.trainer(max_epochs=2).fit(
        module(resumed), bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "epoch=0.ckpt")
    )
    assert torch.equal(bench.vector(resumed), bench.vector(whole))


@pytest.mark.parametrize("method", [NGDiff, NPO, KLMinimisation, UNDIAL])
def test_checkpoint_holds_the_network_once(method: Any, bench: Any, tmp_path: Path) -> None:
    network = bench.network()
    bench.fit(bench.build(method, network), bench.pairs(24)).save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if name.startswith("model.")} == {f"model.{name}" for name in network.state_dict()}


@pytest.mark.parametrize("peft_config", [None, lora(init_lora_weights=False)], ids=["whole", "adapter"])
def test_reference_network_is_the_model_before_training(peft_config: Any, bench: Any, tmp_path: Path) -> None:
    expected = attended_logits(bench.network(), bench.forget)
    module = bench.build(UNDIAL, bench.network(), peft_config=peft_config)
    trainer = bench.fit(module, bench.pairs(8))
    assert len(module._frozen) == (peft_config is None)
    with module.reference_network() as reference:
        assert not reference.training
        torch.testing.assert_close(attended_logits(reference, bench.forget), expected)
    assert module.model.training
    assert not torch.allclose(attended_logits(module.model, bench.forget), expected, atol=1e-4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = bench.build(UNDIAL, bench.network(seed=5), peft_config=peft_config)
    with pytest.raises(ValueError, match=r"whose reference is the model .* and this run starts from the model"):
        bench.trainer(max_epochs=2).fit(other, bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("method", [UNDIAL, CEU])
def test_without_retain_term_the_retain_rows_are_not_touched(method: Any, bench: Any, sgd: Optimizer) -> None:
    (pair,) = bench.pairs(24)
    other = {**pair, "retain": {**pair["retain"], "input_ids": pair["retain"]["input_ids"].flip(1)}}
    moves = [bench.change(bench.build(method, bench.network(), optimizer=sgd), [data]) for data in (pair, other)]
    assert moves[0].abs().sum() > 0
    assert torch.equal(moves[0], moves[1])


def test_ceu_leaves_out_the_first_target_tokens(bench: Any) -> None:
    module = CEU(bench.network(), skip_tokens=2)
    (batch,) = bench.pairs(24)
    assert module.forget_count(batch) == target_tokens(batch["forget"]) - 2 * 24
    labels = batch["forget"]["labels"].clone()
    for row in labels:
        row[row.ne(-100).nonzero()[:2, 0]] = -100  # no row's first token is scored, so these are its first two targets
    shorter = {"forget": {**batch["forget"], "labels": labels}}
    plain = CEU(module.model, skip_tokens=0)
    torch.testing.assert_close(module.forget_objective(batch), plain.forget_objective(shorter))


STILL: Any = partial(torch.optim.SGD, lr=0.0)
"""An optimizer under which the losses of all steps are the same."""


def test_dual_variable_of_pdu(bench: Any) -> None:
    module = PDU(bench.network(), retain_level=4.0, dual_step=0.5, warm_up_epochs=1, optimizer=STILL)
    logged = bench.fit(module, bench.pairs(24), max_epochs=3).callback_metrics
    excess = float(logged["train/retain_loss"]) - 4.0
    assert excess > 0
    assert module.dual == pytest.approx(1 + 2 * 0.5 * excess, rel=1e-5)
    assert float(logged["train/dual"]) == pytest.approx(module.dual)
    # it stops at zero, and the level comes from the first step
    module = PDU(bench.network(), tolerance=0.5, dual_step=100.0, warm_up_epochs=0, optimizer=STILL)
    logged = bench.fit(module, bench.pairs(24), max_epochs=2).callback_metrics
    assert module.level == pytest.approx(1.5 * float(logged["train/retain_loss"]), rel=1e-5)
    assert module.dual == 0.0


def test_pdu_flattens_the_logits_of_the_targets_or_of_all_positions(bench: Any) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    inputs = {key: pair["forget"][key] for key in ("input_ids", "attention_mask")}
    expected = float(logit_margin_loss(network(**inputs).logits).mean())
    targets, everywhere = (
        bench.fit(PDU(bench.network(), positions=positions, optimizer=STILL), [pair]).callback_metrics
        for positions in ("targets", "all")
    )
    assert float(everywhere["train/forget_objective"]) == pytest.approx(expected, rel=1e-5)
    assert float(targets["train/forget_objective"]) != pytest.approx(expected, rel=1e-4)
    assert float(targets["train/forget_loss"]) == pytest.approx(float(everywhere["train/forget_loss"]), rel=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_options_have_help_and_the_command_line_builds_the_method(method: Any, tiny_causal_lm: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(method, "model")
    options = {action.dest.removeprefix("model."): action for action in parser._actions}
    assert {"model", "tokenizer", "peft_config", "metric", "optimizer", "scheduler"} <= options.keys()
    assert all(action.help for action in options.values())
    arguments = {"model": str(tiny_causal_lm), "max_new_tokens": "3"}
    given = {"accumulate": "2", "aggregator": "lit_modules.unlearning.core.aggregators.Normalised"}
    arguments |= {name: value for name, value in given.items() if name in options}
    config = parser.parse_args([f"--model.{name}={value}" for name, value in arguments.items()])
    module = parser.instantiate(config).model
    own = {name for name in options if "." not in name} - {"help", "model", "model.help"}
    injected = {"tokenizer", "peft_config", "metric", "optimizer", "scheduler", "aggregator"}
    assert set(module.hparams) - {"_instantiator"} == own - injected | {"model"}
    assert module.hparams["max_new_tokens"] == 3
    if "accumulate" in options:
        assert module.accumulate == 2
    if "aggregator" in options:
        assert isinstance(module.aggregator, Normalised)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        method(str(tiny_causal_lm), epsilon=1.0)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (NGDiff, {"accumulate": 0}, "accumulate must be at least 1, got 0"),
        (NGDiff, {"clip_norm": math.nan}, "clip_norm must be positive, got nan"),
        (NGDiff, {"eps": 0.0}, "eps must be positive, got 0.0"),
        (NGDiff, {"buffer": "disk"}, "buffer must be 'device', 'bfloat16' or 'cpu', got 'disk'"),
        (NGDiff, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (NGDiff, {"dtype": "int8"}, "dtype must be 'float32' or 'bfloat16', got 'int8'"),
        (GradientDifference, {"aggregator": "ngdiff"}, r"such as Normalised\(\), or None, got str"),
        (NPO, {"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        (NPO, {"forget_weight": -1.0}, "forget_weight must be finite and not negative, got -1.0"),
        (NPO, {"retain_term": "mse"}, "retain_term must be 'nll' or 'kl', got 'mse'"),
        (NPO, {"aggregator": "ngdiff"}, r"such as Normalised\(\), or None, got str"),
        (SimNPO, {"delta": math.nan}, "delta must be finite, got nan"),
        (CEU, {"skip_tokens": -1}, "skip_tokens must not be negative, got -1"),
        (PDU, {"retain_weight": 0.0}, "where the dual variable begins, must be positive, got 0.0"),
        (PDU, {"positions": "every"}, "positions must be 'targets' or 'all', got 'every'"),
        (RMU, {"average": "row"}, "average must be 'tokens' or 'rows', got 'row'"),
        (RMU, {"layer": -1}, "layer must not be negative, got -1"),
    ],
)
def test_absurd_arguments_are_refused(method: Any, arguments: dict[str, Any], message: str, bench: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        method(bench.network(), **arguments)
