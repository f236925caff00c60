"""What the methods share that compare a row's likelihood with that before unlearning, without a second model."""

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import RetainTerm, TwoObjectives
from lit_modules.unlearning.core.losses import sequence_nll
from lit_modules.unlearning.core.reference import (
    ReferenceCache,
    row_hashes,
    sequence_log_probs,
    split_rows,
)


class ReferencedObjectives(TwoObjectives):
    """Know ``log p_ref(y|x)`` of every row that training compares; the base of NPO and DPO.

    Before the first step the training rows are gone through, epoch by epoch until one brings no new row, and the
    log-probability of each is computed once and cached in ``cache_dir`` under the hash of the model and that of the
    row. Later runs from the same model read them there. They also stand in the checkpoint, so a resumed run needs
    neither the cache nor the model that it began with. No second model is held; with adapters a row that comes up later
    is computed with these as they were before training, without them such a row is an error.

    Subclasses write ``compared``.

    Args:
        cache_dir: Folder of the cached numbers; by default ``reference_log_probs`` in the trainer's root folder.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None,
        peft_config: PeftConfig | None,
        dtype: Literal["float32", "bfloat16"],
        gradient_checkpointing: bool,
        compile: bool,
        accumulate: int,
        clip_norm: float | None,
        forget_weight: float,
        retain_weight: float,
        retain_term: RetainTerm,
        combine: GradientCombiner | None,
        cache_dir: str | None,
        buffer: Literal["device", "bfloat16", "cpu"],
        metric: Metric | None,
        max_new_tokens: int,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            peft_config,
            dtype,
            gradient_checkpointing,
            compile,
            accumulate,
            clip_norm,
            forget_weight,
            retain_weight,
            retain_term,
            combine,
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        self.cache_dir = cache_dir
        self._cache: ReferenceCache | None = None
        self._restored: dict[str, float] = {}

    def compared(self, batch: Batch) -> Sequence[Batch]:
        """Return the tasks of a batch whose rows are compared with the reference."""
        return [batch["forget"]]

    def on_train_start(self) -> None:
        """Compute the reference of all training rows that the cache does not hold."""
        super().on_train_start()
        assert self._reference_hash is not None
        if self._cache is None:
            folder = self.cache_dir or Path(self.trainer.default_root_dir) / "reference_log_probs"
            leaves_files = not getattr(self.trainer, "fast_dev_run", False)
            self._cache = ReferenceCache(folder if leaves_files else None, self._reference_hash)
        self._cache.rows.update(self._restored)
        if self._moved and not self._adapted:
            return
        found = self._compute_all(self._cache)
        if found and self.trainer.is_global_zero:
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
        return self._cache.look_up(hashes, task["input_ids"].device, torch.float64)

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

    def _compute(self, cache: ReferenceCache, task: Batch, hashes: list[str]) -> int:
        """Compute the rows of a task that are not known; return their number."""
        missing = [number for number, row in enumerate(hashes) if row not in cache]
        if not missing:
            return 0
        rows = split_rows(task, missing)
        if self._adapted:
            with self.reference_network() as network:
                values = sequence_log_probs(network, rows)
        elif not self._moved:
            values = sequence_log_probs(self.model, rows)
        else:
            named = rows.get("id", ["(unnamed)"])
            raise ValueError(
                f"The row {named[0]} is not among those that {type(self).__name__} saw before the first step, and the "
                "model is no longer the reference. Let an epoch of the training loader bring all rows, as "
                "datamodules.LUME(anchor='forget') does, or train adapters (peft_config), which can be switched off."
            )
        cache.rows.update(zip((hashes[number] for number in missing), values.tolist(), strict=True))
        return len(missing)

    def _compute_all(self, cache: ReferenceCache) -> int:
        """Go through the training rows; return how many were new, on all ranks."""
        new = 0
        with isolate_rng(), self.trainer.precision_plugin.forward_context():
            for batches in self._passes():
                before = new
                for batch in batches:
                    moved = self.trainer.strategy.batch_to_device(batch)
                    for task in self.compared(moved):
                        self.check_rows(task)
                    new += sum(self._compute(cache, task, row_hashes(task)) for task in self.compared(moved))
                if new == before and not self._limited:
                    break
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

    @property
    def _limited(self) -> bool:
        """Whether an epoch ends before the loader does."""
        limit = self.trainer.limit_train_batches
        return isinstance(limit, int) or limit != 1.0

    def _passes(self) -> Iterator[Iterator[Batch]]:
        """Yield the batches of the epochs to come, in the order of training where the loader's sampler is seeded."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        loader: Any = self.trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        samplers = [getattr(part, "sampler", None) for part in combined.flattened]
        seeded = all(hasattr(sampler, "set_epoch") for sampler in samplers)
        epochs = self.trainer.max_epochs or 0
        for epoch in range(epochs) if epochs > 0 else count():
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)  # type: ignore[union-attr]
            limit = self.trainer.num_training_batches if self._limited and seeded else math.inf
            batches = (batch for batch, _, _ in iter(combined))
            yield islice(batches, None if math.isinf(limit) else int(limit))
