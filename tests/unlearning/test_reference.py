"""NPO's trap, and its reference: computed once, cached by content, no second model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.unlearning.core import reference
from lit_modules.unlearning.core.losses import scored_logits, sequence_nll
from lit_modules.unlearning.core.pretrained import model_hash
from lit_modules.unlearning.core.reference import row_hashes
from lit_modules.unlearning.npo import NPO, npo_loss
from tests.unlearning.conftest import Optimizer, adamw, lora


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each forward pass of the reference."""
    rows: list[int] = []

    log_probs = reference.sequence_log_probs

    def count(model: Any, batch: Any) -> Tensor:
        rows.append(len(batch["labels"]))
        return log_probs(model, batch)

    monkeypatch.setattr(reference, "sequence_log_probs", count)
    return rows


def shifted_logits(network: Any) -> Any:
    """A network whose logits are larger by 3 at every token, which says the same."""
    forward = network.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + 3.0
        return output

    network.forward = shifted
    return network


def raw_logit_ratio(network: Any, before: Any, batch: Any) -> Tensor:
    """The ratio of the trap: differences of the labels' raw logits."""
    sums = torch.zeros(len(batch["labels"]))
    for sign, model in ((1, network), (-1, before)):
        logits, labels, rows = scored_logits(model, batch)
        sums = sums.index_add(0, rows, sign * logits.gather(1, labels[:, None])[:, 0])
    return sums


def test_trap_the_ratio_is_of_log_probabilities_and_not_of_logits(bench: Any, sgd: Optimizer) -> None:
    before, same = bench.network(), shifted_logits(bench.network())
    honest = sequence_nll(before, bench.forget)[0] - sequence_nll(same, bench.forget)[0]
    torch.testing.assert_close(honest, torch.zeros(24), atol=1e-4, rtol=0)
    assert raw_logit_ratio(same, before, bench.forget).min() > 3  # the trap takes the same model for another
    # the module's loss of a model that says the same as the reference is that of the reference
    module = NPO(bench.network(), optimizer=sgd)
    bench.fit(module, bench.pairs(24), max_steps=1)
    module.model.load_state_dict(before.state_dict())
    shifted_logits(module.model)
    with torch.no_grad():
        loss = module.forget_objective(bench.pairs(24)[0]) / 24
    assert loss.item() == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert npo_loss(raw_logit_ratio(same, before, bench.forget), 0.1).mean() > 1.05 * loss


def test_forget_loss_rises_and_ascent_fades(bench: Any) -> None:
    module = NPO(bench.network(), beta=1.0, optimizer=adamw)
    trainer = bench.fit(module, bench.pairs(24) * 40)
    assert float(trainer.callback_metrics["train/forget_loss"]) > math.log(64) + 0.3
    assert float(trainer.callback_metrics["train/retain_loss"]) < math.log(64) - 0.5
    assert float(trainer.callback_metrics["train/forget_objective"]) < 2 * math.log(2)


def test_reference_is_computed_once_and_shared_by_runs(bench: Any, tmp_path: Path, counted: list[int]) -> None:
    def run(seed: int = 0, **arguments: Any) -> Tensor:
        network = bench.network(seed)
        network.config.attention_dropout = 0.5
        bench.fit(NPO(network, cache_dir=str(tmp_path / "cache"), **arguments), bench.pairs(8), max_epochs=2)
        return torch.cat([bench.vector(network), torch.get_rng_state()])

    first = run()
    assert torch.equal(run(), first)  # from the cache; computing it has left the random state alone
    run(peft_config=lora(init_lora_weights=False))  # the model beneath is the same
    assert sum(counted) == 24
    (file,) = (tmp_path / "cache").iterdir()
    content = json.loads(file.read_text(encoding="utf-8"))
    network = bench.network()
    network.config.attention_dropout = 0.5
    assert file.stem == content["model"] == model_hash(network, "32-true")
    expected = -sequence_nll(bench.network(), bench.forget)[0]
    cached = [content["rows"][row] for row in row_hashes(bench.forget)]
    torch.testing.assert_close(torch.tensor(cached), expected.detach(), atol=1e-4, rtol=0)
    run(seed=5)
    assert sum(counted) == 48  # another model, another file
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_row_that_comes_too_late_is_named_and_adapters_take_it(bench: Any) -> None:
    late = {key: value[:8] for key, value in bench.retain.items()}
    module = NPO(bench.network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    bench.fit(module, bench.pairs(8))
    assert module._moved
    with pytest.raises(ValueError, match="The row row-2-0 is not among those that NPO saw before the first step"):
        module.log_ratios(late)
    module = NPO(bench.network(), peft_config=lora(init_lora_weights=False))
    bench.fit(module, bench.pairs(8))
    expected = -sequence_nll(bench.network(), late)[0]
    torch.testing.assert_close(module.reference_log_probs(late).float(), expected.detach(), atol=1e-4, rtol=0)


def test_padding_does_not_change_a_row_and_content_does(bench: Any) -> None:
    task = {key: value[:2] for key, value in bench.forget.items()}
    pad = {
        key: torch.nn.functional.pad(task[key], (0, 3), value=fill)
        for key, fill in (("input_ids", 7), ("attention_mask", 0), ("labels", -100))
    }
    assert row_hashes(pad) == row_hashes(task)
    other = task["labels"].clone()
    other[0, 4] = -100
    assert row_hashes({**task, "labels": other})[0] != row_hashes(task)[0]
    assert row_hashes({**task, "labels": other})[1] == row_hashes(task)[1]


def test_model_hash_knows_weights_configuration_and_precision(bench: Any) -> None:
    network = bench.network()
    first = model_hash(network)
    assert first == model_hash(bench.network())
    assert first != model_hash(network, "bf16-mixed")
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] += 1e-6
    assert first != model_hash(network)
    scaled = bench.network()
    scaled.register_buffer("scales", torch.ones(3))  # as quantised weights have them
    third = model_hash(scaled)
    scaled.scales[1] = 2
    assert model_hash(scaled) != third
    assert model_hash(bench.network().bfloat16()) != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "%s", "rows": {}}' % ("f" * 64), r"made by the model ffffffffffff, and this run starts from the"),
        ("[1, 2", "delete it, and the run makes it anew"),
    ],
)
def test_broken_and_foreign_caches_are_refused_and_left_alone(
    text: str, message: str, bench: Any, tmp_path: Path
) -> None:
    network = bench.network()
    file = tmp_path / f"{model_hash(network, '32-true')}.json"
    file.write_text(text, encoding="utf-8")
    before = bench.vector(network).clone()
    with pytest.raises(ValueError, match=message):
        bench.fit(NPO(network, cache_dir=str(tmp_path)), bench.pairs(8))
    assert torch.equal(bench.vector(network), before)
    assert file.read_text(encoding="utf-8") == text
