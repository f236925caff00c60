"""Hidden states of a block of a causal language model, of which only the blocks up to it are run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_modules.unlearning.core.language_part import bare, language_modules, text_config
from lit_modules.unlearning.core.losses import IGNORED, at_least_float32


def hidden_states(network: Any, layer: int, task: Mapping[str, Any]) -> Tensor:
    """Return the outputs of block ``layer`` at the scored tokens of a task, ``(scored, size)``, at least float32."""
    outputs: list[Any] = []
    with lower_blocks(network, layer) as (inner, block):
        handle = block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            inner(input_ids=task["input_ids"], attention_mask=task["attention_mask"], use_cache=False)
        finally:
            handle.remove()
    states: Tensor = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    return at_least_float32(states[task["labels"].ne(IGNORED)])


@contextmanager
def lower_blocks(network: Any, layer: int) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Take the blocks above one off for a while; give the network without its output layer, and the block."""
    parent, name, blocks = _blocks(network, layer)
    setattr(parent, name, nn.ModuleList(list(blocks)[: layer + 1]))
    try:
        yield bare(network).base_model, blocks[layer]
    finally:
        setattr(parent, name, blocks)


def parameters_behind(network: Any, layer: int) -> set[int]:
    """Return the identities of the parameters that train and that the hidden states of a block depend on."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=network.device)
    hidden = hidden_states(network, layer, {"input_ids": token, "attention_mask": token + 1, "labels": token})
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(hidden.sum(), parameters, allow_unused=True)
    reached = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    # experts that this one token is not sent to
    _, _, blocks = _blocks(network, layer)
    return reached | {id(p) for block in list(blocks)[: layer + 1] for p in block.parameters()}


def _blocks(network: Any, layer: int) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds the blocks, the name it gives them, and the blocks."""
    number, base = text_config(network.config).num_hidden_layers, language_modules(network)[0]
    if layer >= number:
        raise ValueError(f"layer must lie in [0, {number}), the blocks of the model, got {layer}.")
    for path, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) in (number, layer + 1):
            parent, _, name = path.rpartition(".")
            return base.get_submodule(parent), name, module
    raise ValueError(f"{type(base).__name__} has no list of {number} blocks; a hidden state asks for one.")
