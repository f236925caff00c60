"""Rows that decline to answer, and the two methods that train on them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.refusals import REFUSALS, Refusals, read_refusals, refusal_rows
from lit_modules.unlearning.dpo import DPO
from lit_modules.unlearning.idk import IDK

SENTENCES = ("I do not know.", "I cannot say.")


def test_prompts_stay_and_answers_are_refusals(bench: Any) -> None:
    tokenizer = bench.tokenizer()
    task = bench.forget
    rows = refusal_rows(task, tokenizer, SENTENCES)
    seen = set()
    for row in range(24):
        length = 2 + row % 5
        assert rows["input_ids"][row, :length].tolist() == task["input_ids"][row, :length].tolist()
        assert rows["labels"][row, :length].eq(-100).all()
        end = int(rows["attention_mask"][row].sum())
        answer = rows["labels"][row, length:end].tolist()
        assert answer == rows["input_ids"][row, length:end].tolist()
        assert answer[-1] == tokenizer.eos_token_id
        assert rows["labels"][row, end:].eq(-100).all()
        seen.add(tokenizer.decode(answer[:-1]))
    assert seen == {"I do not know .", "I cannot say ."}
    assert rows["id"] == task["id"]
    # the draw belongs to the row, whatever its place in a batch
    second = refusal_rows({key: value[5:9] for key, value in task.items()}, tokenizer, SENTENCES)
    width = second["labels"].shape[1]
    assert second["labels"].tolist() == rows["labels"][5:9, :width].tolist()
    assert refusal_rows(task, tokenizer, SENTENCES, seed=1)["labels"].tolist() != rows["labels"].tolist()


def test_idk_loss_is_that_of_the_refusals(bench: Any) -> None:
    network = bench.network()
    module = IDK(network, tokenizer=bench.tokenizer(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = bench.fit(module, bench.pairs(24))
    rows = refusal_rows(bench.forget, bench.tokenizer(), REFUSALS)
    expected = summed_nll(network, rows) / target_tokens(rows)
    assert float(trainer.callback_metrics["train/forget_objective"]) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("method", [IDK, DPO])
def test_refusals_of_the_data_go_first(method: Any, bench: Any, tmp_path: Path) -> None:
    own = refusal_rows(bench.forget, bench.tokenizer(), SENTENCES[:1])
    batches = [{**batch, "idk": own} for batch in bench.pairs(24)]

    def objective(data: list[Any], **arguments: Any) -> float:
        arguments |= {"tokenizer": bench.tokenizer(), "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
        trainer = bench.fit(method(bench.network(), **arguments), data * 2)
        return float(trainer.callback_metrics["train/forget_objective"])

    file = tmp_path / "idk.txt"
    file.write_text(SENTENCES[0], encoding="utf-8")
    of_data = objective(batches)
    assert of_data == pytest.approx(objective(bench.pairs(24), refusals=str(file)), rel=1e-5)
    assert of_data != pytest.approx(objective(bench.pairs(24)), rel=1e-5)
    file.write_text(SENTENCES[1], encoding="utf-8")
    assert of_data != pytest.approx(objective(batches, refusals=str(file)), rel=1e-5)  # what the module is given


@pytest.mark.parametrize("method", [IDK, DPO])
def test_refusals_become_likely(method: Any, bench: Any) -> None:
    network = bench.network()
    rows = refusal_rows(bench.forget, bench.tokenizer(), REFUSALS)
    before = summed_nll(network, rows).item()
    bench.fit(bench.build(method, network), bench.pairs(24) * 4)
    assert summed_nll(network, rows).item() < before


def test_files_of_refusals(tmp_path: Path) -> None:
    file = tmp_path / "idk.jsonl"
    file.write_text('\nI do not know.\n"I cannot say."\n"odd\n', encoding="utf-8")
    assert read_refusals(str(file)) == ("I do not know.", "I cannot say.", '"odd')
    assert Refusals(None).sentences == REFUSALS
    file.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold at least one refusal, one per line, and is empty"):
        read_refusals(str(file))
    with pytest.raises(FileNotFoundError, match=r"There is no file of refusals 'nowhere\.jsonl'; give a text file"):
        read_refusals("nowhere.jsonl")


def test_rows_that_cannot_be_refused_are_named(bench: Any) -> None:
    bare, short = bench.tokenizer(), {key: value[:3] for key, value in bench.forget.items()}
    bare.eos_token = None
    whole = {**bench.forget, "labels": bench.forget["input_ids"]}
    for batch, tokenizer, message in (
        ({"forget": whole}, bench.tokenizer(), "The forget row row-1-0 has no prompt before its first scored token"),
        ({"forget": bench.forget}, bare, "has no end-of-sequence token, with which refusals must end"),
        ({"forget": bench.forget, "idk": short}, bare, r"for each of its 24 forget rows, got 3 in 'idk'\."),
    ):
        with pytest.raises(ValueError, match=message):
            Refusals(None).rows(batch, lambda tokenizer=tokenizer: tokenizer)


@pytest.mark.parametrize("method", [IDK, DPO])
def test_refusals_of_the_data_need_no_tokenizer(method: Any, bench: Any) -> None:
    own = refusal_rows(bench.forget, bench.tokenizer(), SENTENCES[:1])
    bench.fit(method(bench.network()), [{**batch, "idk": own} for batch in bench.pairs(24)])
    with pytest.raises(ValueError, match="No tokenizer lies beside the model"):
        bench.fit(method(bench.network()), bench.pairs(24))
