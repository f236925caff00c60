"""Weights of others, of which nothing but tensors is read."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_tensors(model: str) -> Iterator[None]:
    """Say in a sentence that weights are no plain tensors, which torch refuses to unpickle.

    Args:
        model: Name, folder or file that is loaded inside.

    Raises:
        ValueError: If a file of weights is damaged or holds more than tensors.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weights of {model!r} are damaged, or a pickle of more than tensors, which could run anything; take a "
            "model whose weights are safetensors."
        ) from error
