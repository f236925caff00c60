"""What a step of each method does, and that a resumed run does the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

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
    radius: dict[Any, dict[str, Any]] = {
        PGDTraining: {"attack": LinfPGD(eps=0.1, steps=3, step_size=0.05, keep="last")},
        StandardTraining: {"validation_attack": LinfPGD(eps=0.1, steps=3, step_size=0.05)},
        TRADES: {"attack": KLPGD(eps=0.1, steps=3, step_size=0.05)},
        MART: {"attack": LinfPGD(eps=0.1, steps=3, step_size=0.05, keep="last")},
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


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_one_without_a_break(method: Any, bench: Any, tmp_path: Path) -> None:
    def module() -> Any:
        arguments: dict[str, Any] = {"guard": "warn"} if method is FastTraining else {}
        return make(method, bench.network(norm=True, dropout=0.3), **arguments)

    whole = module()
    torch.manual_seed(3)
    bench.fit(whole, max_epochs=3)
    torch.manual_seed(3)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    bench.fit(module(), [keep], max_epochs=3, enable_checkpointing=True)
    torch.manual_seed(99)
    resumed = module()
    bench.fit(resumed, ckpt_path=tmp_path / "epoch=0.ckpt", max_epochs=3)
    for name, value in whole.classifier.state_dict().items():
        assert torch.equal(value, resumed.classifier.state_dict()[name]), name
    if method is FreeTraining:
        assert torch.equal(whole._delta, resumed._delta)
    loaded = method.load_from_checkpoint(tmp_path / "epoch=2.ckpt", classifier=bench.network(norm=True))
    assert torch.equal(bench.vector(loaded.classifier), bench.vector(whole.classifier))
    assert loaded.hparams["seed"] == 0
    assert not set(loaded.hparams) & {"classifier", "attack", "optimizer", "guard_attack"}


def test_another_methods_checkpoint_is_refused(bench: Any, tmp_path: Path) -> None:
    trainer = bench.fit(make(PGDTraining, bench.network()))
    trainer.save_checkpoint(tmp_path / "pgd.ckpt")
    with pytest.raises(ValueError, match="was written by PGDTraining, and this run trains TRADES"):
        bench.fit(make(TRADES, bench.network()), ckpt_path=tmp_path / "pgd.ckpt", max_epochs=2)


def test_checkpoints_are_selected_by_robust_accuracy(bench: Any, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="val/robust_accuracy", mode="max", filename="best")
    trainer = bench.trainer([keep], max_epochs=2, enable_checkpointing=True)
    trainer.fit(make(PGDTraining, bench.network()), bench.loader(), bench.loader(seed=1))
    assert (tmp_path / "best.ckpt").is_file()
    assert keep.best_model_score is not None


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
    kinds: set[torch.dtype] = set()

    class Seen(LinfPGD):
        def __call__(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> Any:
            found = super().__call__(model, x, y, seed=seed)
            kinds.add(found.dtype)
            return found

    attack = Seen(eps=0.1, steps=2, step_size=0.05, keep="last")
    bench.fit(PGDTraining(bench.network(), attack), data=bench.loader(8), precision="bf16-mixed")
    assert kinds == {torch.float32}


@pytest.mark.parametrize("method", [PGDTraining, TRADES, MART, FastTraining, StandardTraining])
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
    assert float((end - x).abs().max()) <= 0.1 + 1e-6
    assert end.min() >= 0
    assert end.max() <= 1
    assert bool((kl_divergence(clean, network(end)) > kl_divergence(clean, network(start))).all())
    # neither the labels nor whether they are right matter
    assert torch.equal(end, far(network, x, (batch["label"] + 1) % 3))
    assert far.run(network, x, batch["label"]).num_queries.max() == 7


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


def test_bad_arguments_are_refused(bench: Any) -> None:
    network = bench.network()
    with pytest.raises(ValueError, match="scheduler_interval must be 'step' or 'epoch', got 'week'"):
        PGDTraining(network, scheduler_interval="week")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attack must be untargeted"):
        PGDTraining(network, bench.attack(targeted=True))
    with pytest.raises(ValueError, match="validation_attack must be untargeted"):
        PGDTraining(network, validation_attack=bench.attack(targeted=True))
    for method in (TRADES, MART):
        with pytest.raises(ValueError, match=r"beta must not be negative, got -1"):
            method(network, beta=-1.0)
    with pytest.raises(ValueError, match="give validation_attack"):
        PGDTraining(network, bench.attack(eps=torch.tensor([0.1, 0.2]), step_size=0.1))
    with pytest.warns(UserWarning, match=r"attack.keep='first' .* PGDTraining"):
        PGDTraining(network, bench.attack(keep="first"))
    with pytest.raises(ValueError, match="noise must be positive"):
        KLPGD(noise=0.0)
    with pytest.raises(ValueError, match="test_attacks must name at least one attack"):
        PGDTraining(network, test_attacks={})
    with pytest.raises(ValueError, match="named by letters, digits"):
        PGDTraining(network, test_attacks={"a/b": bench.attack()})
    with pytest.raises(ValueError, match="test_attacks must be untargeted"):
        PGDTraining(network, test_attacks={"a": bench.attack(targeted=True)})
    with pytest.raises(ValueError, match="one radius for all samples; 'a' has 2"):
        PGDTraining(network, test_attacks={"a": bench.attack(eps=torch.tensor([0.1, 0.2]), step_size=0.1)})


def test_bad_use_is_refused(bench: Any) -> None:
    module = make(PGDTraining, bench.network())
    with pytest.raises(ValueError, match=r"PGDTraining takes batches with the keys image, label, got \['x'\]"):
        module.unpack({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="got Tensor"):
        module.unpack(torch.zeros(1))
    with pytest.raises(RuntimeError, match="no results before a test"):
        module.results()
    with pytest.raises(ValueError, match=r"precision 'bf16-true' has other weights"):
        bench.fit(module, precision="bf16-true")
    with pytest.raises(ValueError, match="learning rate must be finite and not negative, got inf"):
        bench.fit(make(PGDTraining, bench.network(), optimizer=lambda p: torch.optim.SGD(p, lr=float("inf"))))
    wrong = DataLoader([{"image": torch.rand(1, 8, 8), "label": 3}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        bench.trainer().validate(module, wrong, verbose=False)


def test_validation_works_in_inference_mode_and_without(bench: Any) -> None:
    numbers = []
    for inference_mode in (True, False):
        module: LightningModule = make(PGDTraining, bench.network())
        trainer = bench.trainer(inference_mode=inference_mode)
        numbers.append(trainer.validate(module, bench.loader(), verbose=False)[0])
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("method", METHODS)
def test_predict_and_forward(method: Any, bench: Any) -> None:
    network, data = bench.network(dropout=0.5), bench.loader(20, 8)
    module = make(method, network)
    found = bench.trainer().predict(module, data)
    images = data.dataset.image
    probability = network.eval()(images).softmax(1)
    assert [set(batch) for batch in found] == [{"index", "prediction", "probability"}] * 3
    assert torch.cat([batch["index"] for batch in found]).tolist() == list(range(20))
    assert torch.allclose(torch.cat([batch["probability"] for batch in found]), probability, atol=1e-6)
    assert torch.equal(torch.cat([batch["prediction"] for batch in found]), probability.argmax(1))
    assert torch.equal(module(images), network(images))
    for loader in (
        DataLoader(images, batch_size=20),
        DataLoader(torch.utils.data.TensorDataset(images), batch_size=20),
    ):  # type: ignore[arg-type]
        (alone,) = bench.trainer().predict(module, loader)
        assert set(alone) == {"prediction", "probability"}
        assert torch.allclose(alone["probability"], probability, atol=1e-6)
    with pytest.raises(ValueError, match=r"predicts for batches with the key image, got \['picture'\]"):
        bench.trainer().predict(module, DataLoader([{"picture": torch.zeros(1)}]))  # type: ignore[arg-type]


class Answer:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Speaking(torch.nn.Module):
    """Answers with an object, as the models of transformers do."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Answer:
        return Answer(self.network(images))


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_that_answers_with_an_object(method: Any, bench: Any, sgd: Optimizer, tmp_path: Path) -> None:
    attack = {"pgd": LinfPGD(eps=0.1, steps=2)}
    weights, records = [], []
    for number, wrap in enumerate((torch.nn.Sequential, Speaking)):
        module = make(method, wrap(bench.network()), optimizer=sgd, test_attacks=attack)
        trainer = bench.fit(module, max_steps=3, default_root_dir=tmp_path / str(number))
        trainer.validate(module, bench.loader(), verbose=False)
        trainer.test(module, bench.loader(), verbose=False)
        weights.append(bench.vector(module.classifier))
        records.append(module.results()["worst_case"])
        assert len(trainer.predict(module, bench.loader())) == 3
    assert torch.allclose(*weights, atol=1e-6)
    assert records[0] == records[1]
