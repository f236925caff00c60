"""The test under attack: the record, the resume, the audit."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import nn
from torch.utils.data import DataLoader

from datamodules.variants import Gamma
from lit_modules.adversarial.core.evaluation import RobustEvaluation, name_attacks
from lit_modules.adversarial.core.report import markdown, plot_examples
from lit_modules.adversarial.pgd import PGDTraining
from lit_modules.attacks.apgd import APGD
from lit_modules.attacks.engine.base import Attack, AttackResult
from lit_modules.attacks.pgd import FGSM, L1PGD, L2PGD, LinfPGD
from lit_modules.defenses import BPDA, Preprocess
from lit_modules.metrics.robustness import wilson_interval
from tests.adversarial.conftest import Noisy


def attacks() -> dict[str, Attack]:
    return {"pgd": LinfPGD(eps=0.12, steps=5, step_size=0.05), "l2": L2PGD(eps=1.0, steps=5, step_size=0.4)}


def evaluate(model: nn.Module, attack: Attack, batch: dict[str, Any], folder: Path | None = None) -> Any:
    """Return the record of a batch under one attack, which takes no time."""
    evaluation = RobustEvaluation(model, {"a": attack}, folder)
    evaluation.update(batch["image"], batch["label"], batch["index"])
    record = evaluation.finish()
    record["attacks"]["a"]["seconds"] = 0.0
    return record


def without_seconds(record: Any) -> Any:
    return {
        **record,
        "attacks": {k: {n: v for n, v in a.items() if n != "seconds"} for k, a in record["attacks"].items()},
    }


def test_the_record_agrees_with_the_attacks_themselves(bench: Any) -> None:
    network, loader, batch = bench.trained(), bench.loader(32, 10, seed=5), bench.batch(32, seed=5)
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


def test_a_broken_test_goes_on_where_it_was(bench: Any, tmp_path: Path, attacked: list[int]) -> None:
    network = bench.trained()

    def run(batch_size: int = 8, **settings: Any) -> Any:
        module = PGDTraining(network, bench.attack(), test_attacks={"pgd": LinfPGD(eps=0.12, steps=5)})
        bench.trainer(**settings).test(module, bench.loader(24, batch_size), verbose=False)
        return module.results()

    def interrupted(*arguments: Any, **more: Any) -> AttackResult:
        if len(attacked) == 2:
            raise KeyboardInterrupt
        return attack(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        attack = LinfPGD.run
        patch.setattr(LinfPGD, "run", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run()
    first = sum(attacked)
    half = run(batch_size=7)
    total = sum(attacked)
    assert 0 < first < total == half["attacks"]["pgd"]["attacked"]
    again = run(batch_size=5)
    assert sum(attacked) == total
    assert again == half
    assert without_seconds(run(default_root_dir=tmp_path / "elsewhere")) == without_seconds(half)
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

    module = PGDTraining(bench.trained(), bench.attack(), test_attacks=attacks())
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


def test_other_weights_attacks_or_images_are_not_taken_for_finished(
    bench: Any, tmp_path: Path, attacked: list[int]
) -> None:
    network, batch = bench.trained(), bench.batch(12)

    def run(eps: float = 0.12, **changed: Any) -> int:
        before = sum(attacked)
        evaluate(network, LinfPGD(eps=eps, steps=2), batch | changed, tmp_path)
        return sum(attacked) - before

    everything = run()
    assert everything > 8
    assert run() == 0
    assert run(eps=0.13) == everything
    changed = batch["image"].clone()
    changed[:2] *= 0.99
    assert run(image=changed) == 2
    with torch.no_grad():
        network[-1].bias += 0.001
    assert run() >= everything - 1
    assert len(list(tmp_path.iterdir())) == 3
    about = json.loads(next(tmp_path.rglob("attack.json")).read_text(encoding="utf-8"))
    assert about["attack"].startswith("LinfPGD(")


def rounded(z: Any) -> Any:
    return (z * 64).round() / 64


def pairs(net: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Two defences each, with the same weights and the same text."""
    return {
        "argument": (Preprocess(Gamma(1.0), net), Preprocess(Gamma(1.4), net)),
        "equal answers, other gradients": (
            Preprocess(BPDA(rounded, substitute=lambda z: z), net),
            Preprocess(BPDA(rounded, substitute=lambda z: -z), net),
        ),
    }


@pytest.mark.parametrize("name", pairs(nn.Identity()))
def test_another_defence_is_not_given_the_outcomes_of_the_first(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    images, attack = torch.rand(48, 3, 16, 16), LinfPGD(eps=0.03, steps=5)
    batch = {"image": images, "label": net(images).argmax(1), "index": torch.arange(48)}
    first, second = pairs(net)[name]
    before, fresh = evaluate(first, attack, batch, tmp_path), evaluate(second, attack, batch)
    assert evaluate(second, attack, batch, tmp_path) == fresh != before
    assert evaluate(first, attack, batch, tmp_path) == before


def test_what_only_the_answers_show_is_seen(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacked: list[int]
) -> None:
    model = Preprocess(lambda z: z * float(os.environ["SCALE"]), bench.trained())
    for scale, runs in (("1.0", 1), ("0.9", 2), ("1.0", 2), ("0.9", 2), ("1.000001", 2)):
        monkeypatch.setenv("SCALE", scale)
        evaluate(model, LinfPGD(eps=0.1, steps=2), bench.batch(12), tmp_path)
        assert len(attacked) == runs


@pytest.mark.parametrize("source", ["global", "own", "unseen"])
def test_nothing_is_kept_of_a_classifier_that_answers_at_random(
    source: str, bench: Any, tmp_path: Path, attacked: list[int]
) -> None:
    model = Noisy(bench.trained(), source)
    message = "is a random generator" if source == "own" else "finishes is not taken up again.*answers at random"
    for _ in range(2):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match=message):
            assert evaluate(model, LinfPGD(eps=0.1, steps=2), bench.batch(12), tmp_path)["samples"] == 12
    assert len(attacked) == 2
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("attack", "scale"),
    [
        (LinfPGD(eps=1.0, steps=3, step_size=0.5, bounds=(0, 255)), 255.0),
        (LinfPGD(eps=0.1, steps=3, bounds=None), 10.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3), 1.0),
        (L1PGD(eps=0.1, steps=3, step_size=0.03), 1.0),
        (APGD(norm="l1", eps=12.0, steps=5), 1.0),
    ],
)
def test_rounding_does_not_break_a_radius(attack: Attack, scale: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval()
    images = torch.rand(64, 3, 32, 32) * scale
    batch = {"image": images, "label": net(images).argmax(1), "index": torch.arange(64)}
    assert evaluate(net, attack, batch)["attacks"]["a"]["attacked"] == 64


def test_a_dev_run_leaves_no_records(bench: Any, tmp_path: Path) -> None:
    module = PGDTraining(bench.trained(), bench.attack(), test_attacks=[FGSM(eps=0.1)])
    bench.trainer(fast_dev_run=True).test(module, bench.loader(), verbose=False)
    assert module.results()["samples"] == 8
    assert not (tmp_path / "evaluation").exists()


def test_a_damaged_record_is_named(bench: Any, tmp_path: Path) -> None:
    network = bench.trained()
    evaluate(network, bench.attack(), bench.batch(), tmp_path)
    path = next(tmp_path.rglob("*.pt"))
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=rf"{path.name} is no record of finished samples .* delete it"):
        evaluate(network, bench.attack(), bench.batch(), tmp_path)


class Cheat(LinfPGD):
    """Reports another radius than it keeps to."""

    shift = 0.0

    def run(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
        result = super().run(model, x, y, seed=seed)
        return replace(result, adversarial=result.adversarial + self.shift)


@pytest.mark.parametrize(
    ("eps", "shift", "sentence"),
    [
        (0.12, 0.01, r"The attack 'a' broke its radius: linf distance 0\.1.* of sample .*, allow"),
        (10.0, 2.0, "The attack 'a' left the bounds by"),
        (10.0, float("nan"), "not finite"),
    ],
)
def test_a_perturbation_outside_radius_or_bounds_stops_the_test(
    eps: float, shift: float, sentence: str, bench: Any
) -> None:
    cheat = Cheat(eps=0.12)
    cheat.eps, cheat.shift = eps, shift
    with pytest.raises(RuntimeError, match=sentence):
        evaluate(bench.trained(), cheat, bench.batch())


def test_attacks_for_the_smallest_perturbation_stay_out_of_the_worst_case(bench: Any) -> None:
    class Smallest(LinfPGD):
        minimum_norm = True

    named: dict[str, Attack] = {"smallest": Smallest(eps=0.9), "pgd": LinfPGD(eps=0.05)}
    module = PGDTraining(bench.trained(), bench.attack(), test_attacks=named)
    bench.trainer().test(module, bench.loader(12), verbose=False)
    record = module.results()
    assert record["attacks"]["smallest"]["robust_accuracy"] == 0
    assert record["attacks"]["smallest"]["eps"] is None
    assert record["worst_case"]["attacks"] == ["pgd"]
    assert module._evaluation is not None
    assert module._evaluation.robust_accuracy() == record["worst_case"]["robust_accuracy"]
    assert record["worst_case"]["robust_accuracy"] == record["attacks"]["pgd"]["robust_accuracy"] > 0


def test_failures_for_the_smallest_perturbation_are_infinitely_far(bench: Any) -> None:
    class Sometimes(L2PGD):
        minimum_norm = True

        def run(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
            result = super().run(model, x, y, seed=seed)
            success = torch.arange(len(x)) < share * len(x)
            size = (result.adversarial - x).flatten(1).norm(dim=1).double()
            return replace(result, success=success, distance=size.where(success, self.failed))

        failed = 0.0

    for share, failed in ((0.7, 0.0), (0.3, 0.0), (0.3, math.inf)):
        attack = Sometimes(eps=1.0, steps=2, step_size=0.3, keep="last")
        attack.failed = failed
        record = evaluate(bench.trained(), attack, bench.batch(12))
        numbers = record["attacks"]["a"]
        assert numbers["success_rate"] == numbers["successes"] / numbers["attacked"] == pytest.approx(share, abs=0.1)
        sizes = numbers["distance"]
        assert 0 <= sizes["min"] <= sizes["mean"] <= sizes["max"] < 10
        assert sizes["median"] == "inf" if share < 0.5 else 0 <= sizes["median"] < 10
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert ("| inf |" in markdown(record)) == (share < 0.5)


def test_repeated_samples_count_once_and_other_samples_of_one_index_are_refused(
    bench: Any, attacked: list[int]
) -> None:
    batch, evaluation = bench.batch(12), RobustEvaluation(bench.trained(), {"pgd": LinfPGD(eps=0.1, steps=1)}, None)
    twice = torch.cat([torch.arange(12), torch.arange(3)])
    for rows in (twice, torch.arange(3)):
        evaluation.update(batch["image"][rows], batch["label"][rows], batch["index"][rows])
    record = evaluation.finish()
    assert record["samples"] == 12
    assert attacked == [record["attacks"]["pgd"]["attacked"]]
    with pytest.raises(ValueError, match="The index 0 stands for two different samples"):
        evaluation.update(batch["image"][3:4], batch["label"][3:4], torch.tensor([0]))


def test_a_misclassified_set_is_reported(bench: Any, attacked: list[int]) -> None:
    network, batch = bench.trained(), bench.batch(6)
    wrong = (network(batch["image"]).argmax(1) + 1) % 3
    record = evaluate(network, LinfPGD(eps=0.1), batch | {"label": wrong})
    assert (record["clean"]["accuracy"], record["worst_case"]["robust_accuracy"], attacked) == (0.0, 0.0, [])
    assert record["attacks"]["a"]["distance"]["median"] is None
    assert record["attacks"]["a"]["num_queries"] == {"total": 0, "mean": None}
    assert "| a | linf | 0.1 | 0.00 % |" in markdown(record)


def test_table_and_pictures(bench: Any, tmp_path: Path) -> None:
    module = PGDTraining(bench.trained(), bench.attack(), test_attacks=attacks())
    bench.trainer().test(module, bench.loader(), verbose=False)
    text = module.results_table().splitlines()
    assert text[0].startswith("|  | norm | eps | accuracy | 95 % interval | successes |")
    assert [line.split("|")[1].strip() for line in text[2:6]] == ["clean", "pgd", "l2", "worst case"]
    record = module.results()
    record["attacks"]["pgd"]["flags"] = ["The model hides its gradients."]
    assert "- pgd: The model hides its gradients." in markdown(record)
    module.draw_results(tmp_path / "robustness.png")
    examples = module._evaluation.examples
    assert 0 < len(examples) <= 8
    for example in examples:
        assert example.before == example.label
        assert example.success == (example.after != example.label)
        assert (example.adversarial - example.image).abs().max() > 0
    assert (tmp_path / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    plot_examples([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()


def test_names_of_listed_attacks() -> None:
    assert list(name_attacks([FGSM(eps=0.1), LinfPGD(eps=0.1), FGSM(eps=0.2)])) == ["FGSM", "LinfPGD", "FGSM-2"]


def test_bad_use_is_refused(bench: Any) -> None:
    module = PGDTraining(bench.trained(), bench.attack(), test_attacks=attacks())
    sample = {"image": torch.rand(1, 8, 8), "label": 7}
    for row, sentence in (
        (sample, r"with the keys image, label, index, got \['image', 'label'\]"),
        (sample | {"index": 0}, "y must be from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            bench.trainer().test(module, DataLoader([row]), verbose=False)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="no results before a test is finished"):
            module.results()
    with pytest.raises(ValueError, match="The test saw no samples"):
        RobustEvaluation(bench.network(), attacks(), None).finish()
