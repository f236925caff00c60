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
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.utils.fingerprint import identify
from tests.attacks.helpers import Recorder
from tests.attacks.helpers import images as draw

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
    ("SigmaZero", [], {"steps": 10}),
    ("VFGA", [], {"samples": 3}),
    ("ALMA", ["l1", "l2"], {"steps": 10}),
    ("PDGD", [], {"steps": 10}),
    ("PDPGD", [*NORMS, "l0"], {"steps": 10}),
    ("TrustRegion", ["linf", "l2"], {"steps": 10}),
    ("CarliniWagner", [], {"steps": 20, "search_steps": 3, "step_size": 0.05}),
    ("CarliniWagnerLinf", [], {"steps": 10, "rounds": 5, "step_size": 0.05, "initial_const": 1.0}),
    ("CarliniWagnerL0", [], {"steps": 10, "rounds": 5, "step_size": 0.05, "initial_const": 1.0}),
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
    *(("AutoAttack", "linf"), ("BestOf", ""), ("FMN", "l0"), ("FMN", "l1"), ("SigmaZero", ""), ("VFGA", "")),
    *(("ALMA", "l2"), ("ALMA", "l1"), ("PDGD", ""), ("PDPGD", "linf"), ("PDPGD", "l0"), ("TrustRegion", "l2")),
    *(("CarliniWagnerLinf", ""), ("CarliniWagnerL0", "")),
]
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
    if name in ("AutoAttack", "BestOf"):
        shared = {key: changes.pop(key) for key in ("bounds", "targeted") if key in changes and name == "BestOf"}
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
    return draw(count, 2, 6, 6)


def run(attack: Attack, model: Any, x: Tensor, y: Tensor | None = None) -> AttackResult:
    """Run an attack; the guides of the fast feature attack are the samples turned round."""
    return attack.run(model, x, x.flip(0) if type(attack).__name__ == "FastFeature" else y)


def check_claims(
    attack: Attack, result: AttackResult, x: Tensor, y: Tensor, logits: Tensor, rounding: float = 1e-6
) -> None:
    """Hold success, distance, radius and bounds of a record against the samples that came back and their logits."""
    adversarial = result.adversarial
    assert (adversarial.shape, adversarial.dtype) == (x.shape, x.dtype)
    assert bool(((adversarial >= 0) & (adversarial <= 1)).all())
    size = lp_norm(adversarial.double() - x.double(), attack.norm or "l2")
    claimed = result.success if attack.minimum_norm else torch.ones_like(result.success)
    assert torch.equal(result.distance, torch.where(claimed, size, float("inf")))
    if attack.eps is not None:
        assert bool((size <= attack.eps * (1 + 1e-6) + rounding).all())
    if attack.minimum_norm:
        assert torch.equal(adversarial[~result.success], x[~result.success])
    if type(attack).__name__ != "FastFeature":
        assert torch.equal(logits.argmax(1) != y, result.success)


def test_every_attack_is_in_this_list() -> None:
    public = {name: getattr(lit_modules.attacks, name) for name in lit_modules.attacks.__all__}
    kinds = {name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, Attack)}
    assert kinds - {"Attack"} == set(NAMES)


@case
def test_record(name: str, norm: str) -> None:
    model, x = Recorder(network()), images()
    y = model.model(x).argmax(1)
    copies = x.clone(), y.clone()
    attack = make(name, norm)
    result = run(attack, model, x, y)
    assert int(result.num_queries.sum()) == model.points
    assert bool((result.num_queries > 0).all())
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert not result.adversarial.requires_grad
    assert result.adversarial.data_ptr() != x.data_ptr()
    assert result.success.shape == result.distance.shape == result.num_queries.shape == (6,)
    check_claims(attack, result, x, y, model(result.adversarial))


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
    before = eps.clone()
    result = run(make(name, norm, eps=eps), model, x)
    assert torch.equal(eps, before)
    assert bool((result.distance <= eps * (1 + 1e-6) + 1e-6).all())
    if name != "FastFeature":
        for i in (1, 2):
            alone = make(name, norm, eps=float(eps[i]))(model, x[i : i + 1])
            assert torch.allclose(alone[0], result.adversarial[i], atol=1e-6)


@case
def test_repr_makes_the_attack_again_and_pickles(name: str, norm: str) -> None:
    attack = make(name, norm, seed=3)
    text = repr(attack)
    assert all(f"{argument}=" in text for argument in next(quick for known, _, quick in QUICK if known == name))
    again = eval(text, {known: getattr(lit_modules.attacks, known) for known in NAMES})
    assert repr(again) == repr(pickle.loads(pickle.dumps(attack))) == repr(copy.deepcopy(attack)) == text
    assert identify(copy.deepcopy(attack)) == identify(attack) != identify(make(name, norm, seed=4))


@representative
def test_a_call_gives_the_record_and_leaves_misclassified_samples(name: str, norm: str) -> None:
    model, x = network(), images(4)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    attack = make(name, norm)
    result = run(attack, model, x, y)
    assert torch.equal(attack(model, x, x.flip(0) if name == "FastFeature" else y), result.adversarial)
    if name != "FastFeature":
        assert torch.equal(result.adversarial[:2], x[:2])
        assert bool((result.already & result.success)[:2].all())
        assert name == "AutoAttack" or result.num_queries[:2].tolist() == [1, 1]  # it looks for random answers first


@representative
def test_bounds_absent(name: str, norm: str) -> None:
    if name in ("LocalSearch", "VFGA"):
        with pytest.raises(ValueError, match="bounds"):
            make(name, norm, bounds=None)
        return
    adversarial = run(make(name, norm, bounds=None), network(), images(3) * 4 - 2).adversarial
    assert bool(torch.isfinite(adversarial).all())


@representative
def test_bounds_of_each_pixel(name: str, norm: str) -> None:
    x = images(3)
    lower, upper = torch.zeros(1, 2, 6, 6), torch.ones(2, 6, 6)
    lower[..., 2] = (x[..., 2].amin(0) - 0.02).clamp_min(0)
    upper[:, 4] = 0.9
    copies = lower.clone(), upper.clone()
    result = run(make(name, norm, bounds=(lower, upper)), network(), x.clamp(lower, upper))
    assert bool(((result.adversarial >= lower) & (result.adversarial <= upper)).all())
    assert torch.equal(lower, copies[0])
    assert torch.equal(upper, copies[1])


@representative
def test_targeted_or_refused(name: str, norm: str) -> None:
    if name in ("AutoAttack", "FastFeature"):
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
    nearer = margin(model(x), target) - margin(model(result.adversarial), target)
    assert bool((nearer >= -1e-6).all())
    assert bool((nearer > 1e-3).any())


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

    attack = make(name, norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(attack, constant, images(3))
    assert bool(torch.isfinite(result.adversarial).all())
    assert name == "FastFeature" or not bool(result.success.any())
    if attack.minimum_norm:  # the failures of AdverTorch's spatial attack were black
        assert torch.equal(result.adversarial, images(3))


class Viewing(nn.Module):
    """Convolutions of one to three dimensions before a ``.view``, which needs the channels outermost in memory."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.convolution, self.last = kind(2, 3, 3, padding=1), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 3 * self.last(self.convolution(x).relu().view(len(x), -1))
        return logits


@representative
@pytest.mark.parametrize("shape", [(2, 12), (2, 4, 6), (2, 3, 2, 3)])
def test_memory_layout_is_invisible(name: str, norm: str, shape: tuple[int, ...]) -> None:
    if (len(shape) != 3 and name in ("SpatialTransform", "LocalSearch")) or (
        len(shape) == 4 and name in ("Square", "BestOf")
    ):
        pytest.skip("moves pixels or squares of images")
    x = draw(4, *shape, seed=3)
    model = Viewing(len(shape) - 1).eval()
    with torch.no_grad():
        model(x)
    expected = run(make(name, norm), model, x)
    assert expected.adversarial.stride() == x.stride()
    strides = set()

    def reshaping(z: Tensor) -> Any:
        strides.add(z.stride()[1:])
        return model.last(model.convolution(z).relu().reshape(len(z), -1)) * 3

    strided = torch.stack([x, x + 1], -1)[..., 0]
    channels_last = x.transpose(1, -1).contiguous().transpose(1, -1)
    for samples in (strided, channels_last):
        result = run(make(name, norm), reshaping, samples)
        assert torch.allclose(result.adversarial, expected.adversarial, atol=1e-5)
        assert result.adversarial.stride() == torch.empty_like(samples).stride()
        assert strides == {torch.empty_like(samples).stride()[1:]}
        strides.clear()


@representative
@pytest.mark.parametrize(
    ("own", "samples"),
    [("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float32")],
)
def test_samples_and_models_of_other_types_get_what_is_claimed(name: str, norm: str, own: str, samples: str) -> None:
    dtype = getattr(torch, own)
    model, x = network().to(dtype), images().to(getattr(torch, samples))
    y = model(x.to(dtype)).argmax(1)
    attack = make(name, norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of answers in bfloat16 that stay the same
        result = run(attack, model, x, y)
    check_claims(attack, result, x, y, model(result.adversarial.to(dtype)), 7.2e-6 if own == "float32" else 1e-6)


@representative
def test_inference_mode_and_tensor_bounds(name: str, norm: str) -> None:
    model, x = network(), images(3)
    y = model(x).argmax(1)
    expected = run(make(name, norm), model, x, y)
    with torch.inference_mode():
        attack = make(name, norm, bounds=(torch.zeros(2, 1, 1), torch.ones(2, 1, 1)))
        assert "bounds=(tensor(" in repr(attack)
        result = run(attack, model, x.clone(), y.clone())
    assert torch.equal(result.adversarial, expected.adversarial)


@representative
def test_an_empty_batch_comes_back(name: str, norm: str) -> None:
    x = images(3)[:0]
    result = run(make(name, norm), network(), x, torch.zeros(0, dtype=torch.int64))
    assert result.adversarial.shape == x.shape
    assert [len(values) for values in (result.success, result.distance, result.num_queries, result.already)] == [0] * 4
    assert len(make(name, norm)(network(), x, x if name == "FastFeature" else None)) == 0
