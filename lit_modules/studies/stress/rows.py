"""Rows of a datamodule that attacks take."""

from typing import Any

from lit_modules.utils.arguments import argument_names


def of_subset(data: Any, subset: str) -> Any:
    """Return a datamodule of the same arguments with another subset, set up for training.

    Args:
        data: Datamodule with the argument ``subset``, and a tokenizer.
        subset: Subset, such as ``"forget"``.
    """
    init_args = {"tokenizer": data.tokenizer, **data.hparams, "subset": subset}
    known = argument_names(type(data))  # the command line adds hyperparameters of its own
    made = type(data)(**{name: value for name, value in init_args.items() if name in known})
    made.setup("fit")
    return made
