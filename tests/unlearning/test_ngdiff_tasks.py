"""NGDiff over any number of tasks: one normalised gradient for each, its sign by its role."""

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks import AdaptiveLR
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.ngdiff import NGDiff, roles
from tests.unlearning.conftest import cut, make_task

Optimizer = Callable[[Any], torch.optim.Optimizer]
NAMES = [f"{name}_task{number}" for name in ("forget", "retain") for number in (1, 2, 3)]
ROWS = {name: make_task(12, seed=number) for number, name in enumerate(NAMES, start=3)}


def batches(size: int) -> list[dict[str, Any]]:
    return [dict(zip(ROWS, tasks, strict=True)) for tasks in zip(*(cut(t, size) for t in ROWS.values()), strict=True)]


def by_hand(network: Any, batch: dict[str, Any]) -> Tensor:
    """The sum of the formula, a task and a parameter at a time, with the loss of transformers."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for name, task in batch.items():
        loss = network(**{key: task[key] for key in ("input_ids", "attention_mask", "labels")}).loss
        gradient = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient))
        for sum_of, g in zip(total, gradient, strict=True):
            sum_of += g / norm if name.startswith("retain") else -g / norm
    return torch.cat([each.flatten() for each in total])


def test_step_is_the_formula_in_float64(bench: Any, sgd: Optimizer) -> None:
    network = bench.network().double()
    before = bench.vector(network)
    # transformers takes the loss in float32; the same sum through plain cross entropy is in float64
    (batch,) = batches(12)
    direction = torch.zeros_like(before)
    parameters = list(network.parameters())
    for name, task in batch.items():
        logits = network(input_ids=task["input_ids"], attention_mask=task["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), task["labels"][:, 1:].flatten())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        direction += gradient / gradient.norm() * (1 if name.startswith("retain") else -1)
    trainer = bench.fit(NGDiff(network, optimizer=sgd), [batch])
    torch.testing.assert_close(bench.vector(network), before - 0.01 * direction, atol=1e-13, rtol=0)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {f"train/{name}_{what}" for name in NAMES for what in ("loss", "norm")} <= logged.keys()
    assert logged["train/direction_norm"] == pytest.approx(float(direction.norm()), rel=1e-6)
    forget = sum(logged[f"train/forget_task{number}_loss"] for number in (1, 2, 3)) / 3
    assert logged["train/forget_loss"] == pytest.approx(forget, rel=1e-6)


def test_step_is_the_formula_of_the_models_own_loss(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    before, (batch,) = bench.vector(network), batches(12)
    direction = by_hand(network, batch)
    bench.fit(NGDiff(network, optimizer=sgd), [batch])
    torch.testing.assert_close(bench.vector(network), before - 0.01 * direction, atol=1e-6, rtol=0)


def test_two_tasks_of_other_names_take_the_step_of_two(bench: Any, sgd: Optimizer) -> None:
    plain, named = bench.network(), bench.network()
    bench.fit(NGDiff(plain, optimizer=sgd), bench.pairs(8))
    data = [{"forget_a": pair["forget"], "retain_b": pair["retain"]} for pair in bench.pairs(8)]
    bench.fit(NGDiff(named, optimizer=sgd), data)
    torch.testing.assert_close(bench.vector(named), bench.vector(plain), atol=1e-7, rtol=0)


def test_accumulation_and_order_change_nothing(bench: Any, sgd: Optimizer) -> None:
    results = []
    for size, accumulate, names in ((4, 1, NAMES), (2, 2, NAMES), (4, 1, NAMES[::-1])):
        network = bench.network()
        module = NGDiff(network, accumulate=accumulate, optimizer=sgd)
        trainer = bench.fit(module, [{name: batch[name] for name in names} for batch in batches(size)])
        assert trainer.global_step == 3
        results.append(bench.vector(network))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=0)
    assert torch.equal(results[2], results[0])


@pytest.mark.parametrize(("buffer", "tolerance"), [("cpu", 0.0), ("bfloat16", 2e-3)])
def test_buffers_agree(buffer: Any, tolerance: float, bench: Any, sgd: Optimizer) -> None:
    reference, network = bench.network(), bench.network()
    bench.fit(NGDiff(reference, optimizer=sgd), batches(4))
    bench.fit(NGDiff(network, buffer=buffer, optimizer=sgd), batches(4))
    torch.testing.assert_close(bench.vector(network), bench.vector(reference), atol=tolerance, rtol=0)


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
    bench.fit(module, batches(12))
    assert len(seen) == 6
    assert module.most == 2  # the gradient of the task and the sum so far
    assert all(each() is None for each in seen)


def test_task_that_overflows_is_dropped(bench: Any, sgd: Optimizer) -> None:
    class Overflowing(NGDiff):
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
            loss = super().accumulate_gradient(group, task, scale)
            if task in self.broken:
                first = self.trainable_parameters()[0].grad
                assert first is not None
                first.view(-1)[0] = math.inf
            return loss

        broken: tuple[str, ...] = ("retain_task2",)

    network = bench.network()
    before, (batch,) = bench.vector(network), batches(12)
    direction = by_hand(network, {name: task for name, task in batch.items() if name != "retain_task2"})
    bench.fit(Overflowing(network, optimizer=sgd), [batch])
    torch.testing.assert_close(bench.vector(network), before - 0.01 * direction, atol=1e-6, rtol=0)
    network = bench.network()
    module = Overflowing(network, optimizer=sgd)
    module.broken = tuple(NAMES)
    assert bench.fit(module, [batch]).global_step == 0
    assert torch.equal(bench.vector(network), before)


def test_loss_that_is_not_finite_names_the_task_and_its_rows(bench: Any) -> None:
    class Broken(NGDiff):
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> Tensor:
            loss = super().accumulate_gradient(group, task, scale)
            return loss * math.nan if task == "forget_task2" else loss

    with pytest.raises(FloatingPointError, match="The forget_task2 loss is nan at step 0 on the rows row-4-0, row-4-1"):
        bench.fit(Broken(bench.network()), batches(4))


def test_adaptive_rate_probes_the_loss_over_all_retain_tasks(bench: Any) -> None:
    (batch,) = batches(12)
    module = NGDiff(bench.network())
    with torch.no_grad():
        nll, tokens = module.probe_loss(batch)
        one = {
            "retain": {
                k: torch.cat([batch[n][k] for n in NAMES[3:]]) for k in ("input_ids", "attention_mask", "labels")
            }
        }
        expected, count = module.probe_loss(one)
    assert tokens == count
    assert nll.item() == pytest.approx(expected.item(), rel=1e-5)
    probe = AdaptiveLR(period=1)
    bench.fit(NGDiff(bench.network(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)), batches(4) * 4, [probe])
    assert probe.probes == 12
    assert probe.accepted > 6


def test_stopped_and_resumed_run_equals_the_whole(bench: Any, tmp_path: Path) -> None:
    def module(network: Any) -> NGDiff:
        return NGDiff(network, accumulate=2, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))

    whole, resumed = bench.network(), bench.network(seed=5)
    bench.fit(module(whole), batches(3), max_epochs=2)
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    bench.fit(module(bench.network()), batches(3), [saver], max_epochs=1, enable_checkpointing=True)
    trainer = bench.trainer(max_epochs=2)
    trainer.fit(module(resumed), bench.loader(batches(3)), ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert trainer.global_step == 4
    assert torch.equal(bench.vector(resumed), bench.vector(whole))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["forget_task1", "forget_task2"], r"of tasks of both roles .* got \['forget_task1', 'forget_task2'\]"),
        (["forget_task1", "retain_task1", "retrain_task2"], r"begin with forget_ or retain_, got .*'retrain_task2'\]"),
        (["input_ids", "labels"], r'trains on batches \{"forget": task, "retain": task\}, got'),
    ],
)
def test_batches_without_roles_are_named(names: list[str], message: str, bench: Any) -> None:
    task = next(iter(ROWS.values()))
    with pytest.raises(ValueError, match=message):
        bench.fit(NGDiff(bench.network()), [dict.fromkeys(names, task)])


def test_batches_of_a_step_must_agree_and_other_methods_refuse_tasks(bench: Any) -> None:
    data = batches(4)
    del data[1]["forget_task3"]
    with pytest.raises(ValueError, match=r"The 2 batches of a step must hold the same tasks, got \['forget_task1'"):
        bench.fit(NGDiff(bench.network(), accumulate=2), data)
    with pytest.raises(ValueError, match=r"GradientDifference trains on batches .* got \['forget_task1'"):
        bench.fit(GradientDifference(bench.network()), batches(4))


def test_role_is_the_beginning_of_a_name() -> None:
    names = ["retain_b", "retain", "forget_task1", "forget", "forgetful", "idk"]
    assert list(roles(dict.fromkeys(names)).items()) == [
        ("forget", "forget"), ("forget_task1", "forget"), ("retain", "retain"), ("retain_b", "retain"),
    ]  # fmt: skip
