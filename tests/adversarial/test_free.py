"""Free training: replays, the perturbation that is kept, the schedule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_modules.adversarial.free import FreeTraining

Optimizer = Callable[[Any], torch.optim.Optimizer]


def constant(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


def by_hand(network: Any, batches: list[Any], eps: float, replays: int, rate: float) -> torch.Tensor:
    """Follow algorithm 1 with plain SGD and return the perturbation."""
    delta = torch.zeros_like(batches[0]["image"])
    for batch in batches:
        for _ in range(replays):
            part = delta[: len(batch["image"])]
            x = (batch["image"] + part).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(network(x), batch["label"])
            *gradients, direction = torch.autograd.grad(loss, [*network.parameters(), x])
            part.copy_((part + eps * direction.sign()).clamp(-eps, eps))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
    return delta


def test_each_replay_moves_weights_and_perturbation_and_batches_share_it(bench: Any, sgd: Optimizer) -> None:
    module = FreeTraining(bench.network(), eps=0.1, replays=3, optimizer=sgd, scheduler=constant)
    trainer = bench.fit(module, data=bench.loader(20))  # 8, 8 and 4 samples
    network = bench.network()
    delta = by_hand(network, list(bench.loader(20)), 0.1, 3, 0.1)
    torch.testing.assert_close(bench.vector(module.classifier), bench.vector(network), atol=1e-6, rtol=0)
    torch.testing.assert_close(module._delta, delta)
    assert delta.abs().max() <= 0.1
    assert delta[:4].ne(0).any()
    assert trainer.global_step == 9


def test_a_larger_batch_makes_the_perturbation_longer(bench: Any) -> None:
    module = FreeTraining(bench.network(), eps=0.1)
    first = module._perturbation(torch.rand(2, 1, 8, 8))
    first.fill_(0.1)
    longer = module._perturbation(torch.rand(5, 1, 8, 8))
    assert torch.equal(longer[:2], first)
    assert not longer[2:].any()
    assert not module._perturbation(torch.rand(2, 1, 4, 4)).any()


def test_the_cycle_covers_all_replays(bench: Any) -> None:
    module = FreeTraining(bench.network(), eps=0.1, replays=4)
    rates: list[float] = []
    module.classifier.register_forward_hook(lambda *_: rates.append(module.optimizers().param_groups[0]["lr"]))  # type: ignore[union-attr]
    bench.fit(module, data=bench.loader(8), max_epochs=2)
    assert rates == pytest.approx([0.04 * share for share in (1 / 8, 3 / 8, 5 / 8, 7 / 8, 7 / 8, 5 / 8, 3 / 8, 1 / 8)])
    module = FreeTraining(bench.network(), eps=0.1, replays=4)
    trainer = bench.fit(module, max_epochs=2, max_steps=5)
    assert module.lr_schedulers().get_last_lr() == pytest.approx([0.04 * max(0, 1 - abs(2 * (8 + 0.5) / 5 - 1))])
    assert trainer.global_step >= 5


def test_a_schedule_of_epochs_and_clipping(bench: Any, sgd: Optimizer) -> None:
    module = FreeTraining(
        bench.network(),
        eps=0.1,
        replays=1,
        clip_norm=1e-3,
        optimizer=sgd,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        scheduler_interval="epoch",
    )
    before = bench.vector(module.classifier)
    trainer = bench.fit(module, data=bench.loader(8), max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)
    assert float((bench.vector(module.classifier) - before).norm()) <= 1e-3 * 0.15 + 1e-7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eps": -0.1}, r"eps must be positive and finite, got -0\.1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"clip_norm": float("inf")}, "clip_norm must be positive"),
        ({"replays": 0}, "replays must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], sentence: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        FreeTraining(bench.network(), **arguments)


def test_schedules_that_cannot_be_are_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs one"):
        bench.fit(FreeTraining(bench.network(), scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau))
    with pytest.raises(ValueError, match="needs an end of the training"):
        bench.fit(FreeTraining(bench.network()), max_epochs=-1, max_steps=-1)
