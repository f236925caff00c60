"""Reference policy: log-probabilities of rows before unlearning, computed once, without a second model."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import LossArguments
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import IGNORED, sequence_nll
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.files import write_whole
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.progress import shown, step


class ReferencePolicyLoss(ForgetRetainLoss):
    """Know ``log p_ref(y|x)`` of every row that training compares; the base of NPO and DPO.

    Before the first step the training rows are gone through, epoch by epoch until one brings no new row, and the
    log-probability of each is computed once and cached in ``cache_dir`` under the hash of the model and that of the
    row. Later runs from the same model read them there. They also stand in the checkpoint, so a resumed run needs
    neither the cache nor the model that it began with. No second model is held; with adapters a row that comes up later
    is computed with these as they were before training, without them such a row is an error.

    Subclasses write ``compared``.

    Args:
        cache_dir: Folder of the cached log-probabilities; by default ``reference_log_probs`` in the trainer's root
            folder.
    """

    def __init__(
        self, model: str | PreTrainedModel, *, cache_dir: str | None = None, **shared: Unpack[LossArguments]
    ) -> None:
        super().__init__(model, **shared)
        self.cache_dir = cache_dir
        self._cache: ReferenceCache | None = None
        self._restored: dict[str, float] = {}

    def compared(self, batch: Batch) -> Sequence[Batch]:
        """Return the tasks of a batch whose rows are compared with the reference."""
        return [batch["forget"]]

    def on_train_start(self) -> None:
        """Compute the reference of all training rows that the cache does not hold; a resumed run has it already."""
        super().on_train_start()
        assert self._reference_hash is not None
        if self._cache is None:
            folder = self.cache_dir or Path(self.trainer.default_root_dir) / "reference_log_probs"
            leaves_files = not getattr(self.trainer, "fast_dev_run", False)
            self._cache = ReferenceCache(folder if leaves_files else None, self._reference_hash)
        self._cache.rows.update(self._restored)
        # a resumed run knows its rows: a look at the loader would move it on from where it was stopped
        if self._restored or (self._moved and not self._adapted):
            return
        if self._compute_all(self._cache) and self.trainer.is_global_zero:
            self._cache.save()

    def log_ratios(self, task: Batch) -> tuple[Tensor, Tensor]:
        """Return ``log p_theta(y|x) - log p_ref(y|x)`` of each row, and ``log p_theta(y|x)``, with gradient.

        Returns:
            Two tensors of shape ``(batch,)`` in nats, sums over a row's target tokens.
        """
        reference = self.reference_log_probs(task)
        log_probs = -sequence_nll(self.network, task)[0]
        return log_probs - reference.to(log_probs), log_probs

    def reference_log_probs(self, task: Batch) -> Tensor:
        """Return ``log p_ref(y|x)`` of each row, in nats, of shape ``(batch,)``.

        Raises:
            ValueError: If a row is new and the model is no longer the reference.
        """
        if self._cache is None:
            raise RuntimeError(f"{type(self).__name__} knows its reference from the start of training on.")
        hashes = row_hashes(task)
        self._compute(self._cache, task, hashes)
        rows = [self._cache.rows[row] for row in hashes]
        return torch.tensor(rows, device=task["input_ids"].device, dtype=torch.float64)

    @contextmanager
    def start_network(self) -> Iterator[nn.Module]:
        """Give the network as it was before unlearning: with adapters at any time, otherwise before the first step."""
        if self._adapted:
            with self.reference_network() as network:
                yield network
        else:
            yield self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the reference."""
        super().on_save_checkpoint(checkpoint)
        if self._cache is not None:
            checkpoint["lit_modules_reference"]["rows"] = dict(self._cache.rows)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the reference."""
        super().on_load_checkpoint(checkpoint)
        self._restored = checkpoint.get("lit_modules_reference", {}).get("rows", {})

    @property
    def _needs_reference(self) -> bool:
        return True

    def _compute(self, cache: "ReferenceCache", task: Batch, hashes: list[str]) -> int:
        """Compute the rows of a task that are not known; return their number."""
        missing = [index for index, row in enumerate(hashes) if row not in cache.rows]
        if not missing:
            return 0
        rows = {
            key: value[missing] if isinstance(value, Tensor) else [value[index] for index in missing]
            for key, value in task.items()
        }
        if self._moved and not self._adapted:
            raise ValueError(
                f"The row {rows.get('id', ['(unnamed)'])[0]} is not among those that {type(self).__name__} saw before "
                "the first step, and the model is no longer the reference. Let an epoch of the training loader bring "
                "all rows, as datamodules.LUME(anchor='forget') does, or train adapters (peft_config), which can be "
                "switched off."
            )
        with self.start_network() as network:
            values = sequence_log_probs(network, rows)
        cache.rows.update(zip((hashes[index] for index in missing), values.tolist(), strict=True))
        return len(missing)

    def _compute_all(self, cache: "ReferenceCache") -> int:
        """Go through the training rows; return how many were new, on all ranks."""

        def compute(batch: Batch) -> int:
            tasks = self.compared(batch)
            for task in tasks:
                self.check_rows(task)
            return sum(self._compute(cache, task, row_hashes(task)) for task in tasks)

        new = self.visit_rows(compute, "reference log-probabilities of rows")
        if self.trainer.world_size > 1:
            parts: list[dict[str, float]] = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, cache.rows)
            before = len(cache.rows)
            for part in parts:
                cache.rows.update(part)
            new += len(cache.rows) - before
        if new:
            rank_zero_info(f"The reference log-probabilities of {new} rows were computed.")
        return new

    def visit_rows(self, visit: Callable[[Batch], int], what: str) -> int:
        """Hand over the training batches, epoch by epoch until one brings nothing new.

        The random state stays as it is.

        Args:
            visit: Looks at a batch, and returns the number of new rows in it.
            what: Name of the progress bar.

        Returns:
            The number of new rows.
        """
        new = 0
        bar_of_rows = step(what)
        with isolate_rng(), self.trainer.precision_plugin.forward_context(), shown(self.trainer), bar_of_rows as bar:
            for batches in self._epochs():
                before = new
                for batch in batches:
                    new += visit(self.trainer.strategy.batch_to_device(batch))
                    bar.say(f"{new:,}")
                if new == before and not self._limited:
                    break
        return new

    @property
    def _limited(self) -> bool:
        """True if an epoch ends before the loader does."""
        limit = self.trainer.limit_train_batches
        return isinstance(limit, int) or limit != 1.0

    def _epochs(self) -> Iterator[Iterator[Batch]]:
        """Yield the batches of the epochs to come, in the order of training where the loader's sampler is seeded."""
        loader: Any = self.trainer.train_dataloader if self._datamodule is None else self._datamodule.train_dataloader()
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        samplers = [getattr(part, "sampler", None) for part in combined.flattened]  # any iterable may be a loader
        seeded = all(hasattr(sampler, "set_epoch") for sampler in samplers)
        epochs = self.trainer.max_epochs or 0
        for epoch in range(epochs) if epochs > 0 else count():
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)  # type: ignore[union-attr]
            limit = self.trainer.num_training_batches if self._limited and seeded else math.inf
            batches = (batch for batch, _, _ in iter(combined))
            yield islice(batches, None if math.isinf(limit) else int(limit))


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
        self.rows = self._read()

    def save(self) -> None:
        """Write the numbers, together with those that another run has written meanwhile."""
        if self.path is not None:
            self.rows = {**self._read(), **self.rows}
            write_whole(self.path, json.dumps({"model": self.model, "rows": self.rows}))

    def _read(self) -> dict[str, float]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            made_by, rows = str(content["model"]), {str(key): float(value) for key, value in content["rows"].items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{self.path} must hold {{"model": hash, "rows": {{hash: number}}}}, and does not ({error}); delete '
                "it, and the run makes it anew."
            ) from error
        if made_by != self.model:
            raise ValueError(
                f"The reference log-probabilities in {self.path} were made by the model {made_by[:12]}, and this run "
                f"starts from the model {self.model[:12]}; delete the file or give another cache_dir."
            )
        return rows


def row_hashes(batch: Mapping[str, Any]) -> list[str]:
    """Return a hash of the attended tokens of each row and of which of them are scored; padding does not count."""
    hashes = []
    columns = (batch[key].tolist() for key in ("input_ids", "attention_mask", "labels"))
    for ids, mask, labels in zip(*columns, strict=True):
        row = [(token, label != IGNORED) for token, attended, label in zip(ids, mask, labels, strict=True) if attended]
        hashes.append(hashlib.sha256(repr(row).encode()).hexdigest()[:32])
    return hashes


@torch.no_grad()
def sequence_log_probs(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return ``log p(y|x)`` of each row, ``(batch,)``: the sum over its scored tokens in nats, in evaluation mode."""
    with evaluation_mode(model):
        return -sequence_nll(model, batch)[0]
