"""The test under attack: the record, the resume, the audit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lit_modules.adversarial.evaluation import RobustEvaluation, hash_weights, name_attacks
from lit_modules.adversarial.pgd import PGDTraining
from lit_modules.adversarial.report import markdown, plot_examples, table
from lit_modules.attacks.base import Attack, AttackResult
from lit_modules.attacks.pgd import FGSM, L2PGD, LinfPGD
from lit_modules.metrics.robustness import wilson_interval


class Counting(LinfPGD):
    """PGD that remembers what it was asked for, in a place that is no argument."""

    seen: list[int] = []  # noqa: RUF012
    broken_at: int | None = None

    def run(self, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
        if self.broken_at is not None and len(self.seen) >= self.broken_at:
            raise KeyboardInterrupt
        self.seen.append(len(x))
        return super().run(model, x, y, seed=seed)


@pytest.fixture(autouse=True)
def reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "seen", [])
    monkeypatch.setattr(Counting, "broken_at", None)


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
        assert numbers["forward_passes"]["total"] == int(found.forward_passes[right].sum())
        assert (numbers["norm"], numbers["eps"]) == (attack.norm, attack.eps)
        assert numbers["seconds"] >= 0
        assert logged[f"test/robust_accuracy/{name}"] == pytest.approx(robust / 32)
    worst = int((right & ~fooled).sum())
    assert 0 < worst < int(right.sum()) == 28
    assert record["worst_case"]["robust_accuracy"] == worst / 32
    assert logged["test/robust_accuracy"] == pytest.approx(worst / 32)
    assert logged["test/accuracy"] == pytest.approx(record["clean"]["accuracy"])
    assert json.loads(json.dumps(record)) == record


def test_a_broken_test_goes_on_where_it_was(bench: Any, tmp_path: Path) -> None:
    network = trained(bench)

    def run(batch_size: int = 8, **settings: Any) -> Any:
        module = PGDTraining(network, bench.attack(), test_attacks={"pgd": Counting(eps=0.12, steps=5)})
        bench.trainer(**settings).test(module, bench.loader(24, batch_size), verbose=False)
        return module.results()

    Counting.broken_at = 2
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run()
    first = sum(Counting.seen)
    Counting.broken_at = None
    half = run(batch_size=7)
    total = sum(Counting.seen)
    assert 0 < first < total == half["attacks"]["pgd"]["attacked"]
    again = run(batch_size=5)
    assert sum(Counting.seen) == total
    assert again == half
    whole = run(default_root_dir=tmp_path / "elsewhere")
    assert without_seconds(whole) == without_seconds(half)
    assert not list((tmp_path / "evaluation").rglob("*part*"))


def test_other_weights_attacks_or_images_are_not_taken_for_finished(bench: Any, tmp_path: Path) -> None:
    network, folder = trained(bench), tmp_path / "records"
    batch = bench.batch(12)

    def run(images: Any = None, eps: float = 0.12) -> int:
        before = sum(Counting.seen)
        evaluation = RobustEvaluation(network, {"pgd": Counting(eps=eps, steps=2)}, folder)
        evaluation.update(batch["image"] if images is None else images, batch["label"], batch["index"])
        evaluation.finish()
        return sum(Counting.seen) - before

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
    assert about["attack"].startswith("Counting(")


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
            found.adversarial + self.shift, found.success, found.distance, found.forward_passes, found.already
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
        minimal = True

    network, batch = trained(bench), bench.batch(12)
    named: dict[str, Attack] = {"smallest": Smallest(eps=0.9), "pgd": LinfPGD(eps=0.05)}
    evaluation = RobustEvaluation(network, named, None)
    evaluation.update(batch["image"], batch["label"], batch["index"])
    record = evaluation.finish()
    assert record["attacks"]["smallest"]["robust_accuracy"] == 0
    assert record["attacks"]["smallest"]["eps"] is None
    assert record["worst_case"]["attacks"] == ["pgd"]
    assert record["worst_case"]["robust_accuracy"] == record["attacks"]["pgd"]["robust_accuracy"] > 0


def test_repeated_samples_count_once_and_other_samples_of_one_index_are_refused(bench: Any) -> None:
    network, batch = trained(bench), bench.batch(12)
    evaluation = RobustEvaluation(network, {"pgd": Counting(eps=0.1, steps=1)}, None)
    twice = torch.cat([torch.arange(12), torch.arange(3)])
    evaluation.update(batch["image"][twice], batch["label"][twice], batch["index"][twice])
    evaluation.update(batch["image"][:3], batch["label"][:3], batch["index"][:3])
    record = evaluation.finish()
    assert record["samples"] == 12
    assert Counting.seen == [record["attacks"]["pgd"]["attacked"]]
    with pytest.raises(ValueError, match="The index 0 stands for two different samples"):
        evaluation.update(batch["image"][3:4], batch["label"][3:4], torch.tensor([0]))


def test_a_misclassified_set_is_reported(bench: Any) -> None:
    network, batch = trained(bench), bench.batch(6)
    evaluation = RobustEvaluation(network, {"pgd": Counting(eps=0.1)}, None)
    evaluation.update(batch["image"], (network(batch["image"]).argmax(1) + 1) % 3, batch["index"])
    record = evaluation.finish()
    assert (record["clean"]["accuracy"], record["worst_case"]["robust_accuracy"], Counting.seen) == (0.0, 0.0, [])
    assert record["attacks"]["pgd"]["distance"]["median"] is None
    assert record["attacks"]["pgd"]["forward_passes"] == {"total": 0, "mean": None}
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
