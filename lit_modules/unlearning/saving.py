"""What is written of a causal language model: weights and adapters."""

import copy
from typing import Any

import torch

from lit_modules.unlearning.sharding import is_sharded, whole_state


def write_pretrained(model: Any, folder: str, merge: bool = False) -> None:
    """Write weights as transformers and peft load them.

    Sharded weights are gathered on the CPU of the first process, which writes; all processes must call this.

    Args:
        model: A model of transformers, with adapters of peft or without.
        folder: Folder to write to.
        merge: Whether to merge adapters into the weights; the model itself stays as it is.

    Raises:
        ValueError: If weights are to be merged that are sharded.
    """
    if is_sharded(model):
        if merge and hasattr(model, "merge_and_unload"):
            raise ValueError(
                "Adapters are merged into whole weights, got sharded ones; save the adapters alone (merge=False), and "
                "merge them on one device with peft's `merge_and_unload`."
            )
        state = whole_state(model)
        if torch.distributed.get_rank() == 0:
            model.save_pretrained(folder, state_dict=state)
        return
    adapted = merge and hasattr(model, "merge_and_unload")
    # merging takes the adapters out of the model it is called on, which may go on training
    written = copy.deepcopy(model).merge_and_unload() if adapted else model
    written.save_pretrained(folder)
