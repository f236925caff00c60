"""What is written of a causal language model: weights and adapters."""

import copy
from typing import Any


def write_pretrained(model: Any, folder: str, merge: bool = False) -> None:
    """Write weights as transformers and peft load them.

    Args:
        model: A model of transformers, with adapters of peft or without.
        folder: Folder to write to.
        merge: Whether to merge adapters into the weights; the model itself stays as it is.
    """
    adapted = merge and hasattr(model, "merge_and_unload")
    # merging takes the adapters out of the model it is called on, which may go on training
    written = copy.deepcopy(model).merge_and_unload() if adapted else model
    written.save_pretrained(folder)
