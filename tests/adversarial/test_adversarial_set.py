"""A whole set under attack: what comes back, where it is kept, and how a run that was killed goes on."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_modules.adversarial import AdversarialSet, PGDTraining, attack_dataset
from lit_modules.attacks import FMN, L2PGD, FastFeature, LinfPGD
from lit_modules.attacks.engine.norms import lp_norm

COLUMNS = ("index", "label", "prediction", "adversarial_prediction", "success", "distance", "num_queries")


def classifier(bench: Any) -> nn.Module:
    """Right on most of the images."""
    network = bench.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    batch = bench.batch(24)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
    network.eval()
    return network  # type: ignore[no-any-return]


def asked(monkeypatch: pytest.MonkeyPatch, kind: type = LinfPGD) -> list[int]:
    """Return a list that grows by the number of samples of each attack from now on."""
    seen: list[int] = []
    run: Any = kind.run  # type: ignore[attr-defined]

    def watched(self: Any, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> Any:
        seen.append(len(x))
        return run(self, model, x, y, seed=seed)

    monkeypatch.setattr(kind, "run", watched)
    return seen


def images(found: AdversarialSet) -> torch.Tensor:
    return torch.stack([found[place]["image"] for place in range(len(found))])


def same(one: AdversarialSet, other: AdversarialSet) -> bool:
    columns = all(torch.equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
    return columns and torch.equal(images(one), images(other))


@pytest.mark.parametrize("attack", [LinfPGD(eps=0.15, steps=5, step_size=0.1), L2PGD(eps=1.0, steps=5, step_size=0.4)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_comes_back_is_what_the_attack_finds(attack: Any, on_disk: bool, bench: Any, tmp_path: Path) -> None:
    model, batch = classifier(bench), bench.batch(30)
    batch["label"][:4] = (batch["label"][:4] + 1) % 3  # so that the classifier is wrong on these
    data = TensorDataset(batch["image"], batch["label"])
    found = attack_dataset(model, attack, data, tmp_path / "set" if on_disk else None, batch_size=7)
    result = attack.run(model, batch["image"], batch["label"])
    assert len(found) == 30
    assert torch.equal(found.index, torch.arange(30))
    assert torch.equal(found.label, batch["label"])
    assert torch.equal(found.prediction, model(batch["image"]).argmax(1))
    assert torch.allclose(images(found), result.adversarial, atol=1e-6)
    assert torch.equal(found.success, result.success)
    assert bool(found.success[:4].all())
    assert 4 < int(found.success.sum()) < 30
    assert torch.equal(found.adversarial_prediction, model(images(found)).argmax(1))
    assert torch.equal(found.success, found.adversarial_prediction != found.label)
    assert torch.allclose(found.distance, lp_norm((images(found) - batch["image"]).double(), attack.norm))
    assert bool((found.distance <= attack.eps * (1 + 1e-6) + 1e-6).all())
    assert (found.norm, found.attack) == (attack.norm, repr(attack))
    assert torch.equal(images(found)[:4], batch["image"][:4])


def test_loaders_datasets_and_folders_give_the_same_set(bench: Any, tmp_path: Path) -> None:
    model, attack = classifier(bench), LinfPGD(eps=0.12, steps=3)
    loader = bench.loader(24, 8)
    kept = attack_dataset(model, attack, loader, tmp_path)
    assert same(kept, attack_dataset(model, attack, loader))
    assert same(kept, attack_dataset(model, attack, loader.dataset, batch_size=8, num_workers=1))
    assert same(kept, AdversarialSet(tmp_path))
    assert isinstance(kept, AdversarialSet)


def test_the_order_is_that_of_the_data(bench: Any, tmp_path: Path) -> None:
    model, attack, order = classifier(bench), LinfPGD(eps=0.12, steps=3), torch.randperm(24).tolist()
    data = bench.loader(24).dataset
    plain = attack_dataset(model, attack, data, tmp_path)
    mixed = attack_dataset(model, attack, DataLoader(data, 5, sampler=order), tmp_path)
    assert mixed.index.tolist() == order
    assert torch.equal(images(mixed), images(plain)[order])
    assert torch.equal(mixed.success, plain.success[order])


def test_the_same_call_attacks_nothing_again(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, attack, seen = classifier(bench), LinfPGD(eps=0.12, steps=3), asked(monkeypatch)
    part = attack_dataset(model, attack, bench.loader(24, 8), tmp_path, limit_batches=2)
    assert (len(part), sum(seen)) == (16, 16)
    whole = attack_dataset(model, attack, bench.loader(24, 6), tmp_path)
    assert (len(whole), sum(seen)) == (24, 24)
    assert same(whole, attack_dataset(model, attack, bench.loader(24, 24), tmp_path))
    assert sum(seen) == 24
    assert same(whole, attack_dataset(model, attack, bench.loader(24, 6)))


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
from torch import nn
from conftest import Images
from lit_modules.adversarial import attack_dataset
from lit_modules.attacks import LinfPGD

run, slow = LinfPGD.run, sys.argv[2] == "slow"
def watched(self, model, x, y=None, *, seed=None):
    time.sleep(0.3 * slow)
    print(len(x), flush=True)
    return run(self, model, x, y, seed=seed)
LinfPGD.run = watched
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
found = attack_dataset(network, LinfPGD(eps=0.1, steps=3), Images(60), sys.argv[1], batch_size=4)
print("done", len(found))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "attack.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "set")]
    first = subprocess.Popen([*command, "slow"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "set").rglob("*.pt"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    finished = len(list((tmp_path / "set").rglob("*.pt")))
    assert "done" not in first.communicate()[0]
    with pytest.raises(FileNotFoundError, match="holds no finished adversarial set"):
        AdversarialSet(tmp_path / "set")
    second = subprocess.run([*command, "fast"], capture_output=True, text=True, check=True).stdout.split()
    assert second[-2:] == ["done", "60"]
    assert 4 <= finished < 15
    assert sum(map(int, second[:-2])) == 60 - 4 * finished
    again = subprocess.run([*command[:-1], str(tmp_path / "fresh"), "fast"], capture_output=True, text=True, check=True)
    assert sum(map(int, again.stdout.split()[:-2])) == 60
    assert same(AdversarialSet(tmp_path / "set"), AdversarialSet(tmp_path / "fresh"))


def test_another_attack_or_classifier_is_refused(bench: Any, tmp_path: Path) -> None:
    model, loader = classifier(bench), bench.loader()
    attack_dataset(model, LinfPGD(eps=0.1, steps=2), loader, tmp_path)
    before = AdversarialSet(tmp_path)
    message = r"holds the adversarial set of another attack or classifier.*eps=0\.1.*give another folder"
    with pytest.raises(ValueError, match=message):
        attack_dataset(model, LinfPGD(eps=0.2, steps=2), loader, tmp_path)
    with pytest.raises(ValueError, match=message):
        attack_dataset(bench.network(seed=1), LinfPGD(eps=0.1, steps=2), loader, tmp_path)
    assert same(before, AdversarialSet(tmp_path))


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Any) -> Any:
        return self.net(z) + 1e-3 * torch.rand(len(z), 3)


def test_a_classifier_that_answers_at_random_is_attacked_anew(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, attack, seen = Noisy(classifier(bench)), LinfPGD(eps=0.1, steps=2), asked(monkeypatch)
    with pytest.warns(UserWarning, match="answers at random"):
        attack_dataset(model, attack, bench.loader(24, 8), tmp_path / "one")
    assert len(AdversarialSet(tmp_path / "one")) == sum(seen) == 24
    assert images(AdversarialSet(tmp_path / "one")).shape == (24, 1, 8, 8)
    with pytest.raises(ValueError, match="or of one that cannot be told from this"):
        attack_dataset(model, attack, bench.loader(24, 8), tmp_path / "one")
    (tmp_path / "one" / "adversarial_set.pt").unlink()  # as if the run had been killed
    with pytest.warns(UserWarning, match="answers at random"):
        attack_dataset(model, attack, bench.loader(24, 8), tmp_path / "one")
    assert sum(seen) == 48


def test_the_set_is_data_for_a_loader_and_a_trainer(bench: Any, tmp_path: Path) -> None:
    model = classifier(bench)
    found = attack_dataset(model, LinfPGD(eps=0.15, steps=5, step_size=0.1), bench.loader(), tmp_path)
    batch = next(iter(DataLoader(AdversarialSet(tmp_path), 24, num_workers=1)))
    assert set(batch) == {"image", *COLUMNS}
    assert torch.equal(batch["image"], images(found))
    module = PGDTraining(model, bench.attack(), test_attacks=[LinfPGD(eps=0.01, steps=1)])
    bench.trainer().test(module, DataLoader(found, 8), verbose=False)
    robust = (found.adversarial_prediction == found.label).double().mean()
    assert module.results()["clean"]["accuracy"] == float(robust) < 1


def test_targets_and_smallest_perturbations(bench: Any) -> None:
    model, batch = classifier(bench), bench.batch(24)
    batch["target"] = (batch["label"] + 1) % 3
    attack = LinfPGD(eps=0.4, steps=10, step_size=0.1, targeted=True)
    found = attack_dataset(model, attack, [batch])
    assert torch.equal(found.success, found.adversarial_prediction == batch["target"])
    assert torch.equal(found.label, batch["label"])
    assert bool(found.success.any())
    with pytest.raises(ValueError, match="takes batches with image, label, target, got image, label, index"):
        attack_dataset(model, attack, bench.loader())
    smallest = attack_dataset(model, FMN(norm="l2", steps=20), [batch])
    assert bool(smallest.success.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_and_half_samples(dtype: torch.dtype, bench: Any) -> None:
    batch, attack = bench.batch(24), LinfPGD(eps=0.15, steps=5, step_size=0.1)
    half = batch["image"].to(dtype)
    of_samples = attack_dataset(classifier(bench), attack, [(half, batch["label"])])
    of_weights = attack_dataset(classifier(bench).to(dtype), attack, [(batch["image"], batch["label"])])
    for found, clean in ((of_samples, half.float()), (of_weights, batch["image"])):
        assert 0 < int(found.success.sum()) < 24
        assert torch.equal(found.success, found.adversarial_prediction != found.label)
        assert bool(((images(found) - clean).abs().flatten(1).amax(1) <= 0.15 * (1 + 1e-5)).all())


def test_bad_use_is_refused(bench: Any, tmp_path: Path) -> None:
    model, attack, loader = classifier(bench), LinfPGD(eps=0.1, steps=1), bench.loader()
    with pytest.raises(ValueError, match="limit_batches must be an integer of at least 1, got 0"):
        attack_dataset(model, attack, loader, limit_batches=0)
    with pytest.raises(ValueError, match="one radius for all samples, got 24"):
        attack_dataset(model, LinfPGD(eps=torch.rand(24), steps=1), loader)
    with pytest.raises(TypeError, match="gives its attack labels; FastFeature takes something else"):
        attack_dataset(model, FastFeature(), loader)
    with pytest.raises(ValueError, match="takes batches with image, label, got image"):
        attack_dataset(model, attack, [{"image": torch.rand(2, 1, 8, 8)}])
    with pytest.raises(ValueError, match=r"one label for each image, got \(2, 1\) for \(2, 1, 8, 8\)"):
        attack_dataset(model, attack, [(torch.rand(2, 1, 8, 8), torch.zeros(2, 1).long())])
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        attack_dataset(model, attack, [(torch.rand(2, 1, 8, 8), torch.tensor([0, 9]))])
    with pytest.raises(ValueError, match="hold no samples to attack"):
        attack_dataset(model, attack, [])
    with pytest.raises(FileNotFoundError, match="holds no finished adversarial set"):
        AdversarialSet(tmp_path)
