"""The test under attack: the record, the resume, the audit."""

import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import nn
from torch.utils.data import DataLoader

from datamodules.variants import BitDepth, Gamma, Saturate, Smooth
from lit_modules.adversarial.core.evaluation import RobustEvaluation, hash_weights, name_attacks
from lit_modules.adversarial.core.report import markdown, plot_examples, table
from lit_modules.adversarial.pgd import PGDTraining
from lit_modules.attacks.apgd import APGD
from lit_modules.attacks.engine.base import Attack, AttackResult
from lit_modules.attacks.pgd import FGSM, L1PGD, L2PGD, LinfPGD
from lit_modules.defenses import BPDA, Preprocess
from lit_modules.metrics.robustness import wilson_interval


class Spy:
    """What PGD was asked for; its count is no part of an attack."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.broken_at: int | None = None


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, run = Spy(), LinfPGD.run

    def watched(self: LinfPGD, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
        if spy.broken_at is not None and len(spy.seen) >= spy.broken_at:
            raise KeyboardInterrupt
        spy.seen.append(len(x))
        return run(self, model, x, y, seed=seed)

    monkeypatch.setattr(LinfPGD, "run", watched)
    return spy


def trained(bench: Any) -> Any:
    """A classifier that is right on the samples and robust on some."""
    network = bench.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    batch = bench.batch(24)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
    return network.eval()


def attacks() -> dict[str, Attack]:
    return {
        "pgd": LinfPGD(eps=0.12, steps=5, step_size=0.05),
        "l2": L2PGD(eps=1.0, steps=5, step_size=0.4),
    }


def without_seconds(record: Any) -> Any:
    return {
        **record,
        "attacks": {k: {n: v for n, v in a.items() if n != "seconds"} for k, a in record["attacks"].items()},
    }


def test_the_record_agrees_with_the_attacks_themselves(bench: Any) -> None:
    network, loader, batch = trained(bench), bench.loader(32, 10, seed=5), bench.batch(32, seed=5)
    for label in (loader.dataset.label, batch["label"]):
        label[:4] = (label[:4] + 1) % 3  # so that the classifier is wrong on these
    module = PGDTraining(network, bench.attack(), test_attacks=attacks())
    logged = bench.trainer().test(module, loader, verbose=False)[0]
    record = module.results()
    right = network(batch["image"]).argmax(1) == batch["label"]
    assert record["samples"] == 32
    assert record["clean"]["accuracy"] == float(right.double().mean())
    fooled = torch.zeros(32, dtype=torch.bool)
    for name, attack in attacks().items():
        found, numbers = attack.run(network, batch["image"], batch["label"]), record["attacks"][name]
        success = found.success & right
        fooled |= success
        robust = int((right & ~success).sum())
        assert numbers["robust_accuracy"] == robust / 32
        assert numbers["interval"] == list(wilson_interval(robust, 32))
        assert (numbers["attacked"], numbers["successes"]) == (int(right.sum()), int(success.sum()))
        assert numbers["distance"]["max"] == pytest.approx(float(found.distance[success].max()), rel=1e-5)
        assert numbers["distance"]["median"] == pytest.approx(float(found.distance[success].quantile(0.5)), rel=1e-5)
        assert numbers["num_queries"]["total"] == int(found.num_queries[right].sum())
        assert (numbers["norm"], numbers["eps"]) == (attack.norm, attack.eps)
        assert numbers["seconds"] >= 0
        assert logged[f"test/robust_accuracy/{name}"] == pytest.approx(robust / 32)
    worst = int((right & ~fooled).sum())
    assert 0 < worst < int(right.sum()) == 28
    assert record["worst_case"]["robust_accuracy"] == worst / 32
    assert logged["test/robust_accuracy"] == pytest.approx(worst / 32)
    assert logged["test/accuracy"] == pytest.approx(record["clean"]["accuracy"])
    assert json.loads(json.dumps(record)) == record


def test_a_broken_test_goes_on_where_it_was(spy: Spy, bench: Any, tmp_path: Path) -> None:
    network = trained(bench)

    def run(batch_size: int = 8, **settings: Any) -> Any:
        module = PGDTraining(network, bench.attack(), test_attacks={"pgd": LinfPGD(eps=0.12, steps=5)})
        bench.trainer(**settings).test(module, bench.loader(24, batch_size), verbose=False)
        return module.results()

    spy.broken_at = 2
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run()
    first = sum(spy.seen)
    spy.broken_at = None
    half = run(batch_size=7)
    total = sum(spy.seen)
    assert 0 < first < total == half["attacks"]["pgd"]["attacked"]
    again = run(batch_size=5)
    assert sum(spy.seen) == total
    assert again == half
    whole = run(default_root_dir=tmp_path / "elsewhere")
    assert without_seconds(whole) == without_seconds(half)
    assert not list((tmp_path / "evaluation").rglob("*part*"))


def test_a_test_that_goes_on_says_so_and_shows_how_it_stands(
    bench: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Progress(ProgressBar):
        def __init__(self) -> None:
            super().__init__()
            self.shown: list[float] = []

        def on_test_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any, **more: Any) -> None:
            self.shown.append(float(trainer.progress_bar_metrics["robust"]))

    module = PGDTraining(trained(bench), bench.attack(), test_attacks=attacks())
    progress = Progress()
    logged = bench.trainer([progress], enable_progress_bar=True).test(module, bench.loader(24, 8), verbose=False)[0]
    assert len(progress.shown) == 3
    assert progress.shown[-1] == pytest.approx(module.results()["worst_case"]["robust_accuracy"])
    assert set(logged) == {"test/accuracy", "test/robust_accuracy", *(f"test/robust_accuracy/{k}" for k in attacks())}
    assert "The test goes on" not in caplog.text
    with caplog.at_level("INFO"):
        bench.trainer().test(module, bench.loader(24, 8), verbose=False)
    attacked = module.results()["attacks"]["pgd"]["attacked"]
    assert f"The test goes on: {attacked} samples under 'pgd' are finished in {tmp_path}" in caplog.text


def test_other_weights_attacks_or_images_are_not_taken_for_finished(spy: Spy, bench: Any, tmp_path: Path) -> None:
    network, folder = trained(bench), tmp_path / "records"
    batch = bench.batch(12)

    def run(images: Any = None, eps: float = 0.12) -> int:
        before = sum(spy.seen)
        evaluation = RobustEvaluation(network, {"pgd": LinfPGD(eps=eps, steps=2)}, folder)
        evaluation.update(batch["image"] if images is None else images, batch["label"], batch["index"])
        evaluation.finish()
        return sum(spy.seen) - before

    everything = run()
    assert everything > 8
    assert run() == 0
    assert run(eps=0.13) == everything
    changed = batch["image"].clone()
    changed[:2] *= 0.99
    assert run(images=changed) == 2
    with torch.no_grad():
        network[-1].bias += 0.001
    assert run() >= everything - 1
    assert len(list(folder.iterdir())) == 3
    about = json.loads((next(folder.iterdir()) / "attack.json").read_text(encoding="utf-8"))
    assert about["attack"].startswith("LinfPGD(")


class Tempered(nn.Module):
    def __init__(self, net: nn.Module, k: float) -> None:
        super().__init__()
        self.net, self.k = net, k

    def forward(self, z: Any) -> Any:
        return self.net((z - 0.5).sign() * (z - 0.5).abs() ** self.k + 0.5)


class Noisy(nn.Module):
    """Answers at random: from a global generator, one of its own, or from where nobody sees it."""

    def __init__(self, net: nn.Module, source: str) -> None:
        super().__init__()
        self.net, self.source = net, source
        self.own = torch.Generator() if source == "own" else None

    def forward(self, z: Any) -> Any:
        if self.source == "unseen":
            return self.net(z) + torch.frombuffer(bytearray(os.urandom(4)), dtype=torch.uint8)[:3] * 0.001
        return self.net(z) + 1e-7 * torch.rand(len(z), 3, generator=self.own)


def rounded(z: Any) -> Any:
    return (z * 64).round() / 64


def pairs(net: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Two defences each, with the same weights and the same text."""
    return {
        "gamma": (Preprocess(Gamma(1.0), net), Preprocess(Gamma(1.4), net)),
        "smooth": (Preprocess(Smooth(1), net), Preprocess(Smooth(3), net)),
        "saturate": (Preprocess(Saturate(2), net), Preprocess(Saturate(1), net)),
        "depth": (Preprocess(BitDepth(8), net, bpda=True), Preprocess(BitDepth(1), net, bpda=True)),
        "attribute": (Tempered(net, 1.0), Tempered(net, 0.6)),
        # equal answers, other gradients
        "substitute": (
            Preprocess(BPDA(rounded, substitute=lambda z: z), net),
            Preprocess(BPDA(rounded, substitute=lambda z: -z), net),
        ),
        "backward": (
            Preprocess(BPDA(rounded), net),
            Preprocess(BPDA(rounded, backward=lambda inputs, gradients: gradients[0] * 0 - 1), net),
        ),
    }


@pytest.mark.parametrize("name", pairs(nn.Identity()))
def test_another_defence_is_not_given_the_outcomes_of_the_first(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    images = torch.rand(48, 3, 16, 16)
    labels, first, second = net(images).argmax(1), *pairs(net)[name]

    def robust(model: nn.Module, folder: Path | None) -> Any:
        evaluation = RobustEvaluation(model, {"pgd": LinfPGD(eps=0.03, steps=5)}, folder)
        evaluation.update(images, labels, torch.arange(48))
        return without_seconds(evaluation.finish())

    before = robust(first, tmp_path)
    fresh = robust(second, None)
    assert robust(second, tmp_path) == fresh != before
    assert robust(first, tmp_path) == before


def test_other_settings_of_a_loss_object_are_another_attack(spy: Spy, bench: Any, tmp_path: Path) -> None:
    network, batch = trained(bench), bench.batch(12)
    for number, smoothing in enumerate((0.0, 0.3, 0.3)):
        loss = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
        evaluation = RobustEvaluation(network, {"pgd": LinfPGD(eps=0.1, steps=2, loss=loss)}, tmp_path)
        evaluation.update(batch["image"], batch["label"], batch["index"])
        assert len(spy.seen) == min(number + 1, 2)


def test_what_only_the_answers_show_is_seen(
    spy: Spy, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden(Tempered):
        def forward(self, z: Any) -> Any:
            return self.net(z * float(os.environ["SCALE"]))

    model, batch = Hidden(trained(bench), 1.0), bench.batch(12)
    for scale, runs in (("1.0", 1), ("0.9", 2), ("1.0", 2), ("0.9", 2), ("1.000001", 2)):
        monkeypatch.setenv("SCALE", scale)
        evaluation = RobustEvaluation(model, {"pgd": LinfPGD(eps=0.1, steps=2)}, tmp_path)
        evaluation.update(batch["image"], batch["label"], batch["index"])
        assert len(spy.seen) == runs


@pytest.mark.parametrize("source", ["global", "own", "unseen"])
def test_nothing_is_kept_of_a_classifier_that_answers_at_random(
    source: str, spy: Spy, bench: Any, tmp_path: Path
) -> None:
    model, batch = Noisy(trained(bench), source), bench.batch(12)
    message = "is a random generator" if source == "own" else "finishes is not taken up again.*answers at random"

    def run() -> Any:
        evaluation = RobustEvaluation(model, {"pgd": LinfPGD(eps=0.1, steps=2)}, tmp_path)
        evaluation.update(batch["image"], batch["label"], batch["index"])
        return evaluation.finish()

    for _ in range(2):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match=message):
            record = run()
        assert record["samples"] == 12
    assert len(spy.seen) == 2
    assert not list(tmp_path.rglob("*.pt"))


def test_an_attack_that_cannot_be_told_from_another_is_named(spy: Spy, bench: Any, tmp_path: Path) -> None:
    network, batch, lock = trained(bench), bench.batch(12), threading.Lock()

    def locked(logits: Any, label: Any) -> Any:
        with lock:
            return nn.functional.cross_entropy(logits, label, reduction="none")

    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"'pgd' finishes is not taken up again.*lock in attack\._?loss is of _thread\.lock"
        ):
            evaluation = RobustEvaluation(network, {"pgd": LinfPGD(eps=0.1, steps=2, loss=locked)}, tmp_path)
        evaluation.update(batch["image"], batch["label"], batch["index"])
    assert len(spy.seen) == 2


@pytest.mark.parametrize(
    ("attack", "scale", "side"),
    [
        (LinfPGD(eps=1.0, steps=3, step_size=0.5, bounds=(0, 255)), 255.0, 32),
        (LinfPGD(eps=0.1, steps=3, bounds=None), 10.0, 32),
        (L1PGD(eps=1.0, steps=3, step_size=0.3), 1.0, 32),
        (L1PGD(eps=0.1, steps=3, step_size=0.03), 1.0, 32),
        (APGD(norm="l1", eps=12.0, steps=5), 1.0, 32),
    ],
)
def test_rounding_does_not_break_a_radius(attack: Attack, scale: float, side: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 4)).eval()
    images = torch.rand(64, 3, side, side) * scale
    evaluation = RobustEvaluation(net, {"a": attack}, None)
    evaluation.update(images, net(images).argmax(1), torch.arange(64))
    assert evaluation.finish()["attacks"]["a"]["attacked"] == 64


def test_a_dev_run_leaves_no_records(bench: Any, tmp_path: Path) -> None:
    module = PGDTraining(trained(bench), bench.attack(), test_attacks=[FGSM(eps=0.1)])
    bench.trainer(fast_dev_run=True).test(module, bench.loader(), verbose=False)
    assert module.results()["samples"] == 8
    assert not (tmp_path / "evaluation").exists()


def test_a_damaged_record_is_named(bench: Any, tmp_path: Path) -> None:
    network, batch = trained(bench), bench.batch()
    evaluation = RobustEvaluation(network, {"pgd": bench.attack()}, tmp_path)
    evaluation.update(batch["image"], batch["label"], batch["index"])
    path = next(tmp_path.rglob("*.pt"))
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=rf"{path.name} is no record of finished samples .* delete it"):
        RobustEvaluation(network, {"pgd": bench.attack()}, tmp_path)


class Cheat(LinfPGD):
    """Reports another radius than it keeps to."""

    shift = 0.0

    def run(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
        found = super().run(model, x, y, seed=seed)
        return AttackResult(
            found.adversarial + self.shift, found.success, found.distance, found.num_queries, found.already
        )


def test_a_perturbation_outside_radius_or_bounds_stops_the_test(bench: Any) -> None:
    module = PGDTraining(trained(bench), bench.attack(), test_attacks={"cheat": Cheat(eps=0.12)})
    cheat: Any = module.test_attacks["cheat"]
    cheat.shift = 0.01
    with pytest.raises(
        RuntimeError, match=r"The attack 'cheat' broke its radius: linf distance 0\.1.* of sample .*, allow"
    ):
        bench.trainer().test(module, bench.loader(), verbose=False)
    cheat.eps, cheat.shift = 10.0, 2.0
    with pytest.raises(RuntimeError, match="The attack 'cheat' left the bounds by"):
        bench.trainer().test(module, bench.loader(), verbose=False)
    cheat.shift = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        bench.trainer().test(module, bench.loader(), verbose=False)


def test_attacks_for_the_smallest_perturbation_stay_out_of_the_worst_case(bench: Any) -> None:
    class Smallest(LinfPGD):
        minimum_norm = True

    network, batch = trained(bench), bench.batch(12)
    named: dict[str, Attack] = {"smallest": Smallest(eps=0.9), "pgd": LinfPGD(eps=0.05)}
    evaluation = RobustEvaluation(network, named, None)
    evaluation.update(batch["image"], batch["label"], batch["index"])
    record = evaluation.finish()
    assert record["attacks"]["smallest"]["robust_accuracy"] == 0
    assert record["attacks"]["smallest"]["eps"] is None
    assert record["worst_case"]["attacks"] == ["pgd"]
    assert record["worst_case"]["robust_accuracy"] == record["attacks"]["pgd"]["robust_accuracy"] > 0


def test_failures_for_the_smallest_perturbation_are_infinitely_far(bench: Any) -> None:
    class Sometimes(L2PGD):
        minimum_norm = True

        def run(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
            found = super().run(model, x, y, seed=seed)
            success = torch.arange(len(x)) < share * len(x)
            size = (found.adversarial - x).flatten(1).norm(dim=1).double()
            return replace(found, success=success, distance=size.where(success, self.failed))

        failed = 0.0

    network, batch = trained(bench), bench.batch(12)
    for share, failed in ((0.7, 0.0), (0.3, 0.0), (0.3, math.inf)):
        attack = Sometimes(eps=1.0, steps=2, step_size=0.3, keep="last")
        attack.failed = failed
        evaluation = RobustEvaluation(network, {"smallest": attack}, None)
        evaluation.update(batch["image"], batch["label"], batch["index"])
        record = evaluation.finish()
        numbers = record["attacks"]["smallest"]
        assert numbers["success_rate"] == numbers["successes"] / numbers["attacked"] == pytest.approx(share, abs=0.1)
        sizes = numbers["distance"]
        assert 0 <= sizes["min"] <= sizes["mean"] <= sizes["max"] < 10
        assert sizes["median"] == "inf" if share < 0.5 else 0 <= sizes["median"] < 10
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        row = next(line for line in markdown(record).splitlines() if line.startswith("| smallest"))
        assert ("| inf |" in row) == (share < 0.5)


def test_repeated_samples_count_once_and_other_samples_of_one_index_are_refused(spy: Spy, bench: Any) -> None:
    network, batch = trained(bench), bench.batch(12)
    evaluation = RobustEvaluation(network, {"pgd": LinfPGD(eps=0.1, steps=1)}, None)
    twice = torch.cat([torch.arange(12), torch.arange(3)])
    evaluation.update(batch["image"][twice], batch["label"][twice], batch["index"][twice])
    evaluation.update(batch["image"][:3], batch["label"][:3], batch["index"][:3])
    record = evaluation.finish()
    assert record["samples"] == 12
    assert spy.seen == [record["attacks"]["pgd"]["attacked"]]
    with pytest.raises(ValueError, match="The index 0 stands for two different samples"):
        evaluation.update(batch["image"][3:4], batch["label"][3:4], torch.tensor([0]))


def test_a_misclassified_set_is_reported(spy: Spy, bench: Any) -> None:
    network, batch = trained(bench), bench.batch(6)
    evaluation = RobustEvaluation(network, {"pgd": LinfPGD(eps=0.1)}, None)
    evaluation.update(batch["image"], (network(batch["image"]).argmax(1) + 1) % 3, batch["index"])
    record = evaluation.finish()
    assert (record["clean"]["accuracy"], record["worst_case"]["robust_accuracy"], spy.seen) == (0.0, 0.0, [])
    assert record["attacks"]["pgd"]["distance"]["median"] is None
    assert record["attacks"]["pgd"]["num_queries"] == {"total": 0, "mean": None}
    assert "| pgd | linf | 0.1 | 0.00 % |" in markdown(record)


def test_table_and_pictures(bench: Any, tmp_path: Path) -> None:
    module = PGDTraining(trained(bench), bench.attack(), test_attacks=attacks())
    bench.trainer().test(module, bench.loader(), verbose=False)
    text = module.results_table().splitlines()
    assert text[0].startswith("|  | norm | eps | accuracy | 95 % interval | successes |")
    assert [line.split("|")[1].strip() for line in text[2:6]] == ["clean", "pgd", "l2", "worst case"]
    assert table(module.results()).row_count == 4
    record = module.results()
    record["attacks"]["pgd"]["flags"] = ["The model hides its gradients."]
    assert "- pgd: The model hides its gradients." in markdown(record)
    module.draw_results(tmp_path / "robustness.png")
    examples = module._finished().examples
    assert 0 < len(examples) <= 8
    for example in examples:
        assert example.before == example.label
        assert example.success == (example.after != example.label)
        assert (example.adversarial - example.image).abs().max() > 0
    assert (tmp_path / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    plot_examples([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()


def test_names_of_listed_attacks() -> None:
    named = name_attacks([FGSM(eps=0.1), LinfPGD(eps=0.1), FGSM(eps=0.2)])
    assert list(named) == ["FGSM", "LinfPGD", "FGSM-2"]


def test_hash_of_weights(bench: Any) -> None:
    network = bench.network(norm=True)
    first = hash_weights(network)
    assert first == hash_weights(bench.network(norm=True))
    network[2].running_mean += 1
    assert first != hash_weights(network)
    assert hash_weights(torch.nn.Sequential(torch.nn.ReLU())) != hash_weights(torch.nn.Sequential(torch.nn.Tanh()))


def test_bad_use_is_refused(bench: Any) -> None:
    module = PGDTraining(trained(bench), bench.attack(), test_attacks=attacks())
    nameless = DataLoader([{"image": torch.rand(1, 8, 8), "label": 0}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"with the keys image, label, index, got \['image', 'label'\]"):
        bench.trainer().test(module, nameless, verbose=False)
    with pytest.raises(RuntimeError, match="no results before a test is finished"):
        module.results()
    wrong = DataLoader([{"image": torch.rand(1, 8, 8), "label": 7, "index": 0}])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        bench.trainer().test(module, wrong, verbose=False)
    with pytest.raises(ValueError, match="The test saw no samples"):
        RobustEvaluation(bench.network(), attacks(), None).finish()
