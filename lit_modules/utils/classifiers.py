"""Input and output of a classifier, whichever library it comes from."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def input_device(tensors: Iterable[Tensor]) -> torch.device | None:
    """Return the device where a model takes its input: that of the first of its parameters, or of other tensors given.

    Tensors on meta do not count: accelerate keeps there what it has offloaded, and moves the input of such a model
    itself.

    Returns:
        The device, or ``None`` without tensors.
    """
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


def take_logits(answer: object) -> Tensor:
    """Return the logits of a model's output: itself, or what it holds as ``logits``, as the models of transformers.

    Raises:
        TypeError: If it is neither.
    """
    held = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    for logits in (answer, held):
        if isinstance(logits, Tensor):
            return logits
    names = f" with {', '.join(map(repr, answer))}" if isinstance(answer, Mapping) else ""
    raise TypeError(
        f"The model must give a tensor of logits, or an object or mapping that holds one as 'logits', got "
        f"{type(answer).__name__}{names}; wrap it, as in lambda x: model(x)[0]."
    )
