"""Attacks on an unlearned model: relearning and quantization; and its evaluation by lm-eval."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lit_modules.metrics.harness import accuracy_of, read_accuracies, read_results
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.pretrained import check_folder, load_causal_lm
from lit_modules.utils import adapters
from lit_modules.utils.model_modes import evaluation_mode

Evaluate = Callable[[Any], Mapping[str, float]]


def relearn(
    model: str | PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    evaluate: Evaluate,
    steps: Sequence[int] = (0, 1, 2, 5, 10),
    learning_rate: float = 1e-5,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Relearning attack: fine-tune an unlearned model on its forget set, and measure how fast that comes back.

    Knowledge that is hidden and not gone returns within a few steps. AdamW without weight decay, at a constant rate.

    Args:
        model: Model, of which a copy is trained; or the folder that ``save_pretrained`` wrote. Adapters are merged.
        batches: Tasks of the forget set, or of a part of it, as a datamodule with ``subset="forget"`` gives them;
            gone through again and again.
        evaluate: Turns the model, in evaluation mode and without gradients, into numbers.
        steps: Numbers of steps after which to measure, growing; 0 is the model as it was.
        learning_rate: Learning rate.
        device: Where to run, such as ``"cuda:0"``.

    Returns:
        For each of ``steps`` a record of ``step``, the numbers of ``evaluate`` and, but for step 0, ``loss``, the mean
        token NLL of the last batch in nats before its step.

    Raises:
        ValueError: If ``steps`` or ``learning_rate`` are out of their range, or there is no batch.
        FloatingPointError: If the loss of a step is not finite.

    References:
        Hu et al., "Jogging the Memory of Unlearned Models Through Targeted Relearning Attacks", arXiv 2406.13356.
    """
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"steps must be growing numbers of at least 0, got {list(steps)}.")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    forget = list(batches)
    if not forget:
        raise ValueError("Relearning needs at least one batch of the forget set, got none.")
    if isinstance(model, str):
        network: Any = load_causal_lm(model)
    else:
        adapted = adapters.own_config(model) is not None
        network = adapters.merged(model).requires_grad_(True) if adapted else copy.deepcopy(model)
    network.to(device).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    records: list[dict[str, float]] = []
    if steps[0] == 0:
        records.append({"step": 0, **_evaluated(network, evaluate)})
    for step, batch in zip(range(1, steps[-1] + 1), cycle(forget), strict=False):
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        loss = summed_nll(network, inputs) / target_tokens(inputs)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss of relearning step {step} is {loss.item()}; lower learning_rate.")
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step in steps:
            records.append({"step": step, "loss": loss.item(), **_evaluated(network, evaluate)})
    return records


def round_weights(weight: Tensor, bits: int) -> Tensor:
    """Return a weight as it is after rounding to the nearest of ``2^bits - 1`` values and back.

    Symmetric, weight only, per output channel: with ``q = 2^(bits - 1) - 1`` the scale of a row is its largest absolute
    value over ``q``.

    Args:
        weight: Weight of a linear layer, ``(out, in)``.
        bits: Bits of a weight, from 2 to 8.

    Raises:
        ValueError: If ``bits`` is out of its range.

    Example:
        >>> round_weights(torch.tensor([[7.0, 3.4, -1.6]]), bits=4).tolist()
        [[7.0, 3.0, -2.0]]
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be from 2 to 8, got {bits}.")
    largest = 2 ** (bits - 1) - 1
    values = weight.detach().float()
    scale = values.abs().amax(dim=1, keepdim=True) / largest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros stays one
    return ((values / scale).round().clamp(-largest, largest) * scale).to(weight.dtype)


def simulate_quantization_(model: nn.Module, bits: int, skip: Sequence[str] = ("lm_head",)) -> list[str]:
    """Round the weights of the linear layers in place; a simulation that runs anywhere and saves no memory.

    Args:
        model: Model.
        bits: Bits of a weight, from 2 to 8.
        skip: Layers to leave as they are, by the last part of their name; output embeddings, as libraries do.

    Returns:
        Names of the rounded layers.

    Raises:
        ValueError: If ``bits`` is out of its range, or no layer is left.
    """
    layers = _linear_layers(model, skip)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(round_weights(layer.weight, bits))
    return list(layers)


def prune_(model: nn.Module, share: float, skip: Sequence[str] = ("lm_head",)) -> list[str]:
    """Set the smallest weights of each linear layer to 0, in place.

    Args:
        model: Model.
        share: Share of a layer's weights, those of the least absolute value.
        skip: Layers to leave as they are, by the last part of their name; output embeddings, as libraries do.

    Returns:
        Names of the pruned layers.

    Raises:
        ValueError: If ``share`` is out of its range, or no layer is left.

    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> _ = layer[0].weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0, -4.0]]))
        >>> prune_(layer, 0.5), layer[0].weight.tolist()
        (['0'], [[3.0, 0.0, 0.0, -4.0]])
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}.")
    layers = _linear_layers(model, skip)
    with torch.no_grad():
        for layer in layers.values():
            count = int(share * layer.weight.numel())
            if count:
                sizes = layer.weight.abs().flatten()
                smallest = sizes.topk(count, largest=False).indices
                layer.weight.view(-1)[smallest] = 0.0
    return list(layers)


def load_quantized(
    folder: str, bits: Literal[4, 8], backend: Literal["simulated", "bitsandbytes"] = "simulated"
) -> PreTrainedModel:
    """Load an unlearned model with its weights in fewer bits, which may bring back what it had forgotten.

    Args:
        folder: Folder that ``save_pretrained`` wrote; ``"simulated"`` merges adapters before it rounds.
        bits: 4 or 8.
        backend: ``"simulated"`` rounds to the nearest value per channel, in float32 on any device
            (:func:`simulate_quantization_`); ``"bitsandbytes"`` computes in LLM.int8 or NF4 on a GPU.

    Raises:
        ValueError: If ``bits`` or ``backend`` is unknown, or the folder holds no causal language model.
        ImportError: If bitsandbytes is not installed.

    References:
        Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", arXiv 2410.16454.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}.")
    if backend not in ("simulated", "bitsandbytes"):
        raise ValueError(f"backend must be 'simulated' or 'bitsandbytes', got {backend!r}.")
    if backend == "simulated":
        model: Any = load_causal_lm(folder)
        simulate_quantization_(model, bits)
        return cast("PreTrainedModel", model.eval())
    if find_spec("bitsandbytes") is None:
        needed = "backend='bitsandbytes' needs bitsandbytes: pip install \"lit-modules[quantization]\""
        raise ImportError(f"{needed}; 'simulated' runs without it.")
    from transformers import BitsAndBytesConfig

    check_folder(folder)
    if adapters.saved_config(folder) is not None:
        raise ValueError(
            f"backend='bitsandbytes' would round the base of the adapter in {folder!r} without it; save the model with "
            "merge=True, or take 'simulated', which merges first."
        )
    nf4: Any = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    config = BitsAndBytesConfig(**(nf4 if bits == 4 else {"load_in_8bit": True}))  # type: ignore[no-untyped-call]
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    return cast("PreTrainedModel", loaded.eval())


def write_quantized(folder: str, target: str, bits: Literal[4, 8]) -> None:
    """Write a model with simulated quantization, and its tokenizer, as a folder that ``lit-modules test`` takes.

    Args:
        folder: Folder that ``save_pretrained`` wrote, with the tokenizer.
        target: Folder to write to.
        bits: 4 or 8.

    Raises:
        ValueError: If ``bits`` is unknown, or the folder holds no causal language model.
    """
    load_quantized(folder, bits).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)


def write_pruned(folder: str, target: str, share: float) -> None:
    """Write a model with a share of its weights pruned, and its tokenizer, as a folder that ``lit-modules test`` takes.

    Args:
        folder: Folder that ``save_pretrained`` wrote, with the tokenizer; adapters are merged.
        target: Folder to write to.
        share: Share of each linear layer's weights to set to 0; see :func:`prune_`.

    Raises:
        ValueError: If ``share`` is out of its range, or the folder holds no causal language model.
    """
    model: Any = load_causal_lm(folder)
    prune_(model, share)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)


def lm_eval_command(
    folder: str,
    tasks: Sequence[str],
    output: str,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int | str = 8,
    device: str | None = None,
) -> list[str]:
    """Return the command by which lm-eval evaluates a saved model.

    Args:
        folder: Folder of model and tokenizer, as ``save_pretrained`` writes it.
        tasks: Names of tasks of lm-eval, such as ``"mmlu"`` or ``"hellaswag"``.
        output: Folder to write results to; ``LUMEScore(mmlu=...)`` reads MMLU from it.
        num_fewshot: Examples in a prompt; ``None`` leaves it to the task.
        limit: Questions of each task; ``None`` asks all. A number from a limit is an estimate.
        batch_size: Requests at a time, or ``"auto"``.
        device: Where to run, such as ``"cuda:0"``; ``None`` leaves the choice to lm-eval.

    Raises:
        ValueError: If there is no task.

    Example:
        >>> lm_eval_command("runs/pretrained", ["mmlu"], "runs/harness")[1:7]
        ['-m', 'lm_eval', '--model', 'hf', '--model_args', 'pretrained=runs/pretrained']
    """
    if not tasks:
        raise ValueError("lm-eval needs at least one task, such as 'mmlu', got none.")
    model = f"pretrained={folder}"
    if (Path(folder) / "adapter_config.json").is_file():
        base = adapters.base_of(PeftConfig.from_pretrained(folder), folder)
        model = f"pretrained={base},peft={folder},tokenizer={folder}"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model]
    command += ["--tasks", ",".join(tasks), "--output_path", output, "--batch_size", str(batch_size)]
    options = {"--num_fewshot": num_fewshot, "--limit": limit, "--device": device}
    return command + [word for name, value in options.items() if value is not None for word in (name, str(value))]


def run_lm_eval(folder: str, tasks: Sequence[str], output: str, **options: Any) -> Path:
    """Evaluate a saved model by lm-eval, in a process of its own.

    Args:
        folder: Folder of model and tokenizer, as ``save_pretrained`` writes it.
        tasks: Names of tasks of lm-eval.
        output: Folder to write results to.
        **options: Those of :func:`lm_eval_command`.

    Returns:
        The newest result file.

    Raises:
        ImportError: If lm-eval is not installed.
        ValueError: If there is no such folder or no task.
        RuntimeError: If lm-eval fails, or writes no results.
    """
    command = lm_eval_command(folder, tasks, output, **options)
    check_folder(folder)
    if find_spec("lm_eval") is None:
        raise ImportError('run_lm_eval needs lm-eval: pip install "lit-modules[harness]"')
    process = subprocess.run(command, check=False)
    results = sorted(Path(output).rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if process.returncode or not results:
        raise RuntimeError(
            f"lm-eval ended with {process.returncode} and {len(results)} result files: {' '.join(command)}"
        )
    return results[-1]


def harness_accuracies(folder: str, tasks: Sequence[str], output: Path, **options: Any) -> dict[str, float]:
    """Return the accuracies that lm-eval gives a saved model, ``harness/<task>``; if ``output`` has all, it is not run.

    Args:
        folder: Folder of model and tokenizer, as ``save_pretrained`` writes it.
        tasks: Names of tasks of lm-eval, such as ``"wmdp_bio"``.
        output: Folder of the results.
        **options: Those of :func:`lm_eval_command`.

    Raises:
        ImportError: If lm-eval is not installed.
        ValueError: If there is no such folder, or the results lack the accuracy of a task.
        RuntimeError: If lm-eval fails, or writes no results.
    """
    results = read_results(output)[1] if any(output.rglob("results_*.json")) else {"results": {}}
    if any(accuracy_of(results, task) is None for task in tasks):
        run_lm_eval(folder, tasks, str(output), **options)
    return {f"harness/{task}": value for task, value in read_accuracies(output, tasks).items()}


def _linear_layers(model: nn.Module, skip: Sequence[str]) -> dict[str, nn.Linear]:
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] not in skip
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer to change beside {', '.join(skip) or 'none'}.")
    return layers


def _evaluated(network: Any, evaluate: Evaluate) -> dict[str, float]:
    with torch.no_grad(), evaluation_mode(network):
        return {name: float(value) for name, value in evaluate(network).items()}
