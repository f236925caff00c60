import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import SavePretrained
from callbacks.ema import EMA
from tests.small_runs import quiet_trainer

Weights = dict[str, Tensor]


def weights(module: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def equal(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Module(LightningModule):
    """Keeps the weights that each step and each evaluation met."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.trained: list[Weights] = []
        self.met: list[Weights] = []
        self.saved: Weights = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(self.frozen(batch)).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.trained.append(weights(self))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.met.append(weights(self))

    test_step = predict_step = validation_step

    def save_pretrained(self, folder: str) -> None:
        self.saved = weights(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.1)


class Manual(Module):
    """Steps at every third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.layer(self.frozen(batch)).square().mean())
        if batch_idx % 3 == 2:
            self.toggle_optimizer(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            self.layer.requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        self.layer.requires_grad_(True)


class Plain(Module):
    """Each fit makes a new optimizer, which has no state."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Adapted(Module):
    """An adapter that is only there after ``configure_model``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.layer is None:
            torch.manual_seed(1)
            config = LoraConfig(r=1, target_modules=["0"], lora_dropout=0.0)
            self.layer = get_peft_model(nn.Sequential(nn.Linear(3, 2)), config)


class Broken(Module):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        raise RuntimeError("broken")


def loader(count: int = 6) -> Any:
    return DataLoader(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), batch_size=1)  # type: ignore[arg-type]


def seeded(kind: type[Module] = Module, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return kind(**arguments)


def averages(steps: list[Weights], decay: float = 0.9999) -> Weights:
    """Average step by step, in float64."""
    result = {name: value.double() for name, value in steps[0].items()}
    for k, step in enumerate(steps[1:], start=1):
        d = min(decay, (1 + k) / (10 + k))
        result = {name: d * result[name] + (1 - d) * step[name].double() for name in result}
    return result


def close(state: dict[str, Any], expected: Weights) -> None:
    for name, value in state["averages"].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("decay", "offload"), [(0.9999, False), (0.3, True)])
def test_averages_follow_the_formula(tmp_path: Path, decay: float, offload: bool) -> None:
    module, ema = seeded(), EMA(decay, offload)
    quiet_trainer(tmp_path, ema).fit(module, loader())
    state = ema.state_dict()
    assert set(state["averages"]) == {"layer.weight", "layer.bias"}  # what is frozen is not copied
    assert state["steps"] == 6
    close(state, averages(module.trained, decay))


@pytest.mark.parametrize(("kind", "arguments"), [(Module, {"accumulate_grad_batches": 3}), (Manual, {})])
def test_optimizer_steps_count_and_not_batches(tmp_path: Path, kind: type[Module], arguments: dict[str, Any]) -> None:
    module, ema = seeded(kind), EMA()
    quiet_trainer(tmp_path, ema, **arguments).fit(module, loader(9))
    assert ema.state_dict()["steps"] == 3
    close(ema.state_dict(), averages(module.trained[2::3]))


def test_evaluation_meets_the_averages_and_training_does_not(tmp_path: Path) -> None:
    module, ema = seeded(), EMA()
    plain = seeded()
    runner = quiet_trainer(tmp_path, ema, val_check_interval=3, num_sanity_val_steps=1)
    start = weights(module)
    runner.fit(module, loader(), loader(1))
    quiet_trainer(tmp_path).fit(plain, loader())
    assert all(equal(*pair) for pair in zip(module.trained, plain.trained, strict=True))
    assert equal(weights(module), plain.trained[-1])
    sanity, middle, end = module.met
    assert equal(sanity, start)
    names = ema.state_dict()["averages"]
    for met, steps in ((middle, module.trained[:3]), (end, module.trained)):
        close({"averages": {name: met[name] for name in names}}, averages(steps))
    for run in (runner.validate, runner.test, runner.predict):
        module.met.clear()
        run(module, loader(1))
        assert equal(module.met[0], end)
        assert equal(weights(module), plain.trained[-1])


def test_the_weights_come_back_after_an_exception(tmp_path: Path) -> None:
    module, plain, ema = seeded(Broken), seeded(), EMA()
    with pytest.raises(RuntimeError, match="broken"):
        quiet_trainer(tmp_path, ema).fit(module, loader(), loader(1))
    quiet_trainer(tmp_path).fit(plain, loader())
    assert not equal(module.met[0], weights(module))
    assert equal(weights(module), weights(plain))

    with pytest.raises(KeyError, match="mine"), ema.averaged(module):  # noqa: PT012
        assert equal(weights(module), module.met[0])
        raise KeyError("mine")
    assert equal(weights(module), weights(plain))


@pytest.mark.parametrize("kind", [Module, Adapted])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: type[Module]) -> None:
    whole = seeded(kind), EMA()
    quiet_trainer(tmp_path, whole[1], max_epochs=3).fit(whole[0], loader(), loader(1))
    first = quiet_trainer(tmp_path, EMA(), max_epochs=1)
    first.fit(seeded(kind), loader(), loader(1))
    first.save_checkpoint(tmp_path / "run.ckpt")
    resumed = seeded(kind), EMA()
    quiet_trainer(tmp_path, resumed[1], max_epochs=3).fit(
        resumed[0], loader(), loader(1), ckpt_path=tmp_path / "run.ckpt", weights_only=True
    )
    assert resumed[1].state_dict()["steps"] == whole[1].state_dict()["steps"] == 18
    assert equal(resumed[1].state_dict()["averages"], whole[1].state_dict()["averages"])
    assert equal(weights(resumed[0]), weights(whole[0]))
    assert equal(resumed[0].met[-1], whole[0].met[-1])
    trainable = {name for name, parameter in whole[0].named_parameters() if parameter.requires_grad}
    assert set(whole[1].state_dict()["averages"]) == trainable
    assert kind is Module or all("lora" in name for name in trainable)


def test_a_checkpoint_has_both_weights_and_tests_the_averages(tmp_path: Path) -> None:
    class Inside(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "inside.ckpt")

    module, ema = seeded(), EMA()
    saver = ModelCheckpoint(tmp_path, save_last=True)
    quiet_trainer(tmp_path, ema, saver, Inside(), enable_checkpointing=True).fit(module, loader(), loader(1))
    for path in (saver.best_model_path, saver.last_model_path, tmp_path / "inside.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert all(torch.equal(checkpoint["state_dict"][name], value) for name, value in weights(module).items())
        fresh = Module()
        quiet_trainer(tmp_path, EMA()).test(fresh, loader(1), ckpt_path=path, weights_only=True, verbose=False)
        assert equal(fresh.met[0], module.met[-1])
        assert equal(weights(fresh), weights(module))


@pytest.mark.parametrize(("averaged", "before"), [(True, True), (True, False), (False, True)])
def test_what_is_saved_at_the_end(tmp_path: Path, averaged: bool, before: bool) -> None:
    module, ema, save = seeded(), EMA(save_averaged=averaged), SavePretrained(str(tmp_path / "saved"))
    with pytest.warns(UserWarning, match="no tokenizer"):
        quiet_trainer(tmp_path, *((ema, save) if before else (save, ema))).fit(module, loader(), loader(1))
    assert equal(module.saved, module.met[-1] if averaged else weights(module))
    assert not equal(module.met[-1], weights(module))
    with ema.averaged(module), ema.averaged(module):
        assert equal(weights(module), module.met[-1])
    assert equal(weights(module), module.trained[-1])


def test_training_goes_on_where_it_ended_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    whole, ema = seeded(Plain), EMA()
    quiet_trainer(tmp_path, ema, max_epochs=2).fit(whole, loader(), loader(1))
    module, again = seeded(Plain), EMA()
    runner = quiet_trainer(tmp_path, again, max_epochs=1)
    runner.fit(module, loader(), loader(1))
    runner.test(module, loader(1), verbose=False)
    runner.fit_loop.max_epochs = 2
    runner.fit(module, loader(), loader(1))
    assert again.state_dict()["steps"] == 12
    assert equal(weights(module), weights(whole))
    assert equal(again.state_dict()["averages"], ema.state_dict()["averages"])
    quiet_trainer(tmp_path, again).fit(seeded(), loader())
    assert again.state_dict()["steps"] == 6


def test_half_precision_weights_have_float32_averages(tmp_path: Path) -> None:
    class Half(Module):
        def on_fit_start(self) -> None:
            assert self.layer.weight.dtype == torch.bfloat16

    module, ema = seeded(Half).bfloat16(), EMA()
    data: Any = DataLoader(torch.randn(6, 3).bfloat16(), batch_size=1)  # type: ignore[arg-type]
    quiet_trainer(tmp_path, ema).fit(module, data, data)
    close(ema.state_dict(), averages(module.trained))
    assert torch.equal(module.met[0]["layer.weight"], ema.state_dict()["averages"]["layer.weight"].bfloat16())


def test_averages_begin_at_a_checkpoint_without_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, ema = quiet_trainer(tmp_path), EMA()
    first.fit(seeded(), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    second = quiet_trainer(tmp_path, ema, max_epochs=2)
    with caplog.at_level("INFO"):
        second.fit(seeded(), loader(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert "EMA: the checkpoint holds no averages; they begin at the weights of step 6." in caplog.text
    assert ema.state_dict()["steps"] == 6


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    for decay in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"decay must lie between 0 and 1, got {decay}"):
            EMA(decay)
    with pytest.raises(ValueError, match="EMA averages trainable parameters, and Plain has none; let some require"):
        quiet_trainer(tmp_path, EMA()).fit(Plain().requires_grad_(False), loader())
    with pytest.raises(RuntimeError, match="EMA has no averages yet: they begin with fit"), EMA().averaged(Module()):
        pass
    with pytest.warns(UserWarning, match="EMA has no averages, so test runs with the module's own weights"):
        quiet_trainer(tmp_path, EMA()).test(Module(), loader(1), verbose=False)
    runner = quiet_trainer(tmp_path, EMA())
    runner.strategy.__class__ = FSDPStrategy
    with pytest.raises(ValueError, match="EMA needs whole parameters on every process, and FSDPStrategy shards them"):
        EMA().setup(runner, Module(), "fit")


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    ema = EMA()
    quiet_trainer(tmp_path, ema).fit(seeded(), loader())
    state = ema.state_dict()
    with (
        pytest.raises(ValueError, match=r"EMA averages layer.weight of shape \(2, 3\), and Module has \(5, 3\)"),
        ema.averaged(Module(width=5)),
    ):
        pass

    def resume(module: Module, state: dict[str, Any]) -> None:
        other = EMA()
        other.load_state_dict(copy.deepcopy(state))
        quiet_trainer(tmp_path, other).fit(module, loader())

    with pytest.raises(ValueError, match=r"an average of layer.weight of shape \(2, 3\), and Module has \(5, 3\); use"):
        resume(Module(width=5), state)
    frozen = Module()
    frozen.layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"an average of layer.bias, and Module does not train it; use the model"):
        resume(frozen, state)
    del state["averages"]["layer.bias"]
    with pytest.raises(ValueError, match=r"an average of no layer.bias, which Module trains; use the model"):
        resume(Module(), state)


def test_a_parameter_that_trains_later_is_told(tmp_path: Path) -> None:
    class Late(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.frozen.requires_grad_(True)

    with pytest.raises(RuntimeError, match=r"averages what trains when fit begins, and frozen.weight has begun"):
        quiet_trainer(tmp_path, EMA(), Late()).fit(Module(), loader())
