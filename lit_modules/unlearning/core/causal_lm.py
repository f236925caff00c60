"""Base of every module around a causal language model: loading, scoring, generation, checkpoints."""

import math
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, Self, cast, overload

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.generation import greedy_generate, position_limit
from lit_modules.unlearning.core.language_part import language_modules, train_language_part, within_language
from lit_modules.unlearning.core.losses import sequence_nll, token_scores
from lit_modules.unlearning.core.pretrained import (
    check_folder,
    check_tokenizer,
    check_write,
    copy_processor,
    load_adapter,
    load_causal_lm,
    load_tokenizer,
    write_pretrained,
)
from lit_modules.unlearning.core.sharding import check_mesh, in_step, shard
from lit_modules.utils import adapters
from lit_modules.utils.model_cards import model_card, of_transformers
from lit_modules.utils.model_kwargs import check_model_kwargs
from lit_modules.utils.precision import check_precision, check_trained
from lit_modules.utils.progress import shown
from lit_modules.utils.random_state import random_state, set_random_state
from lit_modules.utils.resuming import bring
from lit_modules.utils.training_state import without_frozen

Batch = dict[str, Any]
_FROM_FILE: ContextVar[bool] = ContextVar("_FROM_FILE", default=False)
"""True while a module is built of the arguments in a checkpoint."""


def adamw_without_decay(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build AdamW at a learning rate of 1e-5 without weight decay."""
    return AdamW(parameters, lr=1e-5, weight_decay=0.0)


class CausalLM(LightningModule):
    """Load, score, generate with and save a causal language model; the base of the modules here.

    Validation takes batches with ``labels`` and logs the mean loss per target token, in nats, of each value of the
    batch's ``split`` as ``val/<split>_loss``; without ``split`` the loader's name in a dict of loaders takes its place,
    and a batch of named tasks, as in training, counts for each of them. Test takes two kinds of batches: those without
    ``labels`` are answered by greedy generation, those with ``labels`` are scored by their mean token NLL per row;
    ``metric`` turns both into numbers, and may need an ``id`` for each row. A metric with a true ``needs_tokens`` also
    gets the scores of each token as ``tokens``.

    A checkpoint holds what trains, and the configuration of the adapters, which are put on a module that has none.

    A model that also takes images or sound is loaded and saved whole, and its language part trains.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        model_kwargs: Loading options of a named model, which ``from_pretrained`` gets: ``attn_implementation``,
            ``revision``, ``quantization_config``, ``trust_remote_code`` and others. The type of the weights is
            ``dtype``, and a ``device_map`` may name one device. With ``quantization_config``, a mapping or one of
            transformers' configurations, adapters train beside weights of 8 or 4 bits.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``. An adapter
            found in a folder is trained further; one that is given beside it must be the same, except for its dropout.
        dtype: Type in which named weights are loaded; the trainer's precision is ``32-true`` or ``bf16-mixed``.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.
    """

    strict_loading: bool
    shardable = False
    """True for methods that were tried with weights sharded by FSDP2, under ``ModelParallelStrategy``."""
    fixed_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of a base class that the method sets itself, so that they are no hyperparameters of its own."""

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        model_kwargs: dict[str, Any] | None = None,
        peft_config: PeftConfig | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        metric: Metric | None = None,
        max_new_tokens: int = 256,
        optimizer: OptimizerCallable = adamw_without_decay,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # objects would not load safely; this collects the arguments of all subclasses
        injected = ["peft_config", "metric", "optimizer", "scheduler", "aggregator"]
        injected += [name for name, given in (("model", model), ("tokenizer", tokenizer)) if not isinstance(given, str)]
        self.save_hyperparameters(ignore=[*injected, *self.fixed_arguments])
        self.model_kwargs = check_model_kwargs(model_kwargs, model)
        if model_kwargs is not None:
            self.hparams["model_kwargs"] = self.model_kwargs  # plain, where a quantization was given as an object
        if _FROM_FILE.get() and self.model_kwargs.get("trust_remote_code"):
            raise ValueError(
                f"The checkpoint asks to run code of the model {model!r} (trust_remote_code), which a file alone must "
                "not; if you trust the model, give load_from_checkpoint(..., model_kwargs=...) with it."
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
        self.model_name = model if isinstance(model, str) else None
        self.model: Any = None if isinstance(model, str) else model
        self._tokenizer = tokenizer
        self.peft_config = peft_config
        self.dtype_name = dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_network = compile
        self.metric = metric
        self.max_new_tokens = max_new_tokens
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.val_losses = nn.ModuleDict({f"{split}_loss": MeanMetric() for split in ("forget", "retain", "other")})
        # until it is known what trains; `load_from_checkpoint` asks before, and `on_load_checkpoint` checks
        self.strict_loading = False
        self._configured = False
        self._continued = False  # whether a saved adapter is trained on
        self._compiled: list[Any] = []  # a list keeps the compiled network out of the module tree
        self._results: dict[str, Any] | None = None
        self._random_state: dict[str, Any] | None = None

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Build a module from a checkpoint; see Lightning's method of this name.

        Raises:
            ValueError: If the arguments in the checkpoint would run code of the model's folder.
        """
        token = _FROM_FILE.set("model_kwargs" not in kwargs)
        try:
            return super().load_from_checkpoint(*args, **kwargs)
        finally:
            _FROM_FILE.reset(token)

    def configure_callbacks(self) -> list[Any]:
        """Check the trainer's settings and the model's folder; bring what lets a run stop and go on at any batch."""
        check_precision(self)
        if self.trainer.state.fn == "fit":
            self._check_trainer()
        if self.model is None and self.model_name is not None:
            check_folder(self.model_name)
        return bring(self.trainer)

    def configure_model(self) -> None:
        """Load the weights and add the adapters, once, in training mode; check that the tokenizer belongs to them.

        Under Lightning's ``ModelParallelStrategy`` the weights are then sharded over its processes.
        """
        if not self._configured:
            check_mesh(self)
            self._build_network()
            if self.device_mesh is not None and self._is_quantised:
                raise ValueError(
                    f"{type(self).__name__} does not shard quantised weights; use strategy 'ddp' or one device, or "
                    "leave the quantization_config out."
                )
            if self.device_mesh is not None:
                # autocast alone would keep a copy of all weights in bfloat16 until the backward pass
                mixed = str(self.trainer.precision) == "bf16-mixed"
                shard(self.model, self.device_mesh["data_parallel"], torch.bfloat16 if mixed else None)
        if self._trainer is not None:
            self._check_vocabulary()
            self._check_longest_row()

    @property
    def network(self) -> nn.Module:
        """The network that training steps run: compiled if asked for."""
        return cast("nn.Module", self._compiled[0] if self._compiled else self.model)

    @property
    def vocab_size(self) -> int:
        """Number of rows of the input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The module's own tokenizer, else the datamodule's, else the one beside the model's weights."""
        if isinstance(self._tokenizer, str):
            self._tokenizer = AutoTokenizer.from_pretrained(self._tokenizer)
        if self._tokenizer is None:
            shared = getattr(self._datamodule, "tokenizer", None)
            if shared is not None:
                return shared  # type: ignore[no-any-return]
            name = self.model_name or str(getattr(self.model.config, "name_or_path", ""))
            try:
                self._tokenizer = load_tokenizer(name, self.model_kwargs)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"No tokenizer lies beside the model {name!r}. Give "
                    f"{type(self).__name__}(tokenizer=...), a name or folder."
                ) from error
        return self._tokenizer

    def forward(self, **inputs: Tensor) -> Any:
        """Run the network; see the model's own ``forward``."""
        return self.model(**inputs)

    def on_train_start(self) -> None:
        """Give a resumed run the random state that it was stopped with."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the batch to the mean loss of its split, or of the task that it or its loader is named by."""
        if "labels" in batch:
            loaders = self.trainer.val_dataloaders
            tasks = {list(loaders)[dataloader_idx] if isinstance(loaders, dict) else "": batch}
        else:
            tasks = {name: task for name, task in batch.items() if isinstance(task, dict) and "labels" in task}
            if not tasks:
                raise ValueError(
                    f"{type(self).__name__} validates batches with 'labels', or of named tasks with them, got "
                    f"{sorted(batch)}."
                )
        for name, task in tasks.items():
            default = next((split for split in ("forget", "retain") if name.startswith(split)), "other")
            self.check_rows(task)
            sums, counts = sequence_nll(self.model, task)
            splits = task.get("split", [default] * len(sums))
            for split in sorted(set(splits)):
                if f"{split}_loss" not in self.val_losses:
                    raise ValueError(f"A batch's split must be 'forget' or 'retain', got {split!r}.")
                rows = torch.tensor([value == split for value in splits], device=sums.device)
                tokens = counts[rows].sum()
                metric = cast("MeanMetric", self.val_losses[f"{split}_loss"])
                metric.update(sums[rows].sum() / tokens.clamp(min=1), weight=tokens)

    def check_rows(self, task: Batch) -> None:
        """Raise a ``ValueError`` that names a row of a task which the model has too few positions for."""
        limit = position_limit(self.model)
        width = task["input_ids"].shape[1]
        if limit is not None and width > limit:
            row = int(task["attention_mask"].sum(1).argmax())
            self._refuse_row(str(task["id"][row]) if "id" in task else str(row), width, limit)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss of each split that any process has seen."""
        metrics = {name: cast("MeanMetric", module) for name, module in self.val_losses.items()}
        called = torch.tensor([int(metric.update_called) for metric in metrics.values()], device=self.device)
        seen = self.trainer.strategy.reduce(called, reduce_op="sum").tolist()
        for (name, metric), ranks in zip(metrics.items(), seen, strict=True):
            if ranks:
                if not metric.update_called:
                    metric.update(torch.zeros((), device=self.device), weight=0)
                key = "val/loss" if name == "other_loss" else f"val/{name}"
                self.log(key, metric.compute(), prog_bar=True, rank_zero_only=False, sync_dist=False)
                with torch.inference_mode(False):  # else a fit after `validate` could not add to it
                    metric.reset()

    def on_test_start(self) -> None:
        """Have a metric with ``check_rows`` compare what it was given with the rows to come, before any is answered."""
        check = getattr(self.metric, "check_rows", None)  # any metric of torchmetrics, any datamodule
        evaluated = getattr(self._datamodule, "evaluated", None)
        if check is not None and evaluated:
            check({split: len(rows) for split, rows in evaluated.items()})

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answer or score the batch and hand the result to the metric."""
        if "labels" not in batch:
            answers = self.predict_step(batch, batch_idx, dataloader_idx)
            if self.metric is not None:
                self.metric.update(batch, generations=answers["generation"])
            return answers
        self.check_rows(batch)
        if getattr(self.metric, "needs_tokens", False):
            tokens = token_scores(self.model, batch)
            nll = torch.stack([-row.sum() / max(len(row), 1) for row in tokens["log_probs"]])
            cast("Metric", self.metric).update(batch, nll=nll, tokens=tokens)
        else:
            sums, counts = sequence_nll(self.model, batch)
            nll = sums / counts.clamp(min=1)
            if self.metric is not None:
                self.metric.update(batch, nll=nll)
        member = batch["member"].tolist() if "member" in batch else None
        return {"id": batch.get("id"), "member": member, "nll": nll.tolist(), "source": batch.get("source")}

    def on_test_epoch_end(self) -> None:
        """Log the metric's numbers as ``test/<name>`` and keep its record for :meth:`results`."""
        if self.metric is None:
            return
        numbers = self.metric.compute()
        self.log_dict({f"test/{name}": value for name, value in numbers.items()})
        record = getattr(self.metric, "record", None)
        self._results = record() if record else {name: float(value) for name, value in numbers.items()}
        self.metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Generate the answer to each prompt of a batch.

        Args:
            batch: ``input_ids`` and ``attention_mask`` of shape ``(batch, tokens)``, padded on the left; perhaps
                ``max_new_tokens`` ``(batch,)``, which shortens each answer below the module's own limit. Lists of
                strings are handed through.
            batch_idx: Unused.
            dataloader_idx: Unused.

        Returns:
            The lists of the batch, and ``generation``: list of strings.
        """
        lists = {key: value for key, value in batch.items() if isinstance(value, list)}
        limits = batch["max_new_tokens"].clamp(max=self.max_new_tokens).tolist() if "max_new_tokens" in batch else None
        longest = self.max_new_tokens if limits is None else max(limits)
        answers = self._answer(batch["input_ids"], batch["attention_mask"], longest)
        if limits is not None:
            answers = [answer[:limit] for answer, limit in zip(answers, limits, strict=True)]
        return {**lists, "generation": self._decode(answers)}

    @overload
    def generate(self, prompts: str, max_new_tokens: int | None = None) -> str: ...
    @overload
    def generate(self, prompts: list[str], max_new_tokens: int | None = None) -> list[str]: ...
    def generate(self, prompts: str | list[str], max_new_tokens: int | None = None) -> str | list[str]:
        """Answer prompts greedily.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Longest answer, in tokens; ``None`` takes the module's own.

        Returns:
            One answer or a list of them, without special tokens.
        """
        self.configure_model()
        single = isinstance(prompts, str)
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in ([prompts] if single else prompts)]
        eos, pad = self.tokenizer.eos_token_id, self._pad_token_id
        rows = [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in rows]
        bos = self.tokenizer.bos_token_id  # which a chat template has written already
        rows = [row[1:] if row[:2] == [bos, bos] else row for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        answers = self._decode(self._answer(ids, mask, max_new_tokens or self.max_new_tokens))
        return answers[0] if single else answers

    def results(self) -> dict[str, Any]:
        """Return the metric's record of the last test.

        Raises:
            RuntimeError: If no test with a metric has run.
        """
        if self._results is None:
            raise RuntimeError(f"{type(self).__name__} has no results yet: run `test` with a `metric` first.")
        return self._results

    def save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Write the weights so that ``model: <folder>`` loads them; sharded ones if all processes call this.

        Beside the weights of a named model that takes images goes its processor, and beside all a model card.

        Args:
            folder: Folder to write to.
            merge: Whether to merge adapters into the weights; otherwise the folder holds the adapters alone, as peft
                writes them.
        """
        self.configure_model()
        task = "text-generation" if len(language_modules(self.model)) == 1 else "image-text-to-text"
        with model_card(self, folder, of_transformers(self.model, merge, self.model_kwargs.get("revision"), task)):
            write_pretrained(self.model, folder, merge)
        whole = merge or adapters.own_config(self.model) is None
        if whole and self.model_name is not None and len(language_modules(self.model)) > 1 and self.global_rank == 0:
            copy_processor(self.model_name, self.model_kwargs, folder)

    def check_save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Check, before training, that :meth:`save_pretrained` will be able to write.

        Raises:
            ValueError: If the adapters cannot be merged, or the folder holds what would be loaded instead.
        """
        check_write(self.model, folder, merge)

    def configure_optimizers(self) -> Any:
        """Build the optimizer of the trainable parameters, and the scheduler if there is one."""
        name = type(self).__name__
        # only an adapter of peft trains beside quantised weights; alone they leave norms and embeddings to train
        if self._is_quantised and not isinstance(self.model, PeftModel):
            raise ValueError(
                f"The weights of the model are quantised, so {name} cannot train them; give a peft_config, such as "
                "peft.LoraConfig(), or a model that is not quantised."
            )
        if getattr(self.model, "is_loaded_in_4bit", False) and self.device.type == "cpu":  # a mark of transformers
            raise ValueError(
                f"{name} does not train beside weights of 4 bits on the CPU, whose scales bitsandbytes loses between "
                "an evaluation and a checkpoint; train on a GPU, or give a quantization_config of 8 bits, such as "
                "torchao's."
            )
        check_trained(self.trainable_parameters(), name)
        try:
            optimizer = self.optimizer(self.trainable_parameters())
        except ValueError as error:
            raise ValueError(f"The optimizer of {name} refuses its arguments: {error}.") from error
        for group in optimizer.param_groups:
            if not 0 <= float(group["lr"]) < math.inf:
                raise ValueError(f"The learning rate must be finite and not negative, got {float(group['lr'])}.")
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                f"{name} moves its scheduler after each step and without a metric, and ReduceLROnPlateau needs one; "
                "give a scheduler that counts steps, or callbacks.AdaptiveLR."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training changes: all of them, or the adapters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what trains, and what a resumed run needs to go on as if nothing had happened."""
        # the loader of sharded checkpoints asks for every weight
        if not self.strict_loading and not getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            checkpoint["state_dict"] = without_frozen(checkpoint["state_dict"], self.model, "model.")
        config = adapters.own_config(self.model)
        if config is not None:
            checkpoint[adapters.KEY] = adapters.describe(config)
        checkpoint["lit_modules_method"] = type(self).__name__
        checkpoint["lit_modules_rng"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume the training of another method; put the checkpoint's adapter on a model that has none.

        Raises:
            ValueError: If it is of another method, has another adapter, or other weights train.
        """
        method = checkpoint.get("lit_modules_method")
        if self._fitting and method != type(self).__name__:
            raise ValueError(
                f"The checkpoint was written by {method or 'another module'}, and this run trains "
                f"{type(self).__name__}; a run resumes only its own method. To start from its weights, write them "
                "with `save_pretrained` and give the folder as `model`."
            )
        if self._fitting:
            self._random_state = checkpoint.get("lit_modules_rng")
        self.configure_model()
        lacking = adapters.adapter_to_restore(checkpoint, adapters.own_config(self.model))
        if lacking is not None:
            if self.device_mesh is not None:
                raise ValueError(
                    "The checkpoint holds an adapter, which cannot be put on weights that are sharded already; give "
                    "the peft_config that it was trained with."
                )
            self.peft_config = lacking
            self._build_network()
        # strategies that shard weights have read them already
        if "state_dict" in checkpoint:
            adapters.check_restored(checkpoint["state_dict"], self.model, "model.")

    @property
    def _fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    @property
    def _is_quantised(self) -> bool:
        return bool(getattr(self.model, "is_quantized", False))  # transformers marks no other model

    @property
    def _datamodule(self) -> Any:
        """The trainer's datamodule; Lightning sets the attribute only where there is one."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _build_network(self) -> None:
        if self.model is None:
            name, dtype = cast("str", self.model_name), getattr(torch, self.dtype_name)
            self.model = load_adapter(name, self.peft_config, dtype, self.model_kwargs)
            self._continued = self.model is not None
            if not self._continued:
                self.model = load_causal_lm(name, dtype, self.model_kwargs)
        else:
            self.model = adapters.take_over(self.model)
            self._continued = self.peft_config is None and adapters.own_config(self.model) is not None
        if self.peft_config is not None and not self._continued:
            config = within_language(self.peft_config, self.model)
            self.model = adapters.start_adapter(self.model, config, self.model_kwargs.get("revision"))
        train_language_part(self.model)
        if self.gradient_checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self.strict_loading = all(parameter.requires_grad for parameter in self.model.parameters())
        if self.compile_network:
            self._compiled = [torch.compile(self.model)]
        self._configured = True

    def _answer(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> list[list[int]]:
        ends = self.tokenizer.eos_token_id
        with in_step(self.model), shown(self._trainer):
            answers = greedy_generate(
                self.model,
                input_ids,
                attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=self._pad_token_id,
            )
        return [row.tolist() for row in answers]

    def _decode(self, answers: list[list[int]]) -> list[str]:
        """Return the texts of answers, decoded as the benchmark's evaluation does."""
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    def _check_trainer(self) -> None:
        """Refuse settings of the trainer that the method does not obey."""

    def _check_longest_row(self) -> None:
        """Have a datamodule that knows its longest row compare it with the model's positions before anything runs."""
        longest_row = getattr(self._datamodule, "longest_row", None)
        limit = position_limit(self.model)
        if longest_row is not None and limit is not None:
            name, tokens = longest_row()
            if tokens > limit:
                self._refuse_row(name, tokens, limit)

    @staticmethod
    def _refuse_row(name: str, tokens: int, limit: int) -> None:
        raise ValueError(
            f"The model has {limit} positions, and the row {name} has {tokens} tokens; give a smaller max_length, or a "
            "model with more positions."
        )

    def _check_vocabulary(self) -> None:
        tokenizer = getattr(self._datamodule, "tokenizer", None) or self._tokenizer
        if tokenizer is None or isinstance(tokenizer, str):
            return
        if len(tokenizer) > self.vocab_size:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} tokens and the model's embedding only "
                f"{self.vocab_size} rows. Give the tokenizer that belongs to the model."
            )
        if self.model_name is not None:
            check_tokenizer(tokenizer, self.model_name, self.model_kwargs)
