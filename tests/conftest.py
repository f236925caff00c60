"""Fixtures of all tests: no network, the real data if it is there, a tiny language model."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports huggingface_hub, which reads it once
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.tiny_pipelines"]


# a background job of a shell is told to ignore interrupts, which some tests send
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Give signals their handlers back: Lightning lets a process that was interrupted ignore further Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None:  # else it is none of Python's
            signal.signal(number, handler)


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as its ``offline`` mode has it, which writes files and needs no network."""
    import wandb

    wandb.teardown()  # what the process has begun before keeps the mode that it began in
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data: ``LIT_MODULES_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("LIT_MODULES_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; LIT_MODULES_DATA names its folder")
    return folder


@pytest.fixture(scope="session")
def lume_folder() -> Path:
    """A few invented rows of the three tasks and both kinds."""
    return ROOT / "tests" / "data" / "lume"


@pytest.fixture(scope="session")
def tiny_causal_lm(tmp_path_factory: pytest.TempPathFactory, lume_folder: Path) -> Path:
    """Folder of a Llama of one layer with the tokenizer that belongs to it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(lume_folder / "retain.jsonl").read_text(encoding="utf-8")], trainer)
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quiet() -> list[str]:
    """Arguments of a run on the CPU, in this process, that prints little."""
    quiet = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    return [*quiet, "--trainer.enable_model_summary=false", "--data.num_workers=0"]


@pytest.fixture
def ngdiff(
    quiet: list[str], tiny_causal_lm: Path, lume_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Arguments that train a tiny model on a few rows, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--model=NGDiff", f"--model.model={tiny_causal_lm}", "--model.max_new_tokens=2"]
    arguments += ["--data=LUME", f"--data.root={lume_folder}", "--data.batch_size=4"]
    return [*arguments, *quiet, f"--trainer.default_root_dir={tmp_path}"]


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what `two_processes.py` did: the result of rank 0 in 0.pt, of rank 1 in 1.pt."""
    folder = tmp_path_factory.mktemp("two-processes")
    run_in_two_processes(ROOT / "tests" / "two_processes.py", folder)
    return folder


def run_in_two_processes(script: Path, folder: Path) -> None:
    """Run a script as rank 0 and rank 1 of a group of processes on this machine, with a folder as its argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "NODE_"))}
    environment |= {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    try:
        for rank in range(2):
            # a file: a pipe that is not read would fill up and hold its process, and with it the other
            with (folder / f"{rank}.log").open("w") as log:
                command, output = [sys.executable, str(script), str(folder)], {"stdout": log, "stderr": log}
                ranks.append(subprocess.Popen(command, env=environment | {"LOCAL_RANK": str(rank)}, **output))
        for rank, process in enumerate(ranks):
            assert process.wait(timeout=600) == 0, (folder / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
