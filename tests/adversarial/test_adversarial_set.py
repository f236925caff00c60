"""A whole set under attack: what comes back, where it is kept, and how a run that was killed goes on."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_modules.adversarial import AdversarialSet, PGDTraining, attack_dataset
from lit_modules.attacks import FMN, L2PGD, FastFeature, LinfPGD
from lit_modules.attacks.engine.norms import lp_norm
from tests.adversarial.conftest import Noisy

COLUMNS = ("index", "label", "prediction", "adversarial_prediction", "success", "distance", "num_queries")


def images(adversarial: AdversarialSet) -> torch.Tensor:
    return torch.stack([adversarial[row]["image"] for row in range(len(adversarial))])


def same(one: AdversarialSet, other: AdversarialSet) -> bool:
    columns = all(torch.equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
    return columns and torch.equal(images(one), images(other))


@pytest.mark.parametrize("attack", [LinfPGD(eps=0.15, steps=5, step_size=0.1), L2PGD(eps=1.0, steps=5, step_size=0.4)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_comes_back_is_what_the_attack_finds(attack: Any, on_disk: bool, bench: Any, tmp_path: Path) -> None:
    model, batch = bench.trained(), bench.batch(30)
    batch["label"][:4] = (batch["label"][:4] + 1) % 3  # so that the classifier is wrong on these
    data = TensorDataset(batch["image"], batch["label"])
    adversarial = attack_dataset(model, attack, data, tmp_path / "set" if on_disk else None, batch_size=7)
    result = attack.run(model, batch["image"], batch["label"])
    assert torch.equal(adversarial.index, torch.arange(30))
    assert torch.equal(adversarial.label, batch["label"])
    assert torch.equal(adversarial.prediction, model(batch["image"]).argmax(1))
    assert torch.allclose(images(adversarial), result.adversarial, atol=1e-6)
    assert torch.equal(images(adversarial)[:4], batch["image"][:4])
    assert torch.equal(adversarial.success, result.success)
    assert bool(adversarial.success[:4].all())
    assert 4 < int(adversarial.success.sum()) < 30
    assert torch.equal(adversarial.adversarial_prediction, model(images(adversarial)).argmax(1))
    assert torch.equal(adversarial.success, adversarial.adversarial_prediction != adversarial.label)
    distance = lp_norm((images(adversarial) - batch["image"]).double(), attack.norm)
    assert torch.allclose(adversarial.distance, distance)
    assert bool((adversarial.distance <= attack.eps * (1 + 1e-6) + 1e-6).all())
    assert (adversarial.norm, adversarial.attack) == (attack.norm, repr(attack))


def test_loaders_datasets_folders_and_orders_give_the_same_set(bench: Any, tmp_path: Path) -> None:
    model, attack, order = bench.trained(), LinfPGD(eps=0.12, steps=3), torch.randperm(24).tolist()
    loader = bench.loader(24, 8)
    first = attack_dataset(model, attack, loader, tmp_path)
    assert same(first, AdversarialSet(tmp_path))
    assert same(first, attack_dataset(model, attack, loader))
    assert same(first, attack_dataset(model, attack, loader.dataset, batch_size=8, num_workers=1))
    mixed = attack_dataset(model, attack, DataLoader(loader.dataset, 5, sampler=order), tmp_path)
    assert mixed.index.tolist() == order
    assert torch.equal(images(mixed), images(first)[order])
    assert torch.equal(mixed.success, first.success[order])


def test_the_same_call_attacks_nothing_again(bench: Any, tmp_path: Path, attacked: list[int]) -> None:
    model, attack = bench.trained(), LinfPGD(eps=0.12, steps=3)
    part = attack_dataset(model, attack, bench.loader(24, 8), tmp_path, limit_batches=2)
    assert (len(part), sum(attacked)) == (16, 16)
    whole = attack_dataset(model, attack, bench.loader(24, 6), tmp_path)
    assert (len(whole), sum(attacked)) == (24, 24)
    assert same(whole, attack_dataset(model, attack, bench.loader(24, 24), tmp_path))
    assert sum(attacked) == 24
    assert same(whole, attack_dataset(model, attack, bench.loader(24, 6)))


SCRIPT = """
import sys, time
import torch
from torch import nn
from tests.adversarial.conftest import Images
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
print("done", len(attack_dataset(network, LinfPGD(eps=0.1, steps=3), Images(60), sys.argv[1], batch_size=4)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, repository: Path) -> None:
    def start(folder: str, pace: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), pace]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository)

    first = start("set", "slow")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "set").rglob("*.pt"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    finished = len(list((tmp_path / "set").rglob("*.pt")))
    assert 4 <= finished < 15
    assert "done" not in first.communicate()[0]
    with pytest.raises(FileNotFoundError, match="holds no finished adversarial set"):
        AdversarialSet(tmp_path / "set")
    for folder, missing in (("set", 60 - 4 * finished), ("fresh", 60)):
        *sizes, word, number = start(folder, "fast").communicate()[0].split()
        assert (sum(map(int, sizes)), word, number) == (missing, "done", "60")
    assert same(AdversarialSet(tmp_path / "set"), AdversarialSet(tmp_path / "fresh"))


def test_another_attack_or_classifier_is_refused(bench: Any, tmp_path: Path) -> None:
    model, loader = bench.trained(), bench.loader()
    before = attack_dataset(model, LinfPGD(eps=0.1, steps=2), loader, tmp_path)
    message = r"holds the adversarial set of another attack or classifier.*eps=0\.1.*give another folder"
    for other, eps in ((model, 0.2), (bench.network(seed=1), 0.1)):
        with pytest.raises(ValueError, match=message):
            attack_dataset(other, LinfPGD(eps=eps, steps=2), loader, tmp_path)
    assert same(before, AdversarialSet(tmp_path))


def test_a_classifier_that_answers_at_random_is_attacked_anew(bench: Any, tmp_path: Path, attacked: list[int]) -> None:
    model, attack = Noisy(bench.trained()), LinfPGD(eps=0.1, steps=2)
    for total in (24, 48):
        with pytest.warns(UserWarning, match="answers at random"):
            attack_dataset(model, attack, bench.loader(24, 8), tmp_path)
        assert sum(attacked) == total
        assert images(AdversarialSet(tmp_path)).shape == (24, 1, 8, 8)
        with pytest.raises(ValueError, match="or of one that cannot be told from this"):
            attack_dataset(model, attack, bench.loader(24, 8), tmp_path)
        (tmp_path / "adversarial_set.pt").unlink()  # as if the run had been killed


def test_the_set_is_data_for_a_loader_and_a_trainer(bench: Any, tmp_path: Path) -> None:
    model = bench.trained()
    adversarial = attack_dataset(model, LinfPGD(eps=0.15, steps=5, step_size=0.1), bench.loader(), tmp_path)
    batch = next(iter(DataLoader(AdversarialSet(tmp_path), 24, num_workers=1)))
    assert set(batch) == {"image", *COLUMNS}
    assert torch.equal(batch["image"], images(adversarial))
    module = PGDTraining(model, bench.attack(), test_attacks=[LinfPGD(eps=0.01, steps=1)])
    bench.trainer().test(module, DataLoader(adversarial, 8), verbose=False)
    robust = (adversarial.adversarial_prediction == adversarial.label).double().mean()
    assert module.results()["clean"]["accuracy"] == float(robust) < 1


def test_targets_and_smallest_perturbations(bench: Any) -> None:
    model, batch = bench.trained(), bench.batch(24)
    batch["target"] = (batch["label"] + 1) % 3
    attack = LinfPGD(eps=0.4, steps=10, step_size=0.1, targeted=True)
    adversarial = attack_dataset(model, attack, [batch])
    assert torch.equal(adversarial.success, adversarial.adversarial_prediction == batch["target"])
    assert torch.equal(adversarial.label, batch["label"])
    assert bool(adversarial.success.any())
    with pytest.raises(ValueError, match="takes batches with image, label, target, got image, label, index"):
        attack_dataset(model, attack, bench.loader())
    assert bool(attack_dataset(model, FMN(norm="l2", steps=20), [batch]).success.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_and_half_samples(dtype: torch.dtype, bench: Any) -> None:
    batch, attack = bench.batch(24), LinfPGD(eps=0.15, steps=5, step_size=0.1)
    half = batch["image"].to(dtype)
    for model, image in ((bench.trained(), half), (bench.trained().to(dtype), batch["image"])):
        adversarial = attack_dataset(model, attack, [(image, batch["label"])])
        assert 0 < int(adversarial.success.sum()) < 24
        assert torch.equal(adversarial.success, adversarial.adversarial_prediction != adversarial.label)
        assert bool(((images(adversarial) - image.float()).abs().flatten(1).amax(1) <= 0.15 * (1 + 1e-5)).all())


PICTURES = torch.rand(2, 1, 8, 8)
BAD_USE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"limit_batches": 0}, ValueError, "limit_batches must be an integer of at least 1, got 0"),
    ({"attack": LinfPGD(eps=torch.rand(24), steps=1)}, ValueError, "one radius for all samples, got 24"),
    ({"attack": FastFeature()}, TypeError, "gives its attack labels; FastFeature takes something else"),
    ({"data": [{"image": PICTURES}]}, ValueError, "takes batches with image, label, got image"),
    (
        {"data": [(PICTURES, torch.zeros(2, 1).long())]},
        ValueError,
        r"one label for each image, got \(2, 1\) for \(2, 1, 8, 8\)",
    ),
    ({"data": [(PICTURES, torch.tensor([0, 9]))]}, ValueError, "y must be from 0 to 2"),
    ({"data": []}, ValueError, "hold no samples to attack"),
]


@pytest.mark.parametrize(("change", "kind", "sentence"), BAD_USE)
def test_bad_use_is_refused(change: dict[str, Any], kind: type[Exception], sentence: str, bench: Any) -> None:
    arguments = {"attack": LinfPGD(eps=0.1, steps=1), "data": bench.loader(), **change}
    with pytest.raises(kind, match=sentence):
        attack_dataset(bench.network(), **arguments)
