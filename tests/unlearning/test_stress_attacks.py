"""Relearning attack, quantization, the call of lm-eval."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_modules.metrics.harness import read_accuracies
from lit_modules.studies.stress.attacks import (
    harness_accuracies,
    lm_eval_command,
    load_quantized,
    relearn,
    round_weights,
    run_lm_eval,
    simulate_quantization_,
    write_quantized,
)
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.pretrained import load_causal_lm


def test_relearning_brings_the_loss_down(bench: Any) -> None:
    network = bench.network()
    before = bench.vector(network).clone()

    def evaluate(model: Any) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"nll": float(summed_nll(model, bench.forget) / target_tokens(bench.forget))}

    records = relearn(network, [bench.forget], evaluate, steps=(0, 2, 6), learning_rate=0.01)
    assert [record["step"] for record in records] == [0, 2, 6]
    assert "loss" not in records[0]
    assert records[0]["nll"] > records[1]["nll"] > records[2]["nll"]
    assert torch.equal(bench.vector(network), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": (2, 1)}, ValueError, "steps must be growing numbers"),
        ({"steps": ()}, ValueError, "steps must be growing numbers"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive, got 0"),
        ({"batches": []}, ValueError, "at least one batch"),
        ({"steps": (9,), "learning_rate": 1e30}, FloatingPointError, "relearning step"),
    ],
)
def test_bad_relearning_is_refused(arguments: Any, error: type[Exception], message: str, bench: Any) -> None:
    with pytest.raises(error, match=message):
        relearn(**({"model": bench.network(), "batches": [bench.forget], "evaluate": lambda model: {}} | arguments))


def test_rounding_by_hand_and_its_bound() -> None:
    assert round_weights(torch.tensor([[127.0, 1.4], [0.0, 0.0]]), 8).tolist() == [[127.0, 1.0], [0.0, 0.0]]
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in (4, 8):
        rounded = round_weights(weight, bits)
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((rounded - weight).abs() <= step / 2 + 1e-6).all()
        assert torch.allclose(round_weights(rounded, bits), rounded, atol=1e-6)
        assert max(len(row.unique()) for row in rounded) <= 2**bits - 1
        errors.append(float((rounded - weight).norm()))
    assert errors[0] > 5 * errors[1]
    with pytest.raises(ValueError, match="bits must be from 2 to 8, got 9"):
        round_weights(weight, 9)


def test_simulation_leaves_embeddings_alone(bench: Any) -> None:
    network = bench.network()
    embedding = network.get_input_embeddings().weight.detach().clone()
    names = simulate_quantization_(network, 4)
    assert len(names) == 7
    assert torch.equal(network.get_input_embeddings().weight, embedding)
    with pytest.raises(ValueError, match="no linear layer"):
        simulate_quantization_(nn.ReLU(), 4)


def test_a_quantised_folder_loads(tiny_causal_lm: Path, tmp_path: Path) -> None:
    write_quantized(str(tiny_causal_lm), str(tmp_path / "int4"), 4)
    loaded, expected = load_causal_lm(str(tmp_path / "int4")), load_quantized(str(tiny_causal_lm), 4)
    assert not expected.training
    for one, other in zip(loaded.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        load_quantized(str(tiny_causal_lm), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be"):
        load_quantized(str(tiny_causal_lm), 4, "other")  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_bitsandbytes_is_told(tiny_causal_lm: Path) -> None:
    with pytest.raises(ImportError, match=r'needs bitsandbytes: pip install "lit-modules\[quantization\]"'):
        load_quantized(str(tiny_causal_lm), 8, "bitsandbytes")


def test_the_command_of_lm_eval(tiny_causal_lm: Path, tmp_path: Path) -> None:
    command = lm_eval_command("m", ["mmlu", "arc_easy"], "out", num_fewshot=5, limit=2, device="cpu")
    assert command[command.index("--tasks") + 1] == "mmlu,arc_easy"
    assert command[-6:] == ["--num_fewshot", "5", "--limit", "2", "--device", "cpu"]
    with pytest.raises(ValueError, match="at least one task"):
        lm_eval_command("m", [], "out")
    if find_spec("lm_eval") is None:
        with pytest.raises(ImportError, match=r"lit-modules\[harness\]"):
            run_lm_eval(str(tiny_causal_lm), ["mmlu"], str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_asks_the_questions_of_wmdp(
    tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the hub's questions cannot be had offline; a folder of their name, with the same columns, takes their place
    folder = tmp_path / "cais" / "wmdp"
    folder.mkdir(parents=True)
    rows = [{"question": f"Is it {n}?", "choices": ["a", "b", "c", "d"], "answer": n} for n in range(4)]
    configs = []
    for topic in ("bio", "cyber"):
        (folder / f"{topic}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        configs.append(f"- config_name: wmdp-{topic}\n  data_files:\n  - split: test\n    path: {topic}.jsonl")
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks, output = ["wmdp_bio", "wmdp_cyber"], tmp_path / "harness"
    accuracies = harness_accuracies(str(tiny_causal_lm), tasks, output, batch_size=4, device="cpu")
    assert accuracies == {f"harness/{task}": pytest.approx(0.25) for task in tasks}  # the same letter to all
    assert read_accuracies(output, tasks) == {task: accuracies[f"harness/{task}"] for task in tasks}
