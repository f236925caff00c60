"""What every attack of the catalogue promises, whatever its method."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

import lit_modules.attacks
from lit_modules.attacks import Attack, AttackResult
from lit_modules.attacks.norms import lp_norm

NORMS = ["linf", "l2", "l1"]
EPS: dict[str, float] = {"linf": 0.1, "l2": 0.6, "l1": 3.0}
# attacks with few steps: class, norms if it takes one, arguments
QUICK: list[tuple[str, list[str], dict[str, Any]]] = [
    ("FGSM", [], {"eps": 0.1}),
    ("FGM", [], {"eps": 0.6}),
    ("LinfBIM", [], {"eps": 0.1, "steps": 3}),
    ("L2BIM", [], {"eps": 0.6, "steps": 3, "step_size": 0.3}),
    ("LinfPGD", [], {"eps": 0.1, "steps": 3, "step_size": 0.05}),
    ("L2PGD", [], {"eps": 0.6, "steps": 3, "step_size": 0.3}),
    ("L1PGD", [], {"eps": 3.0, "steps": 3}),
    ("SparseL1Descent", [], {"eps": 3.0, "steps": 3}),
    ("LinfMomentum", [], {"eps": 0.1, "steps": 3, "step_size": 0.05}),
    ("L2Momentum", [], {"eps": 0.6, "steps": 3, "step_size": 0.3}),
    ("APGD", NORMS, {"steps": 10}),
    ("APGDT", NORMS, {"steps": 5}),
    ("Square", ["linf", "l2"], {"queries": 20}),
    ("SPSA", [], {"eps": 0.1, "steps": 3, "directions": 4}),
    ("NES", ["linf", "l2"], {"steps": 3, "directions": 4}),
    ("NAttack", ["linf", "l2"], {"steps": 3, "samples": 4}),
    ("Bandits", ["linf", "l2"], {"steps": 5}),
    ("GenAttack", ["linf", "l2"], {"steps": 3, "population": 4}),
    ("FastFeature", [], {"eps": 0.1, "steps": 3}),
    ("AutoAttack", NORMS, {"version": "custom"}),
    ("BestOf", [], {}),
    ("DDN", [], {"steps": 10}),
    ("DeepFool", ["linf", "l2"], {"steps": 5}),
    ("FAB", NORMS, {"steps": 5}),
    ("FABT", NORMS, {"steps": 5, "n_targets": 3}),
    ("FMN", [*NORMS, "l0"], {"steps": 10}),
    ("CarliniWagner", [], {"steps": 20, "search_steps": 3, "step_size": 0.05}),
    ("ElasticNet", [], {"steps": 20, "search_steps": 3}),
    ("LBFGS", [], {"steps": 10, "search_steps": 3, "refine_steps": 3}),
    ("JSMA", [], {"gamma": 0.2}),
    ("SinglePixel", [], {"max_pixels": 5}),
    ("LocalSearch", [], {"rounds": 2}),
    ("SpatialTransform", [], {"steps": 5, "search_steps": 1}),
    ("RotationTranslation", [], {"rotations": 3, "translations": 3}),
]
NAMES = [name for name, _, _ in QUICK]
CASES = [(name, norm) for name, norms, _ in QUICK for norm in (norms or [""])]
TARGETS_OF_THEIR_OWN = ["APGDT", "AutoAttack", "FastFeature"]
NEED_BOUNDS = ["SinglePixel", "LocalSearch"]
case = pytest.mark.parametrize(("name", "norm"), CASES)


def make(name: str, norm: str = "", **changes: Any) -> Attack:
    """The attack of that name, with few steps."""
    arguments = dict(next(quick for known, _, quick in QUICK if known == name))
    kind = getattr(lit_modules.attacks, name)
    if norm:
        arguments["norm"] = norm
        if norm in EPS and not kind.minimal:
            arguments["eps"] = EPS[norm]
    if name in ("AutoAttack", "BestOf") and "attacks" not in changes:
        shared = {
            key: changes[key]
            for key in ("bounds", "targeted", "precision", "model_mode")
            if key in changes and name == "BestOf"
        }
        members = [("APGD", norm), ("FAB", norm)] if name == "AutoAttack" else [("FGSM", ""), ("Square", "linf")]
        arguments["attacks"] = [make(member, its, **shared) for member, its in members]
    return kind(**(arguments | changes))  # type: ignore[no-any-return]


def network() -> Any:
    """A random network for images of 2 x 6 x 6 whose answers are spread over the classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 5)
    )
    last: Any = model.eval()[-1]
    with torch.no_grad():
        last.weight *= 3
        last.bias -= model(torch.rand(200, 2, 6, 6)).mean(0)
    return model


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def run(attack: Attack, model: Any, x: Tensor, y: Tensor | None = None) -> AttackResult:
    """Run an attack; the guides of the fast feature attack are the samples turned round."""
    if type(attack).__name__ == "FastFeature":
        return attack.run(model, x, x.flip(0))
    return attack.run(model, x, y)


def test_every_attack_is_in_this_list() -> None:
    kinds = {
        name
        for name in lit_modules.attacks.__all__
        if isinstance(kind := getattr(lit_modules.attacks, name), type) and issubclass(kind, Attack)
    }
    assert kinds - {"Attack"} == set(NAMES)
    for name in NAMES:
        assert name in dir(lit_modules.attacks)


@pytest.mark.parametrize("name", NAMES)
def test_documented_defaults_suffice(name: str) -> None:
    kind = getattr(lit_modules.attacks, name)
    attack = kind(attacks=[make("FGSM")]) if name == "BestOf" else kind()
    assert attack.norm in ("linf", "l2", "l1", "l0", None)
    assert attack.bounds == (0.0, 1.0)
    assert kind.__doc__.count("Args:") == 1
    assert "arXiv" in kind.__doc__ or name == "BestOf"


@case
def test_record(name: str, norm: str) -> None:
    model, x = network(), images()
    y = model(x).argmax(1)
    copies = x.clone(), y.clone()
    attack = make(name, norm)
    seen = 0

    def count(x: Tensor) -> Any:
        nonlocal seen
        seen += len(x)
        return model(x)

    result = run(attack, count, x, y)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    adversarial = result.adversarial
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert not adversarial.requires_grad
    assert adversarial.data_ptr() != x.data_ptr()
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert result.success.shape == result.distance.shape == result.forward_passes.shape == (6,)
    assert torch.equal(result.distance, lp_norm(adversarial.double() - x.double(), attack.norm or "l2"))
    if attack.eps is not None:
        assert bool((result.distance <= attack.eps * (1 + 1e-6) + 1e-6).all())
    if attack.minimal:
        assert torch.equal(adversarial[~result.success], x[~result.success])
    if name != "FastFeature":
        assert torch.equal(model(adversarial).argmax(1) != y, result.success)
    assert int(result.forward_passes.sum()) == seen
    assert bool((result.forward_passes > 0).all())


@case
def test_model_is_left_as_it_was(name: str, norm: str) -> None:
    model = network().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    run(make(name, norm), model, images(3))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model[0]._forward_hooks


@case
def test_result_depends_on_seed_sample_and_model_alone(name: str, norm: str) -> None:
    model, x = network().double(), images(3).double()
    attack = make(name, norm)
    state = torch.get_rng_state()
    first = run(attack, model, x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    with torch.no_grad():
        again = run(attack, model, x)
    assert torch.equal(first.adversarial, again.adversarial)
    assert first.adversarial.dtype == torch.float64
    if name != "FastFeature":  # there a sample's guide is another sample
        alone = torch.cat([run(attack, model, x[i : i + 1]).adversarial for i in (2, 0, 1)])
        assert torch.allclose(alone[[1, 2, 0]], first.adversarial, atol=1e-6)


@case
def test_misclassified_samples_need_no_attack(name: str, norm: str) -> None:
    if name == "FastFeature":
        pytest.skip("takes a guide instead of a label")
    model, x = network(), images(3)
    y = (model(x).argmax(1) + 1) % 5
    result = make(name, norm).run(model, x, y)
    assert torch.equal(result.adversarial, x)
    assert bool(result.already.all() & result.success.all())
    if name != "AutoAttack":  # which looks for random answers first
        assert bool((result.forward_passes == 1).all())


@case
def test_bounds_absent(name: str, norm: str) -> None:
    if name in NEED_BOUNDS:
        with pytest.raises(ValueError, match="bounds"):
            make(name, norm, bounds=None)(network(), images(3))
        return
    adversarial = run(make(name, norm, bounds=None), network(), images(3) * 4 - 2).adversarial
    assert bool(torch.isfinite(adversarial).all())


@case
def test_bounds_of_each_pixel(name: str, norm: str) -> None:
    x = images(3)
    lower, upper = torch.zeros(1, 2, 6, 6), torch.ones(2, 6, 6)
    lower[..., 2] = (x[..., 2].amin(0) - 0.02).clamp_min(0)
    upper[:, 4] = 0.9
    inside = x.clamp(lower, upper)
    result = run(make(name, norm, bounds=(lower, upper)), network(), inside)
    assert bool(((result.adversarial >= lower) & (result.adversarial <= upper)).all())


@case
def test_targeted_or_refused(name: str, norm: str) -> None:
    if name in TARGETS_OF_THEIR_OWN:
        with pytest.raises(ValueError, match="target"):
            make(name, norm, targeted=True)
        return
    model, x = network(), images(6)
    attack = make(name, norm, targeted=True)
    with pytest.raises(ValueError, match="A targeted attack needs y"):
        attack(model, x)
    target = model(x).topk(2).indices[:, 1]
    result = attack.run(model, x, target)
    assert torch.equal(model(result.adversarial).argmax(1) == target, result.success)


@case
def test_restarts_never_lose(name: str, norm: str) -> None:
    model, x = network(), images(6)
    one, two = run(make(name, norm), model, x), run(make(name, norm, restarts=2), model, x)
    assert bool((two.success >= one.success).all())
    if make(name, norm).minimal:
        assert bool((two.distance <= one.distance + 1e-6)[one.success].all())


@case
def test_constant_model_breaks_nothing(name: str, norm: str) -> None:
    def constant(x: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.0, 0.0, 1.0]).expand(len(x), 4) + 0 * x.flatten(1).sum(1, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(make(name, norm), constant, images(3))
    assert bool(torch.isfinite(result.adversarial).all())
    if name != "FastFeature":
        assert not bool(result.success.any())


@case
def test_bf16_and_kept_mode(name: str, norm: str) -> None:
    result = run(make(name, norm, precision="bf16", model_mode="keep"), network(), images(3))
    assert result.adversarial.dtype == torch.float32


@case
def test_probabilities_are_refused(name: str, norm: str) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        run(make(name, norm), nn.Sequential(network(), nn.Softmax(1)), images(3))


@case
def test_repr_copy_and_pickle(name: str, norm: str) -> None:
    attack = make(name, norm, seed=3)
    text = repr(attack)
    assert text.startswith(f"{name}(")
    assert "seed=3" in text
    for argument in next(quick for known, _, quick in QUICK if known == name):
        assert f"{argument}=" in text
    for again in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        assert repr(again) == text
        assert torch.equal(run(again, network(), images(3)).adversarial, run(attack, network(), images(3)).adversarial)


@case
def test_repr_makes_the_attack_again(name: str, norm: str) -> None:
    text = repr(make(name, norm, seed=3))
    again = eval(text, {known: getattr(lit_modules.attacks, known) for known in NAMES})
    assert repr(again) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_class_path(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack")
    arguments = [f"--attack=lit_modules.attacks.{name}", "--attack.seed=7", "--attack.restarts=2"]
    arguments += ["--attack.bounds=[-1.0, 2.0]", "--attack.precision=bf16"]
    for key, value in next(quick for known, _, quick in QUICK if known == name).items():
        arguments.append(f"--attack.{key}={value}")
    if name in ("AutoAttack", "BestOf"):
        shared = "bounds: [-1.0, 2.0], precision: bf16"
        arguments.append(f"--attack.attacks=[{{class_path: lit_modules.attacks.LinfPGD, init_args: {{{shared}}}}}]")
    attack = parser.instantiate(parser.parse_args(arguments)).attack
    assert type(attack) is getattr(lit_modules.attacks, name)
    assert (attack.seed, attack.restarts, tuple(attack.bounds), attack.precision) == (7, 2, (-1.0, 2.0), "bf16")
    for key, value in next(quick for known, _, quick in QUICK if known == name).items():
        assert getattr(attack, key) == value
