"""AltPO: its loss against the peer's numbers, and alternates that are drawn once, kept and gone through."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.unlearning.altpo import AltPO, altpo_loss
from lit_modules.unlearning.core import alternates as alternates_module
from lit_modules.unlearning.core.alternates import INSTRUCTION, OPENING, Alternates
from lit_modules.unlearning.core.generation import sample
from lit_modules.unlearning.core.losses import sequence_nll
from tests.unlearning.conftest import Optimizer, gradient_of, lora, mean_nll

SETTINGS: dict[str, Any] = {
    "instruction": INSTRUCTION,
    "opening": OPENING,
    "chat": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 5,
    "seed": 0,
    "separator": " ",
}


class Table(nn.Module):
    """Logits that depend on the token before alone, the same on every machine."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        rows = [[((factor * i + 3 * j) % 11) / 5 - 1 for j in range(6)] for i in range(6)]
        self.table = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def task(ids: list[list[int]], starts: list[int]) -> dict[str, Any]:
    """Return rows whose tokens from ``starts`` on are scored."""
    tokens = torch.tensor(ids)
    labels = tokens.masked_fill(torch.arange(tokens.shape[1]) < torch.tensor(starts)[:, None], -100)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


@pytest.mark.parametrize(
    ("beta", "loss", "gradient"),
    [
        (0.1, 13.657992171677753, [0.5, 0.0, 0.489646694, 0.0, -0.5, -0.489646694]),
        (0.5, 2.576196057101283, [0.5, 0.0, 0.448410323, 0.0, -0.5, -0.448410323]),
        (2.0, 0.5277671409677882, [0.5, 0.0, 0.303987112, 0.0, -0.5, -0.303987112]),
    ],
)
def test_loss_and_gradient_are_the_peers(beta: float, loss: float, gradient: list[float]) -> None:
    """Numbers of ``compute_dpo_loss`` of open-unlearning at d3d7cf9, on the same logits."""
    network, reference = Table(7), Table(4)
    answers, alternate = task([[1, 2, 3, 4], [5, 1, 0, 2]], [1, 2]), task([[1, 5, 0], [5, 1, 4]], [1, 2])
    chosen, rejected = (
        sequence_nll(reference, rows)[0].detach() - sequence_nll(network, rows)[0] for rows in (alternate, answers)
    )
    result = altpo_loss(chosen, rejected, beta).mean()
    assert result.item() == pytest.approx(loss, abs=1e-9)
    torch.autograd.backward(result)
    assert network.table.grad is not None
    assert network.table.grad[1].tolist() == pytest.approx(gradient, abs=1e-7)


def some(bench: Any, network: Any, **arguments: Any) -> Any:
    return bench.build(AltPO, network, **{"max_alternate_tokens": 6} | arguments)


def other_answers(bench: Any) -> dict[str, Any]:
    """Return the forget rows with the answers of others."""
    ids, labels = bench.forget["input_ids"].clone(), bench.forget["labels"]
    ids[labels.ne(-100)] = ids[labels.ne(-100)].flip(0)
    return {**bench.forget, "input_ids": ids, "labels": ids.masked_fill(labels.eq(-100), -100)}


def test_step_is_the_formulas(bench: Any, sgd: Optimizer) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    pair = {**pair, "alternate": other_answers(bench)}
    # at the reference the gradient of the preference is that of half of both sums
    sums = sequence_nll(network, pair["alternate"])[0] - sequence_nll(network, pair["forget"])[0]
    expected = gradient_of(network, sums.mean()) + 2.0 * gradient_of(network, mean_nll(network, pair["retain"]))
    module = AltPO(bench.network(), retain_weight=2.0, optimizer=sgd)  # needs no tokenizer
    torch.testing.assert_close(bench.change(module, [pair]), -0.01 * expected, atol=2e-7, rtol=1e-4)
    short = {key: value[:3] for key, value in bench.forget.items()}
    with pytest.raises(ValueError, match=r"for each of its 24 forget rows, got 3 in 'alternate'\."):
        bench.fit(AltPO(bench.network()), [{**pair, "alternate": short}])


def test_alternates_become_likely_and_answers_unlikely(bench: Any) -> None:
    network, alternate = bench.network(), other_answers(bench)
    before = [mean_nll(network, rows).item() for rows in (alternate, bench.forget)]
    bench.fit(some(bench, network), [{**pair, "alternate": alternate} for pair in bench.pairs(24)] * 10)
    after = [mean_nll(network, rows).item() for rows in (alternate, bench.forget)]
    assert after[0] < before[0] - 0.3
    assert after[1] > after[0] + 0.3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that a model was asked to go on from."""
    texts: list[str] = []
    draw = AltPO.sample_alternates

    def count(module: AltPO, text: str, seed: int) -> list[str]:
        texts.append(text)
        return draw(module, text, seed)

    monkeypatch.setattr(AltPO, "sample_alternates", count)
    return texts


def test_alternates_are_drawn_once_and_shared(bench: Any, tmp_path: Path, asked: list[str]) -> None:
    def run(size: int = 8, seed: int = 0, folder: str = "cache", **arguments: Any) -> Any:
        module = some(bench, bench.network(seed), cache_dir=str(tmp_path / folder), num_alternates=2, **arguments)
        warning = pytest.warns(UserWarning, match=r"of \d+ alternates are empty or repeat the answer")
        with warning if new else nullcontext():
            bench.fit(module, bench.pairs(size), max_epochs=2)
        return module

    new = True
    first = run()
    number = len(asked)
    assert 1 < number == len(set(asked)) <= 24
    assert all(len(texts) == 2 for texts in first.alternates.drawn.values())
    new = False
    again = run()
    assert len(asked) == number
    assert torch.equal(bench.vector(first.model), bench.vector(again.model))
    run(peft_config=lora(init_lora_weights=False))  # the model beneath is the same
    assert len(asked) == number
    new = True
    assert run(size=3, seed=5).alternates.drawn != first.alternates.drawn  # another model
    assert len(asked) == 2 * number
    other = run(size=24, folder="other")
    assert other.alternates.drawn == first.alternates.drawn  # in any order, and in batches of any size
    files = sorted((tmp_path / "cache").glob("alternates-*.json"))
    assert len(files) == 2
    assert first.alternates.drawn in [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_a_killed_run_goes_on_with_what_it_has_drawn(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternates_module, "BETWEEN_SAVES", 4)
    batch = {"forget": {"question": [f"Who {i}?" for i in range(10)], "answer": ["Ada"] * 10}}
    seen: list[str] = []

    def sampler(limit: int) -> Callable[[str, int], list[str]]:
        def draw(text: str, seed: int) -> list[str]:
            if len(seen) == limit:
                raise KeyboardInterrupt
            seen.append(text)
            return [f"{seed} Question: more", "Ada"]

        return draw

    def opened() -> Alternates:
        alternates = Alternates(2, **SETTINGS)
        alternates.open(tmp_path, "model")
        return alternates

    with pytest.raises(KeyboardInterrupt):
        opened().draw(batch, bench.tokenizer(), sampler(7))
    alternates = opened()
    assert len(alternates.drawn) == 4  # of the seven
    assert alternates.draw(batch, bench.tokenizer(), sampler(100)) == 6
    alternates.save()
    assert alternates.useless == 6  # each second one is the answer
    assert len(opened().drawn) == 10
    assert seen[0] == INSTRUCTION.replace("{question}", "Who 0?").replace("{answer}", "Ada") + OPENING
    assert all(first.isdigit() for first, _ in alternates.drawn.values())  # cut at the next question
    assert opened().draw(batch, bench.tokenizer(), sampler(0)) == 0
    other = Alternates(2, **SETTINGS | {"temperature": 0.5})
    other.open(tmp_path, "model")
    assert other.drawn == {}
    (file,) = tmp_path.glob("alternates-*.json")
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"must hold \{hash: .*delete it, and the run makes it anew"):
        opened()


def test_rows_end_with_the_end_and_epochs_go_through_the_alternates(bench: Any) -> None:
    seen: list[tuple[int, list[list[int]]]] = []

    class Watched(AltPO):
        def log_ratios(self, rows: Any) -> Any:
            if not torch.equal(rows["input_ids"], bench.forget["input_ids"]):
                seen.append((self.current_epoch, rows["labels"].tolist()))
            return super().log_ratios(rows)

    module = Watched(bench.network(), tokenizer=bench.tokenizer(), num_alternates=3, max_alternate_tokens=6)
    bench.fit(module, bench.pairs(24), max_epochs=4)
    own = module.alternates.tasks(bench.pairs(24)[0], bench.tokenizer)
    expected = [rows["labels"].tolist() for rows in own]
    assert len({str(labels) for labels in expected}) == 3
    assert seen == [(epoch, expected[epoch % 3]) for epoch in range(4)]
    ends = [rows["labels"][i][rows["labels"][i].ne(-100)][-1].item() for rows in own for i in range(24)]
    assert set(ends) == {bench.tokenizer().eos_token_id}


def test_questions_of_the_data_and_chat_templates(bench: Any) -> None:
    tokenizer, texts = bench.tokenizer(), []
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    batch = {"forget": {**bench.forget, "question": ["Who?"] * 24, "answer": ["I"] * 24}}
    settings = SETTINGS | {"chat": True, "instruction": "{question} not {answer}", "opening": "Say:"}
    Alternates(1, **settings).draw(batch, tokenizer, lambda text, seed: [texts.append(text) or "do"])  # type: ignore[func-returns-value]
    assert texts == ["<user>Who? not I<assistant>Say:"]


def test_samples_are_of_the_seed_and_end(bench: Any) -> None:
    network = bench.network()
    prompt = torch.tensor([3, 4])

    def draw(**options: Any) -> list[list[int]]:
        torch.manual_seed(1)
        arguments: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": 0, "pad_token_id": 0} | options
        return [row.tolist() for row in sample(network, prompt, 40, **arguments)]

    first = draw()
    assert first == draw()
    assert len({str(row) for row in first}) > 30
    assert any(len(row) < 9 for row in first)
    assert all(0 not in row for row in first)
    assert len({str(row) for row in draw(temperature=1e-6)}) == 1  # the most probable
    assert network.training
    with pytest.raises(ValueError, match="The model has 512 positions, and the prompt of row 0 has 600 tokens"):
        sample(network, torch.ones(600, dtype=torch.int64), 1, max_new_tokens=1, eos_token_id=None, pad_token_id=0)
    with pytest.raises(ValueError, match="drawn by transformers' generate, which Table lacks"):
        sample(Table(7), prompt, 1, max_new_tokens=1, eos_token_id=None, pad_token_id=0)


def test_rows_that_come_too_late_are_named(bench: Any) -> None:
    module = some(bench, bench.network())
    bench.fit(module, bench.pairs(24))
    late = {**bench.retain, "question": ["Who?"] * 24, "answer": ["I"] * 24}
    with pytest.raises(ValueError, match="The row row-2-0 has no alternate answers: it is not among those"):
        module.compared({"forget": late})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"num_alternates": 0}, "num_alternates must be at least 1, got 0"),
        ({"max_alternate_tokens": 0}, "max_alternate_tokens must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"top_p": 1.5}, r"top_p must be a share in \(0, 1\], got 1.5"),
        ({"instruction": "{question}"}, "instruction must hold {answer}, got '{question}'"),
    ],
)
def test_absurd_arguments_are_refused(arguments: dict[str, Any], message: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=message):
        AltPO(bench.network(), **arguments)
