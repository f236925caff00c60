import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_modules.synthia import ErrorMonitor, min_snr_weights
from lit_modules.synthia.core.objective import prediction_error
from lit_modules.synthia.objectives import Denoise, DenoiseDPO, InfoNCE, LinearContrast, Triplet

OBJECTIVES = {
    "linear": LinearContrast,
    "triplet": Triplet,
    "infonce": InfoNCE,
    "denoise": Denoise,
    "denoise_dpo": DenoiseDPO,
}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_has_the_gradient_of_its_formula() -> None:
    anchor = images(3, 2, 4, 4).requires_grad_()
    positive, negatives = images(3, 2, 4, 4, seed=1), images(3, 1, 2, 4, 4, seed=2)
    objective = LinearContrast(beta=0.3)
    objective(*objective.distances(anchor, positive, negatives))["loss"].backward()
    elements = anchor.numel()  # the mean over the batch of means over an image
    wanted = (2 * (anchor - positive) - 2 * 0.3 * (anchor - negatives[:, 0])) / elements
    torch.testing.assert_close(anchor.grad, wanted.detach())
    errors, weights = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0])
    contrast = LinearContrast(beta=0.0, denoising_weight=2.0)
    weighed = contrast(torch.ones(2), torch.zeros(2, 1), denoising=errors, weights=weights)
    assert (float(weighed["denoising"]), float(weighed["loss"])) == (0.5, 2.0)


def test_triplet_rests_once_the_margin_is_kept() -> None:
    positive = torch.tensor([0.1, 0.1], requires_grad=True)
    losses = Triplet(margin=0.2)(positive, torch.tensor([[0.5, 0.9], [0.2, 0.9]]))
    losses["loss"].backward()
    assert positive.grad is not None
    assert positive.grad.tolist() == [0.0, 0.5]
    assert float(losses["violated"]) == 0.5
    mean = Triplet(margin=0.2, negative="mean")(torch.tensor([0.1]), torch.tensor([[0.2, 0.3]]))
    assert float(mean["loss"]) == pytest.approx(0.05)


def test_infonce_limits() -> None:
    equal = InfoNCE(temperature=0.5)(torch.tensor([0.3]), torch.tensor([[0.3, 0.3, 0.3]]))
    assert float(equal["loss"]) == pytest.approx(math.log(4))
    won = InfoNCE()(torch.tensor([0.0]), torch.tensor([[2.0]]))
    assert float(won["loss"]) == pytest.approx(0.0, abs=1e-6)
    lost = InfoNCE(temperature=0.5)(torch.tensor([2.0]), torch.tensor([[0.0]]))
    assert float(lost["loss"]) == pytest.approx(4.0, abs=0.02)
    positive = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    InfoNCE(temperature=0.2)(positive, torch.tensor([[0.5, 0.7]], dtype=torch.float64))["loss"].backward()
    scores = torch.tensor([-0.4, -0.5, -0.7], dtype=torch.float64) / 0.2
    assert positive.grad is not None
    assert float(positive.grad) == pytest.approx(float((1 - scores.softmax(0)[0]) / 0.2))


def test_denoise_has_the_gradient_of_its_formula() -> None:
    positive = torch.tensor([0.3, 0.1], requires_grad=True)
    negatives = torch.tensor([[0.2, 0.9], [0.9, 0.9]], requires_grad=True)
    Denoise(negative_weight=0.5, margin=0.1)(positive, negatives)["loss"].backward()
    assert positive.grad is not None
    assert negatives.grad is not None
    torch.testing.assert_close(positive.grad, torch.tensor([0.5 + 0.125, 0.5]))
    torch.testing.assert_close(negatives.grad, torch.tensor([[-0.125, 0.0], [0.0, 0.0]]))


def test_preference_means_outside_the_logarithm() -> None:
    positive = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)
    negatives = torch.tensor([[0.5], [0.2]], dtype=torch.float64)
    before = torch.tensor([0.3, 0.2], dtype=torch.float64), torch.tensor([[0.4], [0.2]], dtype=torch.float64)
    objective = DenoiseDPO(scale=10.0, negative_weight=0.5, denoising_weight=0.0)
    objective(positive, negatives, reference=before)["loss"].backward()
    margin = 10 * (0.5 * (negatives - before[1])[:, 0] - (positive - before[0])).detach()
    assert positive.grad is not None
    torch.testing.assert_close(positive.grad, 10 * (1 - margin.sigmoid()) / 2)
    errors = images(4), images(4, 2, seed=1)
    first = DenoiseDPO()(*errors, reference=errors)  # before the first step
    assert float(first["preference"]) == pytest.approx(math.log(2))
    assert float(first["loss"]) == pytest.approx(math.log(2) + float(errors[0].mean()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_changes_nothing(name: str) -> None:
    objective = OBJECTIVES[name]()
    positive, negatives = images(2), images(2, 2, seed=1)
    reference = images(2, seed=2), images(2, 2, seed=3)
    padded = torch.cat([negatives, torch.full((2, 1), math.nan)], 1).requires_grad_()
    mask = torch.tensor([[True, True, False]] * 2)
    longer = reference[0], torch.cat([reference[1], torch.zeros(2, 1)], 1)
    plain = objective(positive, negatives, reference=reference)
    other = objective(positive, padded, mask, reference=longer)
    other["loss"].backward()
    assert {key: pytest.approx(float(value)) for key, value in plain.items()} == {
        key: float(value.detach()) for key, value in other.items()
    }
    assert padded.grad is not None
    assert padded.grad.isfinite().all()
    half = torch.tensor([0.5])  # an item without negatives keeps its positive
    alone = objective(half, torch.zeros(1, 0), reference=(half, torch.zeros(1, 0)))
    assert float(alone["loss"]) == (0.0 if name == "infonce" else 0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        *((partial(LinearContrast, beta), r"beta must be in \[0, 1\), got") for beta in (1.0, -0.1, math.nan)),
        (lambda: Denoise(1.0), r"negative_weight must be in \[0, 1\), below the weight of the positives"),
        (lambda: DenoiseDPO()(torch.ones(1), torch.ones(1, 1)), "DenoiseDPO needs the errors of the network before"),
        (lambda: Triplet(margin=-1), "margin must not be negative, got -1"),
        (lambda: LinearContrast(metric="l1"), "metric must be 'squared' or 'cosine', got 'l1'"),  # type: ignore[arg-type]
        (lambda: InfoNCE(temperature=0), "temperature must be positive, got 0"),
        (lambda: LinearContrast()(torch.ones(2), torch.ones(3, 1)), r"positive must be of shape \(batch,\)"),
        (lambda: LinearContrast()(torch.ones(2), torch.ones(2, 1), torch.ones(2)), r"mask must be of shape \(2, 1\)"),
        (lambda: Denoise()(torch.ones(1), torch.ones(1, 1), denoising=torch.ones(1)), "leave denoising out"),
        (lambda: LinearContrast().distances(*torch.ones(3, 2, 3)), "negatives must be of shape"),
        (lambda: min_snr_weights(torch.ones(1), gamma=0), "gamma must be positive, got 0"),
    ],
)
def test_refuses_what_does_not_fit(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_errors_of_several_negatives_and_weights_that_are_finite_everywhere() -> None:
    prediction, target = images(2, 3, 4, 5, 5), images(2, 3, 4, 5, 5, seed=1)
    errors = prediction_error(prediction, target)
    assert errors.shape == (2, 3)
    torch.testing.assert_close(errors[1, 2], (prediction[1, 2] - target[1, 2]).square().mean())
    torch.testing.assert_close(prediction_error(prediction[:, 0], target[:, 0]), errors[:, 0])
    for kind in ("epsilon", "v_prediction", "flow"):
        weights = min_snr_weights(torch.tensor([0.0, 1e-12, 1.0, 1e12, math.inf]), kind)  # type: ignore[arg-type]
        assert weights.isfinite().all()
        assert float(weights[-1]) == 0.0


def test_a_rising_error_is_noticed_after_a_resume_too() -> None:
    monitor, resumed = (ErrorMonitor(window=4, factor=1.2) for _ in range(2))
    assert not any(monitor.update(1.0) for _ in range(20))
    resumed.load_state_dict(monitor.state_dict())
    with pytest.warns(UserWarning, match="error on the positives has risen to 1.2"):
        assert [resumed.update(1.3) for _ in range(9)] == [monitor.update(1.3) for _ in range(9)]
    assert resumed.update(1.3)
