"""What the model said before unlearning: log-probabilities of rows, and the frozen network where these do not do."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from lit_modules.unlearning.core.losses import IGNORED, sequence_nll
from lit_modules.utils.adapters import essence, weights_swapped
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import hash_tensors, stable_hash

_UNHASHED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def model_hash(model: nn.Module, precision: str = "", continued: bool = False) -> str:
    """Return what tells two references apart: a hash of the configuration and of all weights.

    Args:
        model: Model of transformers, with adapters of peft or without.
        precision: Arithmetic that the model runs in, which changes its numbers.
        continued: Whether the adapter belongs to the reference; otherwise it is left out.

    Returns:
        64 hexadecimal digits, the same with a new adapter as without.
    """
    config = getattr(model, "config", None)
    values = config.to_diff_dict() if config is not None else {}
    described = {key: value for key, value in values.items() if key not in _UNHASHED}
    base: Any = model
    marks: tuple[str, ...] = ()
    adapter = None
    if continued:
        adapter = essence(cast("PeftModel", model).peft_config["default"])
    elif isinstance(model, PeftModel):
        tuned: Any = model
        base, marks = tuned.get_base_model(), (tuned.base_model.prefix, "modules_to_save.")
    # buffers too, such as the scales of quantised weights
    state = [
        (name.replace(".base_layer", "").replace(".original_module", ""), part)
        for name, tensor in base.state_dict().items()
        if isinstance(tensor, Tensor) and not any(mark in name for mark in marks)
        for part in _stored(tensor)
    ]
    text = json.dumps([described, precision, adapter], sort_keys=True, default=str)
    return stable_hash(text, hash_tensors(state))


def _stored(tensor: Any) -> list[Tensor]:
    """Return the tensors that a tensor is made of: itself, or those of a quantised one, such as values and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]


def row_hashes(batch: Mapping[str, Any]) -> list[str]:
    """Return a hash of the attended tokens of each row and of which of them are scored; padding does not count.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``.
    """
    hashes = []
    columns = (batch[key].tolist() for key in ("input_ids", "attention_mask", "labels"))
    for ids, mask, labels in zip(*columns, strict=True):
        row = [(token, label != IGNORED) for token, seen, label in zip(ids, mask, labels, strict=True) if seen]
        hashes.append(hashlib.sha256(repr(row).encode()).hexdigest()[:32])
    return hashes


class ReferenceCache:
    """Log-probabilities of rows under one model, kept in memory and in one file per model.

    The file ``<model hash>.json`` holds ``{"model": hash, "rows": {row hash: nats}}``.

    Args:
        folder: Folder of the files, or ``None`` to keep the numbers in memory alone.
        model: Hash of the model.

    Raises:
        ValueError: If the file is broken or was made by another model.
    """

    def __init__(self, folder: str | Path | None, model: str) -> None:
        self.model = model
        self.path = None if folder is None else Path(folder) / f"{model}.json"
        self.rows: dict[str, float] = {}
        if self.path is not None and self.path.is_file():
            self.rows = self._read(self.path)

    def __contains__(self, row: str) -> bool:
        """Return whether the number of a row is known."""
        return row in self.rows

    def look_up(self, rows: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the log-probabilities of rows, in nats, of shape ``(rows,)``."""
        return torch.tensor([self.rows[row] for row in rows], device=device, dtype=dtype)

    def save(self) -> None:
        """Write the numbers, together with those that another run has written meanwhile."""
        if self.path is None:
            return
        known = self._read(self.path) if self.path.is_file() else {}
        self.rows = {**known, **self.rows}
        write_whole(self.path, json.dumps({"model": self.model, "rows": self.rows}))

    def _read(self, path: Path) -> dict[str, float]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            made_by, rows = str(content["model"]), {str(key): float(value) for key, value in content["rows"].items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} must hold {{"model": hash, "rows": {{hash: number}}}}, and does not ({error}); delete it, and '
                "the run makes it anew."
            ) from error
        if made_by != self.model:
            raise ValueError(
                f"The reference log-probabilities in {path} were made by the model {made_by[:12]}, and this run starts "
                f"from the model {self.model[:12]}; delete the file or give another cache_dir."
            )
        return rows


@torch.no_grad()
def sequence_log_probs(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return ``log p(y|x)`` of each row: the sum over its scored tokens, without gradient, in evaluation mode.

    Returns:
        Nats, of shape ``(batch,)``.
    """
    with evaluation(model):
        return -sequence_nll(model, batch)[0]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode, and each of its modules back to its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, of which nothing trains."""
    frozen: nn.Module = copy.deepcopy(model)
    return frozen.requires_grad_(False).eval()


@contextmanager
def without_adapter(model: Any) -> Iterator[nn.Module]:
    """Give a model of peft with its adapters switched off, without gradient, in evaluation mode."""
    with torch.no_grad(), evaluation(model), model.disable_adapter():
        yield cast("nn.Module", model)


@contextmanager
def with_weights(model: Any, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[nn.Module]:
    """Give a model some of whose weights have other values, without gradient, in evaluation mode."""
    with torch.no_grad(), evaluation(model), weights_swapped(parameters, values):
        yield cast("nn.Module", model)


def split_rows(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return some rows of a task.

    Args:
        batch: Tensors whose first dimension is the row, and lists with an entry per row.
        rows: Numbers of the rows.
    """
    return {
        key: value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for key, value in batch.items()
    }
