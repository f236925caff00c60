"""RMU: the hidden states it steers, and what it leaves alone."""

from typing import Any

import pytest
import torch

from lit_modules.networks import small_llama
from lit_modules.unlearning.rmu import RMU
from tests.unlearning.conftest import Optimizer


def network(layers: int = 3) -> Any:
    torch.manual_seed(0)
    return small_llama(vocab_size=64, hidden_size=16, num_layers=layers, num_heads=2)


def test_step_is_the_formula_and_only_the_lower_blocks_move(bench: Any, sgd: Optimizer) -> None:
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pair = bench.pairs(24)[0]
    mask = pair["forget"]["labels"].ne(-100)
    hidden = model(input_ids=pair["forget"]["input_ids"], output_hidden_states=True).hidden_states[2][mask]
    drawn = torch.rand(16, generator=torch.Generator().manual_seed(3))
    target = 2.0 * drawn / drawn.norm()
    loss = ((hidden - target) ** 2).mean()
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    module = RMU(model, layer=1, direction_seed=3, optimizer=sgd)
    trainer = bench.fit(module, bench.pairs(24))
    assert float(trainer.callback_metrics["train/forget_objective"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(trainer.callback_metrics["train/retain_objective"]) == pytest.approx(0.0, abs=1e-10)
    assert "train/forget_loss" not in trainer.callback_metrics
    for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True):
        if gradient is None:
            assert not parameter.requires_grad
            assert torch.equal(parameter, before[name]), name
        else:
            torch.testing.assert_close(parameter, before[name] - 0.01 * gradient, atol=1e-7, rtol=1e-4)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("layers.1" in name for name in moved)
    assert not any("layers.2" in name or name == "model.norm.weight" for name in moved)
    assert len(model.model.layers) == 3


def test_reference_holds_the_lower_blocks_alone_and_the_retain_states_stay(bench: Any) -> None:
    module = RMU(network(), layer=1, retain_weight=10.0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    first = bench.fit(module, bench.pairs(24), max_steps=1).callback_metrics["train/forget_objective"]
    assert len(module._frozen[0].model.layers) == 2
    trainer = bench.fit(module, bench.pairs(24) * 15)
    assert float(trainer.callback_metrics["train/forget_objective"]) < float(first)
    assert float(trainer.callback_metrics["train/retain_objective"]) > 0


def test_train_only_freezes_the_rest(bench: Any, tmp_path: Any) -> None:
    module = RMU(network(), layer=1, train_only=(r"layers\.[01]\.mlp\.down_proj",))
    trainer = bench.fit(module, bench.pairs(24))
    names = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
    assert names == [f"model.layers.{number}.mlp.down_proj.weight" for number in (0, 1)]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if name.startswith("model.")} == {f"model.{name}" for name in names}


def test_gradient_checkpointing_gives_the_same_step(bench: Any, sgd: Optimizer) -> None:
    models = [network(), network()]
    for model, checkpointing in zip(models, (False, True), strict=True):
        bench.fit(RMU(model, layer=1, gradient_checkpointing=checkpointing, optimizer=sgd), bench.pairs(24))
    torch.testing.assert_close(bench.vector(models[1]), bench.vector(models[0]), atol=1e-6, rtol=0)


def test_absurd_blocks_are_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match=r"layer must lie in \[0, 3\), the blocks of the model, got 7"):
        bench.fit(RMU(network()), bench.pairs(24))
    with pytest.raises(
        ValueError, match="No parameter up to block 1 is left to train with train_only=\\('nothing',\\)"
    ):
        bench.fit(RMU(network(), layer=1, train_only=("nothing",)), bench.pairs(24))


def test_average_over_rows(bench: Any, sgd: Optimizer) -> None:
    """A row counts as much as another, however long; an accumulated group gives the same."""
    model, pair = network(), bench.pairs(24)[0]
    hidden = model(input_ids=pair["forget"]["input_ids"], output_hidden_states=True).hidden_states[2]
    drawn = torch.rand(16, generator=torch.Generator().manual_seed(0))
    distances = ((hidden - 2.0 * drawn / drawn.norm()) ** 2).mean(-1)
    scored = pair["forget"]["labels"].ne(-100)
    expected = float(torch.stack([row[mask].mean() for row, mask in zip(distances, scored, strict=True)]).mean())
    assert expected != pytest.approx(float(distances[scored].mean()), rel=1e-4)
    for size in (24, 6):
        module = RMU(network(), layer=1, average="rows", accumulate=24 // size, optimizer=sgd)
        trainer = bench.fit(module, bench.pairs(size))
        assert float(trainer.callback_metrics["train/forget_objective"]) == pytest.approx(expected, rel=1e-5)
