"""What every method must do: the step it promises, accumulation, resume, adapters, the command line."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig

from lit_modules.unlearning.ceu import CEU
from lit_modules.unlearning.core.aggregators import LinearScalarisation, Normalised
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.gradient_pair import Unlearning
from lit_modules.unlearning.core.losses import attended_logits, scored_logits, summed_nll, target_tokens, token_nll
from lit_modules.unlearning.dpo import DPO
from lit_modules.unlearning.idk import IDK
from lit_modules.unlearning.kl_minimisation import KLMinimisation
from lit_modules.unlearning.loss_norm import LossNorm
from lit_modules.unlearning.npo import NPO
from lit_modules.unlearning.pdu import PDU, logit_margin_loss
from lit_modules.unlearning.rmu import RMU
from lit_modules.unlearning.sat_imp import SatImp
from lit_modules.unlearning.simnpo import SimNPO
from lit_modules.unlearning.task_vector import TaskVector
from lit_modules.unlearning.undial import UNDIAL
from lit_modules.unlearning.wga import WGA

PAIRS: list[type[ForgetRetainLoss]] = [NPO, SimNPO, KLMinimisation, DPO, IDK, RMU, WGA, SatImp, UNDIAL, CEU, PDU]
METHODS: list[type[Unlearning]] = [*PAIRS, LossNorm, TaskVector]
Optimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def build(method: Any, bench: Any, network: Any, **arguments: Any) -> Any:
    extra = {"layer": 0} if method is RMU else {}
    return method(network, tokenizer=bench.tokenizer(), **extra, **arguments)


def change(bench: Any, network: Any, module: Any, size: int = 24) -> torch.Tensor:
    before = bench.vector(network)
    bench.fit(module, bench.pairs(size))
    after: torch.Tensor = bench.vector(network)
    return after - before


def gradient(network: Any, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    pairs = zip(found, network.parameters(), strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])


def forget_loss(method: Any, network: Any, task: Any) -> torch.Tensor:
    """The forget objective of a method at the reference, written out."""
    mean = 1 / target_tokens(task)
    if method is KLMinimisation:
        return -summed_nll(network, task) * mean
    if method is PDU:
        return logit_margin_loss(scored_logits(network, task)[0]).mean()
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
    return -2 / 4.5 * torch.nn.functional.logsigmoid(4.5 * sums / torch.bincount(rows)).mean()


@pytest.mark.parametrize("method", [NPO, SimNPO, KLMinimisation, WGA, SatImp, PDU])
def test_step_is_the_formulas(method: Any, bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    module = build(method, bench, network, optimizer=sgd)
    pair = bench.pairs(24)[0]
    forget = gradient(network, forget_loss(method, network, pair["forget"]))
    retain = gradient(network, summed_nll(network, pair["retain"]) / target_tokens(pair["retain"]))
    if method is KLMinimisation:
        retain = torch.zeros_like(retain)  # the divergence from itself
    moved = change(bench, network, module)
    expected = module.forget_weight * forget + module.retain_weight * retain
    torch.testing.assert_close(moved, -0.01 * expected, atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("method", PAIRS)
def test_plain_sum_equals_the_linear_combiner(method: Any, bench: Any, sgd: Optimizer) -> None:
    moves = []
    for combine in (None, LinearScalarisation()):
        network = bench.network()
        moves.append(change(bench, network, build(method, bench, network, aggregator=combine, optimizer=sgd), 8))
    assert moves[0].abs().sum() > 0
    torch.testing.assert_close(moves[1], moves[0], atol=2e-6, rtol=1e-3)


def test_npo_with_the_normalisation_of_ngdiff(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    pair = bench.pairs(24)[0]
    forget = gradient(network, forget_loss(NPO, network, pair["forget"]))
    retain = gradient(network, summed_nll(network, pair["retain"]) / target_tokens(pair["retain"]))
    moved = change(bench, network, build(NPO, bench, network, aggregator=Normalised(), optimizer=sgd))
    torch.testing.assert_close(moved, -0.01 * (retain / retain.norm() + forget / forget.norm()), atol=2e-7, rtol=1e-4)


def test_loss_norm_step_is_the_gradient_of_the_logarithms(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    pair = bench.pairs(24)[0]
    losses = {task: summed_nll(network, pair[task]) / target_tokens(pair[task]) for task in ("retain", "forget")}
    expected = gradient(network, losses["retain"].log() - losses["forget"].log())
    moved = change(bench, network, build(LossNorm, bench, network, optimizer=sgd))
    torch.testing.assert_close(moved, -0.01 * expected, atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(method: Any, bench: Any, sgd: Optimizer) -> None:
    results = []
    for size, accumulate in ((8, 1), (2, 4)):
        network = bench.network()
        trainer = bench.fit(build(method, bench, network, accumulate=accumulate, optimizer=sgd), bench.pairs(size))
        assert trainer.global_step == 3
        results.append(bench.vector(network))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_run_equals_the_whole(method: Any, bench: Any, tmp_path: Path) -> None:
    def module(network: Any) -> Any:
        return build(method, bench, network, accumulate=2, optimizer=adamw)

    whole = bench.network()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    bench.fit(module(whole), bench.pairs(8), [saver], max_epochs=2, enable_checkpointing=True)
    # the cache is gone: what a resumed run needs stands in the checkpoint
    for file in bench.folder.glob("reference_log_probs/*"):
        file.unlink()
    resumed = bench.network()
    bench.trainer(max_epochs=2).fit(
        module(resumed), bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "epoch=0.ckpt")
    )
    assert torch.equal(bench.vector(resumed), bench.vector(whole))


@pytest.mark.parametrize("method", [m for m in PAIRS if m is not RMU])
def test_checkpoint_holds_the_network_once(method: Any, bench: Any, tmp_path: Path) -> None:
    network = bench.network()
    trainer = bench.fit(build(method, bench, network, optimizer=adamw), bench.pairs(24))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if name.startswith("model.")} == {f"model.{name}" for name in network.state_dict()}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_switched_off_are_the_reference(method: Any, bench: Any, sgd: Optimizer) -> None:
    """The same method on adapters gives the adapters the gradient that a frozen copy gives, and holds no copy."""
    network = bench.network()
    frozen = {name: parameter.clone() for name, parameter in network.named_parameters()}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    module = build(method, bench, network, peft_config=lora, optimizer=adamw)
    bench.fit(module, bench.pairs(8))
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert getattr(module, "_frozen", []) == []
    for name, parameter in network.named_parameters():
        clean = name.replace(".base_layer", "")
        if clean in frozen:
            assert torch.equal(parameter, frozen[clean])


def test_reference_network_is_the_model_before_training(bench: Any) -> None:
    network = bench.network()
    before = copy.deepcopy(network)
    expected = attended_logits(before, bench.forget)
    for lora in (None, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)):
        module = build(UNDIAL, bench, copy.deepcopy(network), peft_config=lora, optimizer=adamw)
        bench.fit(module, bench.pairs(8))
        assert len(module._frozen) == (lora is None)
        with module.reference_network() as reference:
            assert not reference.training
            again = attended_logits(reference, bench.forget)
        assert module.model.training
        torch.testing.assert_close(again, expected)
        assert not torch.allclose(attended_logits(module.model, bench.forget), expected, atol=1e-4)


def test_resume_from_another_model_is_refused(bench: Any, tmp_path: Path) -> None:
    bench.fit(build(UNDIAL, bench, bench.network(), optimizer=adamw), bench.pairs(8)).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    with pytest.raises(ValueError, match=r"whose reference is the model .* and this run starts from the model"):
        bench.trainer(max_epochs=2).fit(
            build(UNDIAL, bench, bench.network(seed=5)),
            bench.loader(bench.pairs(8)),
            ckpt_path=str(tmp_path / "a.ckpt"),
        )


@pytest.mark.parametrize("method", [UNDIAL, CEU])
def test_without_retain_term_the_retain_rows_are_not_touched(method: Any, bench: Any, sgd: Optimizer) -> None:
    moves = []
    for scramble in (False, True):
        network = bench.network()
        pairs = bench.pairs(24)
        if scramble:
            pairs[0]["retain"] = {**pairs[0]["retain"], "input_ids": pairs[0]["retain"]["input_ids"].flip(1)}
        before = bench.vector(network)
        bench.fit(build(method, bench, network, optimizer=sgd), pairs)
        moves.append(bench.vector(network) - before)
    assert moves[0].abs().sum() > 0
    assert torch.equal(moves[0], moves[1])


def test_ceu_leaves_out_the_first_target_tokens(bench: Any, sgd: Optimizer) -> None:
    module = build(CEU, bench, bench.network(), skip_tokens=2)
    batch = bench.pairs(24)[0]
    assert module.forget_count(batch) == target_tokens(batch["forget"]) - 2 * 24
    labels = batch["forget"]["labels"].clone()
    for row in labels:
        row[row.ne(-100).nonzero()[:2, 0]] = -100  # no row's first token is scored, so these are its first two targets
    shorter = {"forget": {**batch["forget"], "labels": labels}}
    plain = build(CEU, bench, module.model, skip_tokens=0)
    torch.testing.assert_close(module.forget_objective(batch), plain.forget_objective(shorter))


@pytest.mark.parametrize("method", METHODS)
def test_command_line_builds_it(method: type[LightningModule], tiny_causal_lm: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    path = f"{method.__module__}.{method.__name__}"
    arguments = [f"--model={path}", f"--model.model={tiny_causal_lm}", "--model.accumulate=2"]
    if issubclass(method, ForgetRetainLoss):
        arguments.append("--model.aggregator=lit_modules.unlearning.core.aggregators.Normalised")
    module = parser.instantiate_classes(parser.parse_args(arguments)).model
    assert isinstance(module, method)
    assert module.hparams["accumulate"] == 2
    assert "aggregator" not in module.hparams
    if issubclass(method, ForgetRetainLoss):
        assert isinstance(module.aggregator, Normalised)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (NPO, {"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        (NPO, {"forget_weight": -1.0}, "forget_weight must be finite and not negative, got -1.0"),
        (NPO, {"retain_term": "mse"}, "retain_term must be 'nll' or 'kl', got 'mse'"),
        (SimNPO, {"delta": float("nan")}, "delta must be finite, got nan"),
        (DPO, {"beta": -0.1}, "beta must be positive and finite, got -0.1"),
        (WGA, {"beta": -1.0}, "beta must be finite and not negative, got -1.0"),
        (SatImp, {"beta2": -1.0}, "beta2 must be finite and not negative, got -1.0"),
        (UNDIAL, {"beta": float("inf")}, "beta must be finite, got inf"),
        (CEU, {"skip_tokens": -1}, "skip_tokens must not be negative, got -1"),
        (LossNorm, {"eps": 0.0}, "eps must be positive, got 0.0"),
        (PDU, {"retain_weight": 0.0}, "where the dual variable begins, must be positive, got 0.0"),
        (PDU, {"retain_level": -1.0}, "retain_level must be finite and not negative, got -1.0"),
        (TaskVector, {"strength": 0.0}, "strength must be positive and finite, got 0.0"),
    ],
)
def test_absurd_arguments_are_refused(method: Any, arguments: dict[str, Any], message: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=message):
        method(bench.network(), **arguments)


def test_foreign_combiner_is_refused(bench: Any) -> None:
    with pytest.raises(
        TypeError, match=r"aggregator must be a GradientAggregator, such as Normalised\(\), or None, got str"
    ):
        NPO(bench.network(), aggregator="ngdiff")  # type: ignore[arg-type]
