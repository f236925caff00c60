"""NGDiff, over two tasks and over more: its step, and what the step must not depend on."""

import math
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks import AdaptiveLR
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.unlearning.gradient_ascent import GradientAscent
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.ngdiff import NGDiff, roles
from tests.unlearning.conftest import Optimizer, Overflowing, adamw, cut, gradient_of, make_task, mean_nll

NAMES = [f"{name}_task{number}" for name in ("forget", "retain") for number in (1, 2, 3)]
ROWS = {name: make_task(12, seed=number) for number, name in enumerate(NAMES, start=3)}
KEYS = ("input_ids", "attention_mask", "labels")


def tasks(size: int) -> list[dict[str, Any]]:
    return [dict(zip(ROWS, each, strict=True)) for each in zip(*(cut(t, size) for t in ROWS.values()), strict=True)]


def test_logged_numbers_are_those_of_the_direction(bench: Any, sgd: Optimizer) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    theirs = network(**{key: pair["forget"][key] for key in KEYS}).loss
    assert mean_nll(network, pair["forget"]).item() == pytest.approx(theirs.item(), rel=1e-6)
    trainer = bench.fit(NGDiff(network, optimizer=sgd), [pair])
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/forget_loss"] == pytest.approx(theirs.item(), rel=1e-6)
    distance = 1 - logged["train/cosine"]
    assert logged["train/retain_descent"] == pytest.approx(logged["train/retain_norm"] * distance, rel=1e-4)
    assert logged["train/forget_descent"] == pytest.approx(-logged["train/forget_norm"] * distance, rel=1e-4)
    assert {"train/retain_loss", "train/lr"} <= logged.keys()


def test_incomplete_last_group_still_steps(bench: Any) -> None:
    assert bench.fit(NGDiff(bench.network(), accumulate=5), bench.pairs(4)).global_step == 2


def test_scaling_both_losses_changes_nothing_and_swapping_negates(bench: Any, sgd: Optimizer) -> None:
    class Scaled(NGDiff):
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
            return super().accumulate_gradient(group, task, {"forget": 1e3, "retain": 1e-2}[task])

    (pair,) = bench.pairs(24)
    swapped = {"forget": pair["retain"], "retain": pair["forget"]}
    plain, scaled, negated = (
        bench.change(method(bench.network(), optimizer=sgd), [data])
        for method, data in ((NGDiff, pair), (Scaled, pair), (NGDiff, swapped))
    )
    torch.testing.assert_close(scaled, plain, atol=1e-7, rtol=0)
    torch.testing.assert_close(negated, -plain, atol=1e-7, rtol=0)


def test_forget_loss_rises_and_retain_loss_falls(bench: Any) -> None:
    trainer = bench.fit(NGDiff(bench.network(), optimizer=adamw), bench.pairs(24) * 30)
    assert float(trainer.callback_metrics["train/forget_loss"]) > math.log(64) + 0.5
    assert float(trainer.callback_metrics["train/retain_loss"]) < math.log(64) - 0.5


@pytest.mark.parametrize(("buffer", "tolerance"), [("device", 0.0), ("cpu", 0.0), ("bfloat16", 1e-3)])
def test_buffers_agree_and_are_freed(buffer: Any, tolerance: float, bench: Any, sgd: Optimizer) -> None:
    alive: list[Any] = []

    class Watched(NGDiff):
        def buffered(self, gradient: Any) -> Any:
            waiting = super().buffered(gradient)
            alive.extend(weakref.ref(tensor) for tensor in waiting if tensor is not None)
            return waiting

        def on_train_batch_end(self, *arguments: Any) -> None:
            assert alive
            assert all(reference() is None for reference in alive)
            assert all(parameter.grad is None for parameter in self.parameters())

    for data, factor in ((bench.pairs(8), 1), (tasks(4), 2)):
        plain, network = bench.network(), bench.network()
        bench.fit(NGDiff(plain, optimizer=sgd), data)
        bench.fit(Watched(network, buffer=buffer, optimizer=sgd), data)
        torch.testing.assert_close(bench.vector(network), bench.vector(plain), atol=factor * tolerance, rtol=0)


def test_checkpointed_network_gives_the_same_step(bench: Any, sgd: Optimizer) -> None:
    plain, recomputed = (
        bench.change(NGDiff(bench.network(), optimizer=sgd, gradient_checkpointing=recompute), bench.pairs(24))
        for recompute in (False, True)
    )
    torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_network_gives_the_same_step(
    backend: str, bench: Any, sgd: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    plain = bench.change(NGDiff(bench.network(), optimizer=sgd), bench.pairs(24))
    # the default backend calls a C++ compiler for most of a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    compiled = NGDiff(bench.network(), optimizer=sgd, compile=True)
    torch.testing.assert_close(bench.change(compiled, bench.pairs(24)), plain, atol=1e-6, rtol=0)
    assert len(graphs) == 1  # steps run what was compiled


def test_clip_norm_clips_and_warns_below_two(bench: Any, sgd: Optimizer) -> None:
    with pytest.warns(UserWarning, match="whose norm .* is at most 2"):
        module = NGDiff(bench.network(), clip_norm=0.5, optimizer=sgd)
    assert bench.change(module, bench.pairs(24)).norm().item() == pytest.approx(0.005, rel=1e-3)


def test_checkpoint_of_another_method_is_refused(bench: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "gdiff.ckpt")
    bench.fit(GradientDifference(bench.network()), bench.pairs(8)).save_checkpoint(path)
    with pytest.raises(ValueError, match="written by GradientDifference, and this run trains NGDiff"):
        bench.trainer(max_epochs=2).fit(NGDiff(bench.network()), bench.loader(bench.pairs(8)), ckpt_path=path)


@pytest.mark.parametrize("method", [NGDiff, GradientAscent])
def test_loss_that_is_not_finite_names_rows_and_saves_the_state(method: Any, bench: Any) -> None:
    class Broken(method):  # type: ignore[misc]
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
            loss: Tensor = super().accumulate_gradient(group, task, scale)
            return loss * math.nan if self.global_step == 2 and task in ("forget", "forget_task2") else loss

    network = bench.network()
    with pytest.raises(
        FloatingPointError, match=r"forget loss is nan at step 2 on the rows row-1-16, .*last_good_step_2.ckpt"
    ):
        bench.fit(Broken(network, optimizer=adamw), bench.pairs(8))
    saved = torch.load(bench.folder / "last_good_step_2.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    for name, parameter in network.named_parameters():
        assert parameter.isfinite().all()
        assert torch.equal(saved["state_dict"][f"model.{name}"], parameter)
    if method is NGDiff:
        with pytest.raises(FloatingPointError, match="The forget_task2 loss is nan at step 2 on the rows row-4-8"):
            bench.fit(Broken(bench.network()), tasks(4))


@pytest.mark.parametrize("broken", ["forget", "forget_task2", "retain_task2"])
def test_gradient_that_overflows_is_dropped_and_a_step_without_any_is_skipped(
    broken: str, bench: Any, sgd: Optimizer
) -> None:
    (batch,) = bench.pairs(24) if broken == "forget" else tasks(12)
    module = Overflowing(bench.network(), optimizer=sgd)
    module.broken = (broken,)
    expected = direction_by_hand(bench.network(), {name: task for name, task in batch.items() if name != broken})
    torch.testing.assert_close(bench.change(module, [batch]), -0.01 * expected, atol=1e-6, rtol=0)
    module = Overflowing(bench.network(), optimizer=sgd)
    module.broken = tuple(batch)
    before = bench.vector(module.model)
    assert bench.fit(module, [batch]).global_step == 0
    assert torch.equal(bench.vector(module.model), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 2}, r"give NGDiff\(accumulate=2\)"),
        ({"gradient_clip_val": 0.5}, r"give NGDiff\(clip_norm=0.5\)"),
        ({"precision": "16-mixed"}, "use 'bf16-mixed'"),
    ],
)
def test_settings_that_a_manual_method_does_not_obey_are_refused(
    arguments: dict[str, Any], message: str, bench: Any
) -> None:
    half = arguments.get("precision") == "16-mixed"  # which Lightning itself refuses on a CPU
    trainer = bench.trainer(**({} if half else arguments))
    if half:
        trainer._accelerator_connector.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match=message):
        trainer.fit(NGDiff(bench.network()), bench.loader(bench.pairs(8)))


@pytest.mark.parametrize("lr", [-1e-3, math.nan])
def test_absurd_learning_rate_is_refused(lr: float, bench: Any) -> None:
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        with pytest.raises(ValueError, match=r"learning rate|refuses its arguments"):
            bench.fit(NGDiff(bench.network(), optimizer=lambda p, o=optimizer: o(p, lr=lr)), bench.pairs(8))


def test_named_model_reloads_from_its_checkpoint(bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "start")
    seed_everything(0, verbose=False)
    module = NGDiff(str(tmp_path / "start"), optimizer=adamw)
    bench.fit(module, bench.pairs(8)).save_checkpoint(tmp_path / "end.ckpt")
    again = NGDiff.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert torch.equal(bench.vector(again.model), bench.vector(module.model))
    module.save_pretrained(str(tmp_path / "end"))
    third = GradientAscent(str(tmp_path / "end"))
    third.configure_model()
    assert torch.equal(bench.vector(third.model), bench.vector(module.model))


def test_module_that_was_validated_can_be_fitted(bench: Any) -> None:
    module, trainer = NGDiff(bench.network()), bench.trainer(precision="bf16-mixed")
    bench.trainer().validate(module, bench.labelled(), verbose=False)  # in inference mode, unlike that of a fit
    trainer.fit(module, bench.loader(bench.pairs(8)), bench.labelled())
    assert "val/forget_loss" in trainer.callback_metrics
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def direction_by_hand(network: Any, batch: dict[str, Any]) -> Tensor:
    """Return the sum of the formula, a task at a time, with the loss of transformers."""
    terms = []
    for name, task in batch.items():
        gradient = gradient_of(network, network(**{key: task[key] for key in KEYS}).loss)
        terms.append(gradient / gradient.norm() * (1 if name.startswith("retain") else -1))
    return torch.stack(terms).sum(0)


def test_step_over_tasks_is_the_formula(bench: Any, sgd: Optimizer) -> None:
    (batch,) = tasks(12)
    expected = direction_by_hand(bench.network(), batch)
    network = bench.network()
    before = bench.vector(network)
    trainer = bench.fit(NGDiff(network, optimizer=sgd), [batch])
    torch.testing.assert_close(bench.vector(network), before - 0.01 * expected, atol=1e-6, rtol=0)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {f"train/{name}_{number}" for name in NAMES for number in ("loss", "norm")} <= logged.keys()
    assert logged["train/direction_norm"] == pytest.approx(float(expected.norm()), rel=1e-5)
    forget = sum(logged[f"train/forget_task{number}_loss"] for number in (1, 2, 3)) / 3
    assert logged["train/forget_loss"] == pytest.approx(forget, rel=1e-6)


def test_two_tasks_of_other_names_take_the_step_of_two(bench: Any, sgd: Optimizer) -> None:
    data = [{"forget_a": pair["forget"], "retain_b": pair["retain"]} for pair in bench.pairs(8)]
    plain, named = (bench.change(NGDiff(bench.network(), optimizer=sgd), each) for each in (bench.pairs(8), data))
    torch.testing.assert_close(named, plain, atol=1e-7, rtol=0)


def test_accumulation_and_order_of_tasks_change_nothing(bench: Any, sgd: Optimizer) -> None:
    results = []
    for size, accumulate, names in ((4, 1, NAMES), (2, 2, NAMES), (4, 1, NAMES[::-1])):
        module = NGDiff(bench.network(), accumulate=accumulate, optimizer=sgd)
        results.append(bench.change(module, [{name: batch[name] for name in names} for batch in tasks(size)]))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=0)
    assert torch.equal(results[2], results[0])


def test_no_more_than_two_gradients_are_held(bench: Any, sgd: Optimizer) -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Watched(NGDiff):
        most = 0

        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
            loss = super().accumulate_gradient(group, task, scale)
            gradient = self.trainable_parameters()[0].grad
            assert gradient is not None
            seen.append(weakref.ref(gradient))
            self.most = max(self.most, sum(each() is not None for each in seen))
            return loss

    module = Watched(bench.network(), optimizer=sgd)
    bench.fit(module, tasks(12))
    assert len(seen) == 6
    assert module.most == 2  # the gradient of the task and the sum so far
    assert all(each() is None for each in seen)


def test_adaptive_rate_probes_the_loss_over_all_retain_tasks(bench: Any) -> None:
    (batch,) = tasks(12)
    module = NGDiff(bench.network())
    whole = {"retain": {key: torch.cat([batch[name][key] for name in NAMES[3:]]) for key in KEYS}}
    with torch.no_grad():
        (nll, tokens), (expected, count) = module.probe_loss(batch), module.probe_loss(whole)
    assert tokens == count
    assert nll.item() == pytest.approx(expected.item(), rel=1e-5)
    probe = AdaptiveLR(period=1, rule="official", probe_batch="current")
    bench.fit(NGDiff(bench.network(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)), tasks(4) * 4, [probe])
    assert probe.probes == 12
    assert probe.accepted > 6


def test_run_over_tasks_that_is_stopped_in_a_group_and_resumed_equals_the_whole(bench: Any, tmp_path: Path) -> None:
    def module(seed: int) -> NGDiff:
        return NGDiff(bench.network(seed), accumulate=2, optimizer=adamw)

    whole, resumed = module(0), module(5)
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    bench.fit(whole, tasks(3), [saver], max_epochs=2, enable_checkpointing=True)
    trainer = bench.trainer(max_epochs=2)
    trainer.fit(resumed, bench.loader(tasks(3)), ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert trainer.global_step == 4
    assert torch.equal(bench.vector(resumed.model), bench.vector(whole.model))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["forget_task1", "forget_task2"], r"of tasks of both roles .* got \['forget_task1', 'forget_task2'\]"),
        (["forget_task1", "retain_task1", "retrain_task2"], r"begin with forget_ or retain_, got .*'retrain_task2'\]"),
        (["input_ids", "labels"], r'trains on batches \{"forget": task, "retain": task\}, got'),
    ],
)
def test_batches_without_roles_are_named(names: list[str], message: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=message):
        bench.fit(NGDiff(bench.network()), [dict.fromkeys(names, ROWS[NAMES[0]])])


def test_wrong_batches_are_named(bench: Any) -> None:
    with pytest.raises(ValueError, match="trains on batches with 'labels', got"):
        bench.fit(CausalLMFineTuning(bench.network()), bench.pairs(8))
    data = tasks(4)
    del data[1]["forget_task3"]
    with pytest.raises(ValueError, match=r"The 2 batches of a step must hold the same tasks, got \['forget_task1'"):
        bench.fit(NGDiff(bench.network(), accumulate=2), data)
    with pytest.raises(ValueError, match=r"GradientDifference trains on batches .* got \['forget_task1'"):
        bench.fit(GradientDifference(bench.network()), tasks(4))


def test_role_is_the_beginning_of_a_name() -> None:
    names = ["retain_b", "retain", "forget_task1", "forget", "forgetful", "idk"]
    assert roles(dict.fromkeys(names)) == {n: n[:6] for n in ("forget", "forget_task1", "retain", "retain_b")}
