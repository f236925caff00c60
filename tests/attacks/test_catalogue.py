"""Promises of the catalogue: three of every attack, the others of one attack for each mechanism."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lit_modules.attacks
from lit_modules.attacks import Attack, AttackResult
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.utils.fingerprint import identify

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
REPRESENTATIVES = [  # one for each mechanism
    *(("LinfPGD", ""), ("APGD", "l1"), ("Square", "linf"), ("NES", "l2"), ("FABT", "l2"), ("CarliniWagner", "")),
    *(("JSMA", ""), ("LocalSearch", ""), ("SpatialTransform", ""), ("FastFeature", "")),
    *(("AutoAttack", "linf"), ("BestOf", "")),
]
TARGETS_OF_THEIR_OWN = ["APGDT", "AutoAttack", "FastFeature"]
NEED_BOUNDS = ["SinglePixel", "LocalSearch"]
case = pytest.mark.parametrize(("name", "norm"), CASES)
representative = pytest.mark.parametrize(("name", "norm"), REPRESENTATIVES)


def make(name: str, norm: str = "", **changes: Any) -> Attack:
    """The attack of that name, with few steps."""
    arguments = dict(next(quick for known, _, quick in QUICK if known == name))
    kind = getattr(lit_modules.attacks, name)
    if norm:
        arguments["norm"] = norm
        if norm in EPS and not kind.minimum_norm:
            arguments["eps"] = EPS[norm]
    if name in ("AutoAttack", "BestOf") and "attacks" not in changes:
        shared = {
            key: changes[key]
            for key in ("bounds", "targeted", "precision", "model_mode")
            if key in changes and name == "BestOf"
        }
        members = [("APGD", norm), ("FAB", norm)] if name == "AutoAttack" else [("FGSM", ""), ("Square", "linf")]
        arguments["attacks"] = [make(member, its, **shared) for member, its in members]
        changes = {key: value for key, value in changes.items() if key not in shared}
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
    assert result.success.shape == result.distance.shape == result.num_queries.shape == (6,)
    size = lp_norm(adversarial.double() - x.double(), attack.norm or "l2")
    found = result.success if attack.minimum_norm else torch.ones_like(result.success)
    assert torch.equal(result.distance, torch.where(found, size, float("inf")))
    if attack.eps is not None:
        assert bool((result.distance <= attack.eps * (1 + 1e-6) + 1e-6).all())
    if attack.minimum_norm:
        assert torch.equal(adversarial[~result.success], x[~result.success])
    if name != "FastFeature":
        assert torch.equal(model(adversarial).argmax(1) != y, result.success)
    assert int(result.num_queries.sum()) == seen
    assert bool((result.num_queries > 0).all())


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


@pytest.mark.parametrize(("name", "norm"), [c for c in CASES if make(*c).eps is not None and c[0] != "BestOf"])
def test_one_radius_per_sample(name: str, norm: str) -> None:
    model, x = network().double(), images(3).double()
    eps = EPS[make(name, norm).norm or ""] * torch.tensor([0.0, 0.4, 1.0]).double()
    result = run(make(name, norm, eps=eps), model, x)
    assert bool((result.distance <= eps * (1 + 1e-6) + 1e-6).all())
    if name != "FastFeature":  # there a sample's guide is another sample
        for i in (1, 2):
            alone = make(name, norm, eps=float(eps[i]))(model, x[i : i + 1])
            assert torch.allclose(alone[0], result.adversarial[i], atol=1e-6)


@representative
def test_misclassified_samples_need_no_attack(name: str, norm: str) -> None:
    if name == "FastFeature":
        pytest.skip("takes a guide instead of a label")
    model, x = network(), images(3)
    y = (model(x).argmax(1) + 1) % 5
    result = make(name, norm).run(model, x, y)
    assert torch.equal(result.adversarial, x)
    assert bool(result.already.all() & result.success.all())
    if name != "AutoAttack":  # which looks for random answers first
        assert bool((result.num_queries == 1).all())


@representative
def test_bounds_absent(name: str, norm: str) -> None:
    if name in NEED_BOUNDS:
        with pytest.raises(ValueError, match="bounds"):
            make(name, norm, bounds=None)(network(), images(3))
        return
    adversarial = run(make(name, norm, bounds=None), network(), images(3) * 4 - 2).adversarial
    assert bool(torch.isfinite(adversarial).all())


@representative
def test_bounds_of_each_pixel(name: str, norm: str) -> None:
    x = images(3)
    lower, upper = torch.zeros(1, 2, 6, 6), torch.ones(2, 6, 6)
    lower[..., 2] = (x[..., 2].amin(0) - 0.02).clamp_min(0)
    upper[:, 4] = 0.9
    inside = x.clamp(lower, upper)
    result = run(make(name, norm, bounds=(lower, upper)), network(), inside)
    assert bool(((result.adversarial >= lower) & (result.adversarial <= upper)).all())


@representative
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


@representative
def test_restarts_never_lose(name: str, norm: str) -> None:
    model, x = network(), images(6)
    one, two = run(make(name, norm), model, x), run(make(name, norm, restarts=2), model, x)
    assert bool((two.success >= one.success).all())
    if make(name, norm).minimum_norm:
        assert bool((two.distance <= one.distance + 1e-6)[one.success].all())


@representative
def test_constant_model_breaks_nothing(name: str, norm: str) -> None:
    def constant(x: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.0, 0.0, 1.0]).expand(len(x), 4) + 0 * x.flatten(1).sum(1, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(make(name, norm), constant, images(3))
    assert bool(torch.isfinite(result.adversarial).all())
    if name != "FastFeature":
        assert not bool(result.success.any())


class Viewing(nn.Module):
    """Convolutions of one to three dimensions before a ``.view``, which needs the channels outermost in memory."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.convolution, self.last = kind(2, 3, 3, padding=1), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolution(x).relu()
        logits: Tensor = 3 * self.last(features.view(len(x), -1))
        return logits


@representative
@pytest.mark.parametrize("shape", [(2, 12), (2, 4, 6), (2, 3, 2, 3)])
def test_memory_layout_is_invisible(name: str, norm: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 and name in ("SpatialTransform", "RotationTranslation", "LocalSearch"):
        pytest.skip("moves pixels of images")
    if len(shape) == 4 and name in ("Square", "BestOf"):
        pytest.skip("changes squares")
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(3))
    model = Viewing(len(shape) - 1).eval()
    with torch.no_grad():
        model(x)
    expected = run(make(name, norm), model, x)
    assert expected.adversarial.stride() == x.stride()
    spread = torch.stack([x, x + 1], -1)[..., 0]  # strided
    inner = x.transpose(1, -1).contiguous().transpose(1, -1)  # channels innermost in memory
    strides = set()

    def reshaping(z: Tensor) -> Any:
        strides.add(z.stride())
        return model.last(model.convolution(z).relu().reshape(len(z), -1)) * 3

    for given in (spread, inner):
        found = run(make(name, norm), reshaping, given)
        assert torch.allclose(found.adversarial, expected.adversarial, atol=1e-5)
        assert found.adversarial.stride() == torch.empty_like(given).stride()
        assert {stride[1:] for stride in strides} == {torch.empty_like(given).stride()[1:]}
        strides.clear()


@representative
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_get_what_is_claimed(name: str, norm: str, dtype: torch.dtype) -> None:
    model, x = network(), images().to(dtype)
    y = model(x.float()).argmax(1)
    attack = make(name, norm)
    result = run(attack, model, x, y)
    assert result.adversarial.dtype == dtype
    if name != "FastFeature":
        assert torch.equal(model(result.adversarial.float()).argmax(1) != y, result.success)
    size = lp_norm(result.adversarial.double() - x.double(), attack.norm or "l2")
    found = result.success if attack.minimum_norm else torch.ones_like(result.success)
    assert torch.equal(result.distance, torch.where(found, size, float("inf")))
    if attack.eps is not None:
        assert bool((size <= attack.eps * (1 + 1e-6) + 1e-7 * size.new_tensor(x[0].numel())).all())
    assert bool(((result.adversarial >= 0) & (result.adversarial <= 1)).all())


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_is_asked_in_its_own(name: str, norm: str, dtype: torch.dtype) -> None:
    model, x = network().to(dtype), images()
    y = model(x.to(dtype)).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of answers in bfloat16 that stay the same
        result = run(make(name, norm), model, x, y)
    assert result.adversarial.dtype == x.dtype
    if name != "FastFeature":
        assert torch.equal(model(result.adversarial.to(dtype)).argmax(1) != y, result.success)


@representative
def test_inference_mode_and_tensor_bounds(name: str, norm: str) -> None:
    model, x = network(), images(3)
    y = model(x).argmax(1)
    expected = run(make(name, norm), model, x, y)
    with torch.inference_mode():
        bounds = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
        attack = make(name, norm, bounds=bounds)
        assert "bounds=(tensor(" in repr(attack)
        result = run(attack, model, x.clone(), y.clone())
        called = attack(model, x.clone(), x.flip(0) if name == "FastFeature" else y.clone())
    assert torch.equal(result.adversarial, expected.adversarial)
    assert torch.equal(called, expected.adversarial)


@representative
def test_a_call_gives_what_the_record_holds(name: str, norm: str) -> None:
    model, x = network(), images(4)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    second = x.flip(0) if name == "FastFeature" else y
    attack = make(name, norm)
    adversarial = attack(model, x, second)
    assert torch.equal(adversarial, attack.run(model, x, second).adversarial)
    if name != "FastFeature":
        assert torch.equal(adversarial[:2], x[:2])


@representative
def test_an_empty_batch_comes_back(name: str, norm: str) -> None:
    x = images(3)[:0]
    result = run(make(name, norm), network(), x, torch.zeros(0, dtype=torch.int64))
    assert result.adversarial.shape == x.shape
    assert [len(values) for values in (result.success, result.distance, result.num_queries, result.already)] == [0] * 4
    assert len(make(name, norm)(network(), x, x if name == "FastFeature" else None)) == 0


@representative
def test_logits_are_taken_from_answers(name: str, norm: str) -> None:
    model, x = network(), images(3)
    expected = run(make(name, norm), lambda z: model(z), x).adversarial
    found = run(make(name, norm), lambda z: {"logits": model(z)}, x).adversarial
    assert torch.equal(found, expected)


@representative
def test_settings_that_differ_have_texts_and_hashes_that_differ(name: str, norm: str) -> None:
    attacks = [make(name, norm), *(make(name, norm, **{key: value}) for key, value in (("seed", 3), ("restarts", 2)))]
    if name not in ("AutoAttack", "BestOf"):  # which take these of their members
        attacks += [make(name, norm, bounds=(0.0, torch.tensor(value))) for value in (1.0, 1.5)]
        attacks.append(make(name, norm, bounds=(0.0, torch.linspace(1, 1.5, 72).view(2, 6, 6))))
    assert len({identify(attack) for attack in attacks}) == len({repr(attack) for attack in attacks}) == len(attacks)
    assert identify(copy.deepcopy(attacks[0])) == identify(attacks[0])


@representative
def test_bf16_and_kept_mode(name: str, norm: str) -> None:
    result = run(make(name, norm, precision="bf16", model_mode="keep"), network(), images(3))
    assert result.adversarial.dtype == torch.float32


@representative
def test_probabilities_are_refused(name: str, norm: str) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        run(make(name, norm), nn.Sequential(network(), nn.Softmax(1)), images(3))


@case
def test_repr_makes_the_attack_again_and_pickles(name: str, norm: str) -> None:
    attack = make(name, norm, seed=3)
    text = repr(attack)
    for argument in next(quick for known, _, quick in QUICK if known == name):
        assert f"{argument}=" in text
    again = eval(text, {known: getattr(lit_modules.attacks, known) for known in NAMES})
    assert repr(again) == repr(pickle.loads(pickle.dumps(attack))) == repr(copy.deepcopy(attack)) == text
