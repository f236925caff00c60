"""What a step of each method does, and that a resumed run does the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialWeightPerturbation
from lit_modules import MART, TRADES, FastTraining, FreeTraining, PGDTraining, StandardTraining
from lit_modules.adversarial import KLPGD
from lit_modules.adversarial.core.losses import kl_divergence
from lit_modules.adversarial.mart import mart_loss
from lit_modules.adversarial.trades import trades_loss
from lit_modules.attacks.pgd import L2PGD, LinfPGD

METHODS: list[Any] = [PGDTraining, StandardTraining, TRADES, MART, FreeTraining, FastTraining]
Optimizer = Callable[[Any], torch.optim.Optimizer]


def make(method: Any, network: Any, **arguments: Any) -> Any:
    """Return a module whose attack suits images of 8 x 8."""
    pgd = LinfPGD(eps=0.1, steps=3, step_size=0.05, keep="last")
    radius: dict[Any, dict[str, Any]] = {
        PGDTraining: {"attack": pgd},
        StandardTraining: {"validation_attack": pgd},
        TRADES: {"attack": KLPGD(eps=0.1, steps=3, step_size=0.05)},
        MART: {"attack": pgd},
        FreeTraining: {"eps": 0.1, "replays": 3},
        FastTraining: {"attack": LinfPGD(eps=0.1, steps=1, step_size=0.125, keep="last"), "guard": "off"},
    }
    return method(network, **(radius[method] | arguments))


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_the_robust_accuracy_rises(method: Any, bench: Any) -> None:
    module = make(method, bench.network(), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    module.scheduler = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    before = bench.trainer().validate(module, bench.loader(seed=1), verbose=False)[0]
    trainer = bench.trainer(max_epochs=15)
    trainer.fit(module, bench.loader(), bench.loader(seed=1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/loss"] < 0.6
    assert logged["val/accuracy"] > 0.95
    assert logged["val/robust_accuracy"] > before["val/robust_accuracy"]
    assert logged["val/robust_accuracy"] <= logged["val/accuracy"]
    own = "train/accuracy" if method is StandardTraining else "train/robust_accuracy"
    assert logged[own] > 0.6
    assert module.classifier.training


def expected_loss(method: Any, network: Any, batch: Any, adversarial: Any) -> torch.Tensor:
    label = batch["label"]
    if method is TRADES:
        return trades_loss(network(batch["image"]), network(adversarial), label, 6.0)
    if method is MART:
        return mart_loss(network(batch["image"]), network(adversarial), label, 5.0)
    return F.cross_entropy(network(batch["image"] if method is StandardTraining else adversarial), label)


@pytest.mark.parametrize("method", [m for m in METHODS if m is not FreeTraining])
def test_a_step_follows_the_gradient_of_the_methods_loss(method: Any, bench: Any, sgd: Optimizer) -> None:
    network, batch = bench.network(), bench.batch()
    module = make(method, network, optimizer=sgd, scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1))
    seed = module.step_seed()
    adversarial = module.attack(network, batch["image"], batch["label"], seed=seed) if module.attack else None
    loss = expected_loss(method, network, batch, adversarial)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
    before, image = bench.vector(network), batch["image"].clone()
    trainer = bench.fit(module, data=bench.loader(8))
    torch.testing.assert_close(bench.vector(network), before - 0.1 * gradient, atol=1e-6, rtol=0)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(loss.item(), abs=1e-5)
    assert torch.equal(batch["image"], image)


def test_the_attack_sees_evaluation_mode_and_the_step_training_mode(bench: Any, sgd: Optimizer) -> None:
    modes: list[tuple[bool, bool, bool]] = []
    network = bench.network(norm=True)
    network[2].eval()  # frozen by the user
    network.register_forward_hook(
        lambda m, i, o: modes.append((m.training, m[2].training, m[1].weight.requires_grad)), always_call=True
    )
    bench.fit(make(PGDTraining, network, optimizer=sgd), data=bench.loader(8))
    assert modes == [(False, False, False)] * 3 + [(True, False, True)]


def test_noise_depends_on_seed_step_and_sample_alone(bench: Any) -> None:
    network, batch = bench.network(), bench.batch()
    module, other = make(PGDTraining, network), make(PGDTraining, network, seed=1)
    first = module.adversarial_batch(batch)["adversarial"]
    assert torch.equal(first, module.adversarial_batch(batch)["adversarial"])
    part = module.adversarial_batch({"image": batch["image"][4:], "label": batch["label"][4:]})
    torch.testing.assert_close(part["adversarial"], first[4:], atol=1e-6, rtol=0)
    assert not torch.equal(first, other.adversarial_batch(batch)["adversarial"])
    assert module.step_seed() != other.step_seed()
    assert "adversarial" not in batch


def test_another_methods_checkpoint_is_refused(bench: Any, tmp_path: Path) -> None:
    trainer = bench.fit(make(PGDTraining, bench.network()))
    trainer.save_checkpoint(tmp_path / "pgd.ckpt")
    with pytest.raises(ValueError, match="was written by PGDTraining, and this run trains TRADES"):
        bench.fit(make(TRADES, bench.network()), ckpt_path=tmp_path / "pgd.ckpt", max_epochs=2)


def test_schedulers_move_by_step_or_epoch(bench: Any) -> None:
    for interval, rate in (("step", 0.1 * 0.5**6), ("epoch", 0.1 * 0.5**2)):
        module = make(
            PGDTraining,
            bench.network(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            scheduler_interval=interval,
        )
        trainer = bench.fit(module, max_epochs=2)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_bf16_mixed_attacks_in_float32(bench: Any) -> None:
    module, kinds = make(PGDTraining, bench.network()), set()
    attack = module.attack

    def watched(*arguments: Any, seed: int) -> torch.Tensor:
        adversarial: torch.Tensor = attack(*arguments, seed=seed)
        kinds.add(adversarial.dtype)
        return adversarial

    module.attack = watched
    bench.fit(module, data=bench.loader(8), precision="bf16-mixed")
    assert kinds == {torch.float32}


@pytest.mark.parametrize("method", [PGDTraining, StandardTraining])
def test_weight_perturbation_attacks_a_batch_once(method: Any, bench: Any) -> None:
    module = make(method, bench.network(norm=True))
    calls: list[int] = []
    if module.attack is not None:
        attack = module.attack
        module.attack = lambda *arguments, seed: (calls.append(seed), attack(*arguments, seed=seed))[1]
    before = bench.vector(module.classifier)
    bench.fit(module, [AdversarialWeightPerturbation(0.01)])
    assert len(set(calls)) == len(calls) == (0 if method is StandardTraining else 3)
    assert not torch.equal(bench.vector(module.classifier), before)


def test_kl_attack_raises_the_divergence_within_the_ball(bench: Any) -> None:
    network, batch = bench.network(), bench.batch()
    x = batch["image"]
    near, far = KLPGD(eps=0.1, steps=1, step_size=1e-6), KLPGD(eps=0.1, steps=5, step_size=0.03)
    clean = network(x)
    start, end = near(network, x, batch["label"]), far(network, x, batch["label"])
    assert 0 < float((start - x).abs().mean()) < 0.002
    # from a start far enough to have a gradient above rounding, a step short of the other side goes up
    before, after = (KLPGD(eps=0.1, steps=1, step_size=s, noise=0.05)(network, x, batch["label"]) for s in (1e-6, 1e-3))
    assert bool((kl_divergence(clean, network(after)) > kl_divergence(clean, network(before))).all())
    assert float((end - x).abs().max()) <= 0.1 + 1e-6
    assert torch.equal(end, end.clamp(0, 1))
    assert bool((kl_divergence(clean, network(end)) > kl_divergence(clean, network(start))).all())
    # neither the labels nor whether they are right matter
    assert torch.equal(end, far(network, x, (batch["label"] + 1) % 3))
    assert far.run(network, x, batch["label"]).num_queries.max() == 7
    with pytest.raises(ValueError, match="noise must be positive"):
        KLPGD(noise=0.0)


def test_defaults_are_the_papers(bench: Any) -> None:
    network = bench.network()
    pgd, trades, mart, fast = (method(network) for method in (PGDTraining, TRADES, MART, FastTraining))
    assert (pgd.attack.eps, pgd.attack.steps, pgd.attack.step_size) == (8 / 255, 10, 2 / 255)
    assert (trades.attack.eps, trades.attack.steps, trades.attack.step_size, trades.beta) == (0.031, 10, 0.007, 6.0)
    assert (mart.attack.eps, mart.attack.steps, mart.attack.step_size, mart.beta) == (0.031, 10, 0.007, 5.0)
    assert (fast.attack.eps, fast.attack.steps, fast.attack.step_size) == (8 / 255, 1, 10 / 255)
    assert fast.attack.step_size == pytest.approx(1.25 * fast.attack.eps)
    assert (FreeTraining(network).eps, FreeTraining(network).replays) == (8 / 255, 8)
    groups = [module.optimizer(network.parameters()).param_groups[0] for module in (pgd, trades, mart, fast)]
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.01, 0.2]
    assert [group["weight_decay"] for group in groups] == [2e-4, 2e-4, 3.5e-3, 5e-4]
    assert {group["momentum"] for group in groups} == {0.9}


def test_evaluation_attacks_follow_the_training_attack(bench: Any) -> None:
    attack = L2PGD(eps=0.5, steps=2, step_size=0.2, keep="last", bounds=(0.0, 2.0))
    module = PGDTraining(bench.network(), attack)
    for found, steps in ((module.validation_attack, 20), (module.test_attacks["pgd"], 100)):
        assert isinstance(found, L2PGD)
        assert (found.eps, found.steps, found.bounds) == (0.5, steps, (0.0, 2.0))
    assert FreeTraining(bench.network(), eps=0.2).validation_attack.eps == 0.2


TWO_RADII: Any = {"eps": torch.tensor([0.1, 0.2]), "step_size": 0.1}
BAD_ARGUMENTS: list[tuple[Any, str, Any, str]] = [
    (PGDTraining, "scheduler_interval", "week", "scheduler_interval must be 'step' or 'epoch', got 'week'"),
    (PGDTraining, "attack", {"targeted": True}, "attack must be untargeted"),
    (PGDTraining, "attack", TWO_RADII, "give validation_attack"),
    (TRADES, "beta", -1.0, "beta must not be negative, got -1"),
    (MART, "beta", -1.0, "beta must not be negative, got -1"),
    (PGDTraining, "test_attacks", {}, "test_attacks must name at least one attack"),
    (PGDTraining, "test_attacks", {"a/b": {}}, "named by letters, digits"),
    (PGDTraining, "test_attacks", {"a": {"targeted": True}}, "test_attacks must be untargeted"),
    (PGDTraining, "test_attacks", {"a": TWO_RADII}, "one radius for all samples; 'a' has 2"),
]


@pytest.mark.parametrize(("method", "name", "value", "sentence"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(method: Any, name: str, value: Any, sentence: str, bench: Any) -> None:
    if name == "attack":
        value = bench.attack(**value)
    elif name == "test_attacks":
        value = {title: bench.attack(**arguments) for title, arguments in value.items()}
    with pytest.raises(ValueError, match=sentence):
        method(bench.network(), **{name: value})


def test_an_attack_that_stops_early_is_warned_of(bench: Any) -> None:
    with pytest.warns(UserWarning, match=r"attack.keep='first' .* PGDTraining"):
        PGDTraining(bench.network(), bench.attack(keep="first"))


def test_bad_use_is_refused(bench: Any) -> None:
    module = make(PGDTraining, bench.network())
    for batch, got in (({"x": torch.zeros(1)}, r"\['x'\]"), (torch.zeros(1), "Tensor")):
        with pytest.raises(ValueError, match=rf"PGDTraining takes batches with the keys image, label, got {got}"):
            module.unpack(batch)
    with pytest.raises(RuntimeError, match="no results before a test"):
        module.results()
    with pytest.raises(ValueError, match="learning rate must be finite and not negative, got inf"):
        bench.fit(make(PGDTraining, bench.network(), optimizer=lambda p: torch.optim.SGD(p, lr=float("inf"))))
    wrong = DataLoader([{"image": torch.rand(1, 8, 8), "label": 3}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        bench.trainer().validate(module, wrong, verbose=False)


def test_validation_works_in_inference_mode_and_without(bench: Any) -> None:
    numbers = []
    for inference_mode in (True, False):
        trainer = bench.trainer(inference_mode=inference_mode)
        numbers.append(trainer.validate(make(PGDTraining, bench.network()), bench.loader(), verbose=False)[0])
    assert numbers[0] == numbers[1]


def test_predict_and_forward(bench: Any) -> None:
    network, data = bench.network(dropout=0.5), bench.loader(20, 8)
    module = make(PGDTraining, network)
    batches = bench.trainer().predict(module, data)
    images = data.dataset.image
    probability = network.eval()(images).softmax(1)
    assert [set(batch) for batch in batches] == [{"index", "prediction", "probability"}] * 3
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(20))
    assert torch.allclose(torch.cat([batch["probability"] for batch in batches]), probability, atol=1e-6)
    assert torch.equal(torch.cat([batch["prediction"] for batch in batches]), probability.argmax(1))
    assert torch.equal(module(images), network(images))
    for bare in (images, TensorDataset(images)):
        (alone,) = bench.trainer().predict(module, DataLoader(bare, batch_size=20))
        assert set(alone) == {"prediction", "probability"}
        assert torch.allclose(alone["probability"], probability, atol=1e-6)
    with pytest.raises(ValueError, match=r"predicts for batches with the key image, got \['picture'\]"):
        bench.trainer().predict(module, DataLoader([{"picture": torch.zeros(1)}]))  # type: ignore[arg-type]


class Speaking(torch.nn.Module):
    """Answers with an object, as the models of transformers do."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(images))


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_that_answers_with_an_object(method: Any, bench: Any, sgd: Optimizer, tmp_path: Path) -> None:
    weights, records = [], []
    for number, wrap in enumerate((torch.nn.Sequential, Speaking)):
        module = make(method, wrap(bench.network()), optimizer=sgd, test_attacks=[LinfPGD(eps=0.1, steps=2)])
        trainer = bench.fit(module, max_steps=3, default_root_dir=tmp_path / str(number))
        trainer.test(module, bench.loader(), verbose=False)
        weights.append(bench.vector(module.classifier))
        records.append([module.results()["worst_case"], trainer.validate(module, bench.loader(), verbose=False)])
    assert torch.allclose(*weights, atol=1e-6)
    assert records[0] == records[1]
