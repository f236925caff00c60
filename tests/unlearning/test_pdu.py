"""PDU: the dual variable."""

from typing import Any

import pytest
import torch

from lit_modules.unlearning.pdu import PDU


def test_dual_variable_moves_by_the_violation_after_the_warm_up(bench: Any) -> None:
    still: Any = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731 - the losses of all steps are then the same
    module = PDU(bench.network(), retain_level=4.0, dual_step=0.5, warm_up_epochs=1, optimizer=still)
    trainer = bench.fit(module, bench.pairs(24), max_epochs=3)
    excess = float(trainer.callback_metrics["train/retain_loss"]) - 4.0
    assert excess > 0
    assert module.dual == pytest.approx(1 + 2 * 0.5 * excess, rel=1e-5)
    assert float(trainer.callback_metrics["train/dual"]) == pytest.approx(module.dual)


def test_dual_variable_stops_at_zero_and_the_level_comes_from_the_first_step(bench: Any) -> None:
    still: Any = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731 - the losses of all steps are then the same
    module = PDU(bench.network(), tolerance=0.5, dual_step=100.0, warm_up_epochs=0, optimizer=still)
    trainer = bench.fit(module, bench.pairs(24), max_epochs=2)
    assert module.level == pytest.approx(1.5 * float(trainer.callback_metrics["train/retain_loss"]), rel=1e-5)
    assert module.dual == 0.0


def test_logits_of_the_forget_rows_become_flat(bench: Any) -> None:
    module = PDU(bench.network(), warm_up_epochs=0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    first = bench.fit(PDU(bench.network()), bench.pairs(24)).callback_metrics["train/forget_objective"]
    last = bench.fit(module, bench.pairs(24) * 30).callback_metrics["train/forget_objective"]
    assert float(last) < float(first)


def test_all_positions_as_in_the_reference_code(bench: Any) -> None:
    still: Any = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    network, task = bench.network(), bench.pairs(24)[0]["forget"]
    logits = network(input_ids=task["input_ids"], attention_mask=task["attention_mask"]).logits.reshape(-1, 64)
    expected = float(((logits.max(-1).values - logits.mean(-1)) ** 2).mean())
    losses = []
    for positions in ("targets", "all"):
        trainer = bench.fit(PDU(bench.network(), positions=positions, optimizer=still), bench.pairs(24))
        numbers = trainer.callback_metrics
        losses.append((float(numbers["train/forget_objective"]), float(numbers["train/forget_loss"])))
    assert losses[1][0] == pytest.approx(expected, rel=1e-5)
    assert losses[0][0] != pytest.approx(expected, rel=1e-4)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-5)
    with pytest.raises(ValueError, match="positions must be 'targets' or 'all', got 'every'"):
        PDU(bench.network(), positions="every")  # type: ignore[arg-type]
