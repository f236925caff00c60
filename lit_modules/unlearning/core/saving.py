"""What is written of a causal language model: weights and adapters."""

from typing import Any

import torch

from lit_modules.unlearning.core.sharding import is_sharded, whole_state
from lit_modules.utils import adapters


def check_write(model: Any, folder: str, merge: bool) -> None:
    """Check that :func:`write_pretrained` can write a model.

    Raises:
        ValueError: If it cannot.
    """
    if merge and is_sharded(model) and adapters.own_config(model) is not None:
        raise ValueError(
            "Adapters are merged into whole weights, got sharded ones; save the adapters alone (merge=False), and "
            "merge them on one device with peft's `merge_and_unload`."
        )
    if merge:
        adapters.check_merge(model)
    adapters.check_folder(model, folder, merge)


def write_pretrained(model: Any, folder: str, merge: bool = False) -> None:
    """Write weights as transformers and peft load them.

    Sharded weights are gathered on the CPU of the first process, which writes; all processes must call this.

    Args:
        model: A model of transformers, with adapters of peft or without.
        folder: Folder to write to.
        merge: Whether to merge adapters into the weights; the model itself stays as it is.

    Raises:
        ValueError: If adapters cannot be merged, or the folder holds what would be loaded in place of the weights.
    """
    check_write(model, folder, merge)
    if is_sharded(model):
        state = whole_state(model)
        if torch.distributed.get_rank() == 0:
            model.save_pretrained(folder, state_dict=state)
        return
    adapted = merge and adapters.own_config(model) is not None
    # merging takes the adapters out of the model it is called on, which may go on training
    written = adapters.merged(model) if adapted else model
    written.save_pretrained(folder)
