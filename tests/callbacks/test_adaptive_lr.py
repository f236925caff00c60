"""The automatic learning rate: the fit, the rule, and that a probe leaves no trace."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from callbacks.adaptive_lr import AdaptiveLR, Parabola, fit_parabola, next_rate


class Quadratic(LightningModule):
    """``x' H x / 2 - q' x`` in float64, by gradient descent."""

    def __init__(
        self, hessian: Tensor, linear: Tensor, lr: float, optimizer: Any = torch.optim.SGD, **arguments: Any
    ) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(linear), dtype=torch.float64))
        self.hessian, self.linear, self.lr = hessian, linear, lr
        self.build, self.arguments = optimizer, arguments
        self.dropout = nn.Dropout(0.5)
        self.trace: list[float] = []
        self.rates: list[float] = []

    def loss(self) -> Tensor:
        return self.x @ self.hessian @ self.x / 2 - self.linear @ self.x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.dropout(torch.ones(3))
        self.trace.append(self.loss().item())
        return self.loss()

    def probe_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        assert not self.training
        return self.loss() * 3, torch.tensor(3)

    def on_train_batch_end(self, *arguments: Any) -> None:
        optimizer: Any = self.optimizers()
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        return self.build([self.x], lr=self.lr, **self.arguments)


QUIET: dict[str, Any] = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


def fit(module: LightningModule, callback: AdaptiveLR | None, steps: int, folder: Path, **arguments: Any) -> Trainer:
    settings_ = {"enable_checkpointing": False, "logger": False} | arguments
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[] if callback is None else [callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings_,
    )
    trainer.fit(module, DataLoader(torch.zeros(steps, 1), batch_size=1))  # type: ignore[arg-type]
    return trainer


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(5, dtype=torch.float64), torch.randn(5, generator=generator, dtype=torch.float64)


def test_one_dimensional_fixture() -> None:
    fit_ = fit_parabola([-1.0, 0.0, 1.0], [5.0 - 3.0, 0.0, 2.0 - 3.0])
    assert (fit_.a, fit_.b, fit_.r2) == pytest.approx((1.0, 1.5, 1.0))
    assert next_rate(1.0, fit_) == pytest.approx(1.05)


@given(st.floats(-5, 3), st.floats(-9, 9), st.floats(-9, 9))
@settings(max_examples=100, deadline=None)
def test_fit_recovers_a_parabola_at_any_scale(log_rate: float, a: float, b: float) -> None:
    steps = [factor * 10**log_rate for factor in (-2.0, -1.0, 0.0, 1.0)]
    fit_ = fit_parabola(steps, [a * x * x / 2 - b * x for x in steps])
    scale = max(abs(a) * 10**log_rate, abs(b), 1e-12)
    assert fit_.b == pytest.approx(b, abs=1e-9 * scale)
    assert fit_.a * 10**log_rate == pytest.approx(a * 10**log_rate, abs=1e-9 * scale)


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3), st.floats(-6, 2))
@settings(max_examples=200, deadline=None)
def test_rate_stays_in_the_band(losses: list[float], log_rate: float) -> None:
    rate = 10**log_rate
    new = next_rate(rate, fit_parabola([-rate, 0.0, rate], [loss - losses[1] for loss in losses]))
    assert new is None or 0.95 * rate * (1 - 1e-12) <= new <= 1.1 * rate * (1 + 1e-12)


@pytest.mark.parametrize(
    "fit_", [Parabola(-1.0, 1.0, 1.0), Parabola(1.0, -1.0, 1.0), Parabola(1.0, 1.0, 0.9), Parabola(*[math.nan] * 3)]
)
def test_concave_ascending_noisy_or_broken_probes_are_rejected(fit_: Parabola) -> None:
    assert next_rate(1.0, fit_) is None


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0, 1e2])
def test_exact_mode_finds_the_minimiser_from_any_rate(lr: float, tmp_path: Path) -> None:
    hessian, linear = problem()
    module = Quadratic(hessian, linear, lr)
    gradient = hessian @ module.x.detach() - linear
    best = (gradient @ gradient / (gradient @ hessian @ gradient)).item()
    fit(module, AdaptiveLR(period=1, exact=True), 1, tmp_path)
    assert module.rates[0] == pytest.approx(best, rel=1e-6)


def test_exact_mode_descends_monotonically(tmp_path: Path) -> None:
    module = Quadratic(*problem(), lr=1.0)
    fit(module, AdaptiveLR(period=1, exact=True), 20, tmp_path)
    assert all(after <= before + 1e-12 for before, after in zip(module.trace, module.trace[1:], strict=False))


def test_negative_curvature_leaves_the_rate(tmp_path: Path) -> None:
    module = Quadratic(-torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), lr=0.01)
    callback = AdaptiveLR(period=1)
    fit(module, callback, 3, tmp_path)
    assert module.rates == [0.01] * 3
    assert (callback.probes, callback.accepted) == (3, 0)


def test_rejected_probe_can_halve_and_a_broken_loss_does(tmp_path: Path) -> None:
    module = Quadratic(-torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), lr=0.01)
    fit(module, AdaptiveLR(period=1, reject="halve"), 2, tmp_path)
    assert module.rates == [0.005, 0.0025]
    broken = Quadratic(*problem(), lr=0.01)
    broken.probe_loss = lambda batch: (torch.tensor(math.inf), torch.tensor(1))  # type: ignore[method-assign]
    fit(broken, AdaptiveLR(period=2), 2, tmp_path)
    assert broken.rates == [0.005, 0.005]


def test_bounds_hold(tmp_path: Path) -> None:
    module = Quadratic(*problem(), lr=1e-4)
    fit(module, AdaptiveLR(period=1, max_lr=1.05e-4), 4, tmp_path)
    assert module.rates[-1] == 1.05e-4


@pytest.mark.parametrize("scale", ["linear", "cosine"])
def test_horizon_scale_shrinks_the_target(scale: Any, tmp_path: Path) -> None:
    free, tied = Quadratic(*problem(), lr=1e-4), Quadratic(*problem(), lr=1e-4)
    fit(free, AdaptiveLR(period=1), 10, tmp_path)
    fit(tied, AdaptiveLR(period=1, scale=scale), 10, tmp_path)
    assert tied.rates[0] == free.rates[0]
    assert tied.rates[-1] < free.rates[-1]


OPTIMIZERS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"amsgrad": True, "foreach": True}),
    (torch.optim.Adagrad, {}),
    (torch.optim.RMSprop, {"momentum": 0.9}),
    (torch.optim.NAdam, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Rprop, {}),
]


@pytest.mark.parametrize(
    ("optimizer", "arguments", "offload"),
    [*((*case, False) for case in OPTIMIZERS), (torch.optim.AdamW, {"weight_decay": 0.1}, True)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_probe_that_changes_no_rate_leaves_the_run_bit_identical(
    optimizer: Any, arguments: dict[str, Any], offload: bool, tmp_path: Path
) -> None:
    runs = []
    for callback in (None, AdaptiveLR(period=2, min_lr=0.01, max_lr=0.01, offload=offload)):
        seed_everything(1, verbose=False)
        module = Quadratic(*problem(), lr=0.01, optimizer=optimizer, **arguments)
        trainer = fit(module, callback, 5, tmp_path)
        runs.append((module.x.detach(), trainer.optimizers[0].state_dict(), torch.get_rng_state(), module.x.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][2], runs[1][2])
    first, second = (copy.deepcopy(run[1]) for run in runs)
    assert str(first) == str(second)


def test_a_probe_keeps_modes_and_gradients(tmp_path: Path) -> None:
    module = Quadratic(*problem(), lr=0.01)
    module.dropout.eval()
    seen: list[Tensor] = []

    class Watch(AdaptiveLR):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            assert module.x.grad is not None
            seen.append(module.x.grad.clone())
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            assert torch.equal(seen[-1], module.x.grad)
            assert module.training
            assert not module.dropout.training

    fit(module, Watch(period=1), 2, tmp_path)
    assert len(seen) == 2


def test_state_survives_a_resume(tmp_path: Path) -> None:
    whole = Quadratic(*problem(), lr=1e-3, optimizer=torch.optim.AdamW)
    fit(whole, AdaptiveLR(period=3), 10, tmp_path)
    first = Quadratic(*problem(), lr=1e-3, optimizer=torch.optim.AdamW)
    trainer = fit(first, AdaptiveLR(period=3), 4, tmp_path)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    second = Quadratic(*problem(), lr=1e-3, optimizer=torch.optim.AdamW)
    resumed = Trainer(
        accelerator="cpu",
        max_steps=10,
        callbacks=[AdaptiveLR(period=3)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    resumed.fit(second, DataLoader(torch.zeros(10, 1), batch_size=1), ckpt_path=tmp_path / "stopped.ckpt")  # type: ignore[arg-type]
    assert torch.equal(second.x, whole.x)
    assert first.rates + second.rates == whole.rates


def test_logged_numbers(tmp_path: Path) -> None:
    trainer = fit(Quadratic(*problem(), lr=1e-4), AdaptiveLR(period=1, rule="official"), 1, tmp_path)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["adaptive_lr/lr"] == pytest.approx(1.1e-4)
    assert logged["adaptive_lr/accepted"] == 1
    assert logged["adaptive_lr/r2"] == pytest.approx(1)
    assert {"adaptive_lr/a", "adaptive_lr/b"} <= logged.keys()


class Regression(LightningModule):
    """A net whose matrix products autocast turns to bfloat16, at a rate whose curvature bfloat16 does not show."""

    def __init__(self, lr: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(dtype)
        self.lr = lr
        self.rows = torch.randn(64, 8, generator=generator).to(dtype)
        self.goals = torch.randn(64, 1, generator=generator)
        self.types: set[torch.dtype] = set()
        self.rates: list[float] = []

    def loss(self) -> Tensor:
        found = self.net(self.rows)
        self.types.add(found.dtype)
        return (found.float() - self.goals).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss()

    def probe_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        self.types.clear()
        return self.loss(), torch.tensor(1)

    def on_train_batch_end(self, *arguments: Any) -> None:
        optimizer: Any = self.optimizers()
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def curvature(module: Regression) -> float:
    """``d' H d`` along the gradient, by automatic differentiation in float64."""
    exact = copy.deepcopy(module).double()
    exact.rows, exact.goals = exact.rows.double(), exact.goals.double()
    parameters = list(exact.parameters())
    loss = (exact.net(exact.rows) - exact.goals).square().mean()
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    squares = [slope.square().sum() / 2 for slope in slopes]
    products = torch.autograd.grad(torch.stack(squares).sum(), parameters)
    return sum(float((one * two).sum().detach()) for one, two in zip(products, slopes, strict=True))


def probed(module: LightningModule, folder: Path, precision: Any, **arguments: Any) -> dict[str, float]:
    trainer = fit(module, AdaptiveLR(period=1, **arguments), 1, folder, precision=precision)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_mixed_precision_is_probed_in_float32(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module = Regression(1e-2)
    true = curvature(module)
    before = copy.deepcopy(module.state_dict())
    found = probed(module, tmp_path, "bf16-mixed")
    assert found["adaptive_lr/a"] == pytest.approx(true, rel=0.05)
    assert found["adaptive_lr/accepted"] == 1
    assert found["adaptive_lr/width"] == 1
    assert module.types == {torch.float32}  # of the last pass, a probe's
    again = Regression(1e-2)
    again.load_state_dict(before)
    assert probed(again, tmp_path, "32-true")["adaptive_lr/a"] == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("dtype", "lr"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_curvature_within_rounding_is_looked_for_further_out(dtype: torch.dtype, lr: float, tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module = Regression(lr, dtype)
    true = curvature(module)
    found = probed(module, tmp_path, "32-true")
    assert found["adaptive_lr/width"] > 1
    assert found["adaptive_lr/a"] == pytest.approx(true, rel=0.3)


def test_the_next_probe_begins_where_the_curvature_showed(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module, callback = Regression(1e-6), AdaptiveLR(period=1, max_lr=1e-6)
    passes: list[float] = []
    original = module.probe_loss
    module.probe_loss = lambda batch: (passes.append(callback.width), original(batch))[1]  # type: ignore[method-assign]
    fit(module, callback, 2, tmp_path)
    wide = callback.width
    assert wide > 1
    # where the update begins and three points, three more at each further distance; then four at once
    searched, rest = divmod(len(passes) - 8, 3)
    assert rest == 0
    assert 4.0 ** (searched - 1) <= wide <= 4.0**searched
    assert passes == [1.0] * (4 + 3 * searched) + [wide] * 4
    assert callback.state_dict()["width"] == wide


def test_a_loss_without_curvature_is_rejected(tmp_path: Path) -> None:
    module = Quadratic(torch.zeros(5, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64), lr=0.01)
    callback = AdaptiveLR(period=1)
    trainer = fit(module, callback, 2, tmp_path)
    assert module.rates == [0.01] * 2
    assert (callback.probes, callback.accepted) == (2, 0)
    assert trainer.callback_metrics["adaptive_lr/width"] == 1024


def test_the_fourth_point_lets_r2_min_reject(tmp_path: Path) -> None:
    """Through three points a parabola always goes; a fourth one shows that the loss is none."""

    class Kinked(Quadratic):
        def probe_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            moved = float((self.x.detach() - 1).sum())  # at the start all are 1, and an update lowers them
            return torch.tensor({0: 3.0, 1: 5.0, -1: 2.0}.get(round(2 * moved) / 2, 9.0)), torch.tensor(1)

    def rates(**arguments: Any) -> list[float]:
        one = torch.ones(1, dtype=torch.float64)
        module = Kinked(one.reshape(1, 1), torch.zeros(1, dtype=torch.float64), lr=1.0)
        fit(module, AdaptiveLR(period=1, **arguments), 1, tmp_path)
        return module.rates

    assert rates(factors=(-1.0, 0.0, 1.0)) == [pytest.approx(1.5)]
    assert rates(rule="official") == [pytest.approx(1.05)]
    assert rates() == [1.0]


class Bowl(Quadratic):
    """``log(1 + x^2)``, which is a parabola only where ``x`` is small."""

    def loss(self) -> Tensor:
        return (self.x / 4).square().log1p().sum()  # x is 1 at the start


def test_a_probe_that_leaves_the_parabola_is_taken_closer(tmp_path: Path) -> None:
    """From a rate far too large the first probe finds the minimiser of the parabola at the start."""
    rates, empty = {}, torch.zeros(1, dtype=torch.float64)
    for rule in ("robust", "official"):
        module = Bowl(empty.reshape(1, 1), empty, lr=1e4)
        trainer = fit(module, AdaptiveLR(period=1, rule=rule), 1, tmp_path)
        (rates[rule],) = module.rates
        assert (trainer.callback_metrics["adaptive_lr/width"] < 0.01) == (rule == "robust")
    curvature = 30 / 289
    assert 0.5 < rates["robust"] * curvature < 1.5
    assert rates["official"] >= 9500


@pytest.mark.parametrize("lr", [1e-6, 1e-4, 1e-2, 1.0, 1e2])
def test_the_first_probe_forgets_the_initial_rate_and_the_next_are_smoothed(lr: float, tmp_path: Path) -> None:
    module, same = Quadratic(*problem(), lr=lr), Quadratic(*problem(), lr=0.05)
    fit(module, AdaptiveLR(period=1), 6, tmp_path)
    fit(same, AdaptiveLR(period=1), 6, tmp_path)
    assert module.rates == pytest.approx(same.rates, rel=1e-4)
    assert all(after <= before for before, after in itertools.pairwise(module.trace))


class Saddle(Quadratic):
    """Trains down ``x' H x / 2`` and probes the opposite of its slope, so that each update raises the probed loss."""

    def probe_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        return (self.x - 2).square().sum() / 2, torch.tensor(1)


@pytest.mark.parametrize(("accepted", "lr", "expected"), [(0, 0.5, 0.25), (0, 8.0, 1.0), (1, 8.0, 4.0)])
def test_a_loss_that_rises_lowers_the_rate(accepted: int, lr: float, expected: float, tmp_path: Path) -> None:
    one = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    module, callback = Saddle(one.reshape(1, 1), zero, lr=lr), AdaptiveLR(period=1)
    callback.accepted = accepted
    trainer = fit(module, callback, 1, tmp_path)  # the probed slope along the update is -1, its curvature 1
    assert trainer.callback_metrics["adaptive_lr/accepted"] == 0
    assert module.rates == [pytest.approx(expected)]
    official = Saddle(one.reshape(1, 1), zero, lr=lr)
    fit(official, AdaptiveLR(period=1, rule="official"), 1, tmp_path)
    assert official.rates == [lr]


class Numbered(Quadratic):
    """Records which batches it trains and probes on."""

    def __init__(self) -> None:
        super().__init__(*problem(), lr=1e-3)
        self.trained: list[float] = []
        self.probed: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trained += batch.flatten().tolist()
        return super().training_step(batch, batch_idx)

    def probe_loss(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.probed += batch.flatten().tolist()
        return super().probe_loss(batch)


@pytest.mark.parametrize("kind", ["plain", "distributed"])
def test_fresh_batches_of_a_given_loader_leave_the_training_alone(kind: str, tmp_path: Path) -> None:
    def run(callback: AdaptiveLR | None) -> Numbered:
        seed_everything(3, verbose=False)
        module = Numbered()
        rows: Any = torch.arange(8.0)
        sampler: Any = DistributedSampler(rows, num_replicas=1, rank=0) if kind == "distributed" else None
        loader = DataLoader(rows, batch_size=2, sampler=sampler, shuffle=sampler is None)
        trainer = Trainer(accelerator="cpu", max_epochs=3, callbacks=[callback] if callback else [], **QUIET)
        trainer.fit(module, loader)
        return module

    plain, fresh, again = run(None), run(AdaptiveLR(period=1)), run(AdaptiveLR(period=1))
    assert fresh.trained == plain.trained
    assert fresh.probed == again.probed
    batches = list(dict.fromkeys(zip(fresh.probed[::2], fresh.probed[1::2], strict=True)))
    assert sorted(itertools.chain(*batches[:4])) == list(range(8))  # a pass over all rows
    assert fresh.probed[:2] != fresh.trained[:2]


def test_wrong_companions_are_named_before_the_first_step(tmp_path: Path) -> None:
    class Silent(Quadratic):
        probe_loss = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"AdaptiveLR needs Silent.probe_loss"):
        fit(Silent(*problem(), lr=0.1), AdaptiveLR(), 1, tmp_path)

    class Scheduled(Quadratic):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD([self.x], lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ValueError, match="so does StepLR"):
        fit(Scheduled(*problem(), lr=0.1), AdaptiveLR(), 1, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 0}, "period must be at least 1 optimizer step, got 0"),
        ({"period": -3}, "got -3"),
        ({"factors": (-1.0, 1.0)}, "0 and at least two others"),
        ({"factors": (0.0, 0.0, 1.0)}, "0 and at least two others"),
        ({"r2_min": 1.5}, "r2_min must be at most 1"),
        ({"clip": 0.5}, "clip must be at least 1"),
        ({"smooth": 1.0}, "smooth must lie in"),
        ({"scale": "step"}, "scale must be"),
        ({"probe_batch": "next"}, "probe_batch must be"),
        ({"reject": "drop"}, "reject must be"),
        ({"rule": "paper"}, "rule must be 'robust' or 'official', got 'paper'"),
        ({"min_lr": -1.0}, "min_lr must be finite and not negative"),
        ({"min_lr": 1.0, "max_lr": 0.5}, "max_lr must be at least min_lr"),
    ],
)
def test_absurd_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveLR(**arguments)
