"""Two gloo processes that share a network's weights by FSDP2 equal one process."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_modules.unlearning.core.memory import step_memory
from tests.conftest import run_in_two_processes

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.slow
SCRIPT = runpy.run_path(str(HERE / "two_shards.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-shards")
    run_in_two_processes(HERE / "two_shards.py", folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("case", SCRIPT["CASES"])
@pytest.mark.filterwarnings("ignore:clip_norm=0.5 shortens")
def test_trajectory_on_shards_is_that_of_one_process(case: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    first, second = (rank[case] for rank in ranks)
    one = SCRIPT["train"](folder, 1, case)
    assert one["steps"] == first["steps"] == second["steps"] == 2
    assert one["shards"] == 0
    assert first["shards"] == second["shards"] == one["parameters"]
    if case == "NGDiff":
        assert first["bytes"] == step_memory(SCRIPT["tiny"](), devices=2).weights < one["bytes"]
    assert apart(first["weights"], second["weights"]) == 0
    assert apart(first["weights"], one["weights"]) < 1e-7
    start = SCRIPT["tiny"]().state_dict()
    moved = {name: weight for name, weight in one["weights"].items() if "lora" in name or name in start}
    assert any("lora" in name or float((weight - start[name]).abs().max()) > 1e-4 for name, weight in moved.items())
    assert first["logged"] == pytest.approx(one["logged"], rel=1e-4)


def test_rate_adapts_on_shards_as_on_one_process(ranks: list[dict[str, Any]], folder: Path) -> None:
    one = SCRIPT["adapt"](folder, 1)
    for found in (rank[name] for rank in ranks for name in ("adaptive", "adaptive-holding")):
        assert found["probes"] == one["probes"] == 4
        assert found["accepted"] == one["accepted"] >= 1
        assert found["rate"] == pytest.approx(one["rate"], rel=1e-6)
        assert found["rate"] > 0.03
        assert apart(found["weights"], one["weights"]) < 1e-4


def test_rejected_probe_on_shards_leaves_no_trace(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert apart(rank["rejected"], rank["plain"]) == 0
        assert apart(rank["adaptive"]["weights"], rank["plain"]) > 1e-4


@pytest.mark.parametrize("case", ["resumed", "resumed-lora"])
def test_stopped_and_resumed_run_on_shards_equals_the_whole(case: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert apart(*rank[case]) == 0


def test_validation_generation_and_saving_on_shards(ranks: list[dict[str, Any]], folder: Path) -> None:
    one = SCRIPT["evaluate"](folder, 1)
    for rank in ranks:
        found = rank["evaluated"]
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert found["record"]["forget-set"] == one["record"]["forget-set"]
        assert found["record"]["mia_loss_acc"] == one["record"]["mia_loss_acc"]
        assert found["answer"] == one["answer"]
    saved, expected = (AutoModelForCausalLM.from_pretrained(folder / f"out-{n}").state_dict() for n in (2, 1))
    assert apart(saved, expected) < 1e-7
    config = json.loads((folder / "out-2" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (folder / "out-2" / "tokenizer.json").is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_norms_of_shards_take_one_reduction_each(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for values, whole, reductions in (rank["numbers"][name] for name in ("norm", "both")):
            assert values == pytest.approx(whole, rel=1e-5)
            assert reductions == 1
        assert rank["numbers"]["apart"] < 1e-7


def test_inference_mode_before_training_does_no_harm(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["inferred"] == ranks[1]["inferred"] > 0


@pytest.mark.parametrize(
    ("case", "kept"), [("half", ["torch.float32"]), ("half-lora", ["torch.bfloat16", "torch.float32"])]
)
def test_mixed_precision_gathers_in_bfloat16(
    case: str, kept: list[str], ranks: list[dict[str, Any]], folder: Path
) -> None:
    one = SCRIPT["half"](folder, 1, "lora" in case)
    for rank in ranks:
        assert rank[case]["kept"] == kept
        assert rank[case]["computed"] == ["torch.bfloat16"]
        assert apart(rank[case]["weights"], one["weights"]) < 2e-3


def test_what_cannot_run_on_shards_is_refused_in_a_sentence(ranks: list[dict[str, Any]], folder: Path) -> None:
    for rank in ranks:
        found = rank["refused"]
        assert "NPO needs its weights whole, which ModelParallelStrategy shards; use strategy 'ddp'." in found["method"]
        assert "NGDiff(compile=True) was not tried under ModelParallelStrategy" in found["compile"]
        assert "give ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)" in found["tensor"]
        assert "merge them on one device" in found["merge"]
        assert "forget loss is nan at step 1" in found["broken"]
        assert "the state before this step is in" in found["broken"]
    assert (folder / "last_good_step_1.ckpt").is_dir()
