"""Updating an image-text model on few pictures of new concepts."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from peft import LoraConfig
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel, ProcessorMixin

from lit_modules.coda.core.base import Batch, UpdateModule, default_optimizer
from lit_modules.coda.core.conversations import check_processor, encode
from lit_modules.coda.core.image_text_models import (
    LANGUAGE_MODEL,
    add_adapters,
    answer_log_probs,
    autocast,
    check_continued,
    check_write,
    generate,
    load_model,
    load_processor,
    part_of,
    set_pinpoints,
    train_all,
    write_model,
)
from lit_modules.coda.core.presets import PresetName, update_preset
from lit_modules.coda.core.scores import read_answers
from lit_modules.utils import adapters
from lit_modules.utils.hashing import stable_seed
from lit_modules.utils.precision import check_trained


class CoDA(UpdateModule):
    """Teach an image-text model new concepts from few pictures, real and synthetic, and ask it about them.

    Each sample is one conversation: a user turn of exactly one picture and the question, and the answer. The loss is
    the mean negative log-likelihood of the answers' tokens and end tokens. Questions are never cut off, and training
    and evaluation have the same chat template and the same picture processing. Adapters are in the language model
    alone; the projector trains with a learning rate of its own, or not at all.

    Trained weights are float32, frozen ones of ``dtype``, in which all is computed whatever the trainer's precision. A
    checkpoint holds what trains, and the name and revision of the base.

    A batch is that of :class:`datamodules.FewShotPairs` without ``image_size``: ``image``, ``prompt``, ``answer``, and
    in validation and test ``options``, ``answer_option``, ``pair_id``, ``role`` and ``query``. Logs ``train/loss``,
    ``val/loss`` and, with a metric, ``val/acc_macro`` and its kin, ``test/...`` likewise; those of known pairs that
    are not updated on as ``val/retention/...``. Ask in both orders of the options, ``n_orders=2`` of the data, and
    ``position_bias`` tells how often the first one is named.

    ======================  ===========  =========
    preset                  coda_34b     small
    ======================  ===========  =========
    rank, alpha             128, 256     16, 32
    dropout                 0.05         0.05
    learning_rate           2e-4         1e-4
    projector               2e-5         frozen
    warmup_ratio, cosine    0.03         0.03
    dtype                   bfloat16     bfloat16
    max_epochs (trainer)    30           10
    batch_size (data)       5            2
    accumulate (trainer)    1            8
    ======================  ===========  =========

    Adapters that a folder holds are gone on with; ``rank``, ``alpha``, ``dropout`` and ``target_modules``, if given,
    must be theirs. Precisions of the trainer are ``32-true`` and ``bf16-mixed``.

    Tried on one device; other shardings of 34B models are not tried.

    Args:
        model: Name of an image-text model on a hub, folder of one or of adapters, or a model.
        processor: Name, folder or processor; ``None`` takes the one beside the model.
        preset: Settings that take the place of each ``None`` below.
        tuning: ``lora`` trains adapters, ``full`` all but the vision tower, ``none`` asks alone.
        rank: Rank of the adapters, at least 1.
        alpha: Scale of the adapters, divided by the rank.
        dropout: Dropout of the adapters' inputs, in [0, 1).
        target_modules: Regular expression of the layers that get adapters, for the whole of their names.
        learning_rate: Greatest learning rate of adapters or language model.
        projector_learning_rate: The same of the projector; 0 freezes it.
        projector: Name of the module between vision tower and language model.
        warmup_ratio: Share of the steps in which the learning rate rises, in [0, 1]; then it falls by a cosine.
        dtype: Type of frozen weights and of computing; a model that is given keeps its own.
        gradient_checkpointing: Whether to compute activations anew in the backward pass, to save memory.
        load_in_4bit: Whether frozen weights have 4 bits; needs bitsandbytes and CUDA.
        image_grid_pinpoints: LLaVA-NeXT's sizes, height and width in pixels, that pictures are tiled in; fewer save
            memory. ``None`` takes the model's.
        max_length: Most tokens of a conversation, beyond which an error is raised; ``None`` takes the model's limit.
        revision: Revision of the model on the hub.
        scoring: ``generate`` reads generated answers; ``loglik`` takes the option with the largest mean
            log-likelihood of its tokens and end token, and has no invalid answers.
        max_new_tokens: Longest generated answer, in tokens.
        temperature: 0 is greedy; the released code samples at 0.7. Draws come from ``seed`` and the questions' places.
        seed: Seed of dropout and of drawn answers.
        metric: PairAccuracy, or NWayAccuracy for more than two options.
        retention_metric: The same for the data's ``retention_pairs``.
        optimizer: Builds the optimizer from groups of parameters that have their learning rates.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709. Hu et al., "LoRA: Low-Rank Adaptation of
        Large Language Models", arXiv 2106.09685.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        processor: str | ProcessorMixin | None = None,
        preset: PresetName = "small",
        tuning: Literal["lora", "full", "none"] = "lora",
        rank: int | None = None,
        alpha: int | None = None,
        dropout: float | None = None,
        target_modules: str = LANGUAGE_MODEL,
        learning_rate: float | None = None,
        projector_learning_rate: float | None = None,
        projector: str = "multi_modal_projector",
        warmup_ratio: float | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        gradient_checkpointing: bool | None = None,
        load_in_4bit: bool = False,
        image_grid_pinpoints: list[list[int]] | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        scoring: Literal["generate", "loglik"] = "generate",
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
        metric: Metric | None = None,
        retention_metric: Metric | None = None,
        optimizer: OptimizerCallable = default_optimizer,
    ) -> None:
        chosen = update_preset(preset)
        warmup = chosen.warmup_ratio if warmup_ratio is None else warmup_ratio
        super().__init__(warmup, metric, retention_metric, optimizer, seed)
        self.save_hyperparameters(
            ignore=[
                *(name for name, value in (("model", model), ("processor", processor)) if not isinstance(value, str)),
                "metric",
                "retention_metric",
                "optimizer",
            ]
        )
        self.model_name = model if isinstance(model, str) else None
        self.model: Any = None if isinstance(model, str) else model
        self._processor: Any = processor
        self.tuning = tuning
        self.rank = chosen.rank if rank is None else rank
        self.alpha = chosen.alpha if alpha is None else alpha
        self.dropout = chosen.dropout if dropout is None else dropout
        self.target_modules = target_modules
        self.learning_rate = chosen.learning_rate if learning_rate is None else learning_rate
        projector_rate = chosen.projector_learning_rate if projector_learning_rate is None else projector_learning_rate
        self.projector_learning_rate = projector_rate
        self.projector = projector
        self.dtype_name = chosen.dtype if dtype is None else dtype
        checkpointing = chosen.gradient_checkpointing if gradient_checkpointing is None else gradient_checkpointing
        self.gradient_checkpointing = checkpointing
        self.load_in_4bit = load_in_4bit
        self.image_grid_pinpoints = image_grid_pinpoints
        self.max_length = max_length
        self.revision = revision
        self.scoring = scoring
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        own_layers = None if target_modules == LANGUAGE_MODEL else target_modules
        self._asked = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": own_layers}
        self._configured = False
        self._check_arguments()

    def configure_model(self) -> None:
        """Load the model and its processor, add adapters and freeze the rest, once, in training mode."""
        if self._configured:
            return
        if self.model is None:
            assert self.model_name is not None
            dtype = getattr(torch, self.dtype_name)
            self.model = load_model(self.model_name, dtype, self.revision, self.load_in_4bit)
        self.model = adapters.take_over(self.model)
        self._compute_dtype: torch.dtype = self.model.dtype
        if self.tuning != "none":  # adapters are float32 and computed with in this type
            check_trained(self.model.parameters(), type(self).__name__)
        if self.load_in_4bit:
            self._compute_dtype = getattr(torch, self.dtype_name)
        if self.image_grid_pinpoints is not None:
            set_pinpoints(self.model, self.processor, self.image_grid_pinpoints)
        check_processor(self.processor, self.model.config)
        with_projector = self.projector_learning_rate > 0
        continued = adapters.own_config(self.model) is not None
        if continued and self.tuning == "full":
            raise ValueError(
                "tuning='full' trains a whole model, and this one carries adapters; set tuning to 'lora' to go on with "
                "them, or merge them first, save_pretrained(folder, merge=True), and give that folder."
            )
        if self.tuning == "lora" and continued:
            check_continued(self.model, self._asked, self.projector if with_projector else None)
        elif self.tuning == "lora":
            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.target_modules
            )
            self.model = add_adapters(self.model, config, self.projector if with_projector else None, self.revision)
        elif self.tuning == "full":
            train_all(self.model, self.projector, with_projector)
        else:
            self.model.requires_grad_(False)
        # trained weights of 16 bits would lose small updates
        for parameter in self.trainable_parameters():
            parameter.data = parameter.data.float()
        if self.gradient_checkpointing and self.tuning != "none":
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self._configured = True

    @property
    def processor(self) -> Any:
        """The given processor, else the one beside the model."""
        if self._processor is None or isinstance(self._processor, str):
            name = str(self._processor or self.model_name or getattr(self.model.config, "name_or_path", ""))
            revision = self.revision if name == self.model_name else None
            self._processor = load_processor(name, revision)
        return self._processor

    def encode(
        self, images: Sequence[Image], prompts: Sequence[str], answers: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return questions about one image each as the model takes them, on its device.

        Args:
            images: One image for each question.
            prompts: Questions.
            answers: Right answers; with them there are ``labels``.
        """
        self.configure_model()
        text = self.model.config.get_text_config()
        limit = self.max_length or getattr(text, "max_position_embeddings", None)
        batch = encode(self.processor, images, prompts, answers, limit, self.model.config)
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def forward(self, **inputs: Tensor) -> Any:
        """Run the model; see its own ``forward``."""
        with autocast(self.model, self._compute_dtype):
            return self.model(**inputs)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the answers' tokens."""
        if "label_weights" in batch:
            raise ValueError("CoDA takes no mixed pictures; set mix of the datamodule to 'none'.")
        with autocast(self.model, self._compute_dtype):
            encoded = self.encode(batch["image"], batch["prompt"], batch["answer"])
            sums, counts = answer_log_probs(self.model, encoded)
        return -sums.sum() / counts.sum()

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, list[Any]]:
        """Answer a batch of questions.

        Args:
            batch: ``image``, ``prompt`` and ``options``.
            batch_idx: Unused.

        Returns:
            Lists: ``question``, ``options`` in the order asked, ``answer`` as the model gave it, ``option`` its place
            among them or -1, ``name`` of it or ``None``, and with ``loglik`` ``option_scores``. ``pair_id``, ``path``
            and ``order`` of the batch are handed through.
        """
        handed: dict[str, list[Any]] = {name: list(batch[name]) for name in ("pair_id", "path") if name in batch}
        if "order" in batch:
            handed["order"] = batch["order"].tolist()
        options = batch["options"]
        found: dict[str, list[Any]] = {"question": list(batch["prompt"]), "options": list(options)}
        if self.scoring == "loglik":
            scores = self.option_scores(batch["image"], batch["prompt"], options)
            found["option"] = [row.index(max(row)) for row in scores]
            found["answer"] = [names[place] for names, place in zip(options, found["option"], strict=True)]
            found["option_scores"] = scores
        else:
            place = batch["index"].tolist() if "index" in batch else []
            found["answer"] = self.answer(batch["image"], batch["prompt"], place)
            found["option"] = read_answers(found["answer"], batch)
        places = zip(options, found["option"], strict=True)
        return {**handed, **found, "name": [names[place] if place >= 0 else None for names, place in places]}

    @torch.no_grad()
    def answer(self, images: Sequence[Image], prompts: Sequence[str], key: Sequence[int] = ()) -> list[str]:
        """Answer questions about one image each.

        Args:
            images: One image for each question.
            prompts: Questions.
            key: What drawn answers depend on beside the seed, such as the questions' places in the data.

        Returns:
            The answers.
        """
        encoded = self.encode(images, prompts)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        # drawing leaves the random state of the training as it was
        with self._asking(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(stable_seed(self.seed, "answers", list(key)))
            tokenizer = self.processor.tokenizer
            found: list[str] = generate(self.model, tokenizer, encoded, self.max_new_tokens, self.temperature)
        return [text.strip() for text in found]

    @torch.no_grad()
    def option_scores(
        self, images: Sequence[Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the mean log-likelihood of each option's tokens and end token as the answer.

        Args:
            images: One image for each question.
            prompts: Questions.
            options: Names among which each question asks, in its order.
        """
        self.configure_model()
        found: list[list[float]] = [[] for _ in prompts]
        for place in range(max(map(len, options))):
            rows = [row for row, names in enumerate(options) if place < len(names)]
            named = [options[row][place] for row in rows]
            encoded = self.encode([images[row] for row in rows], [prompts[row] for row in rows], named)
            with self._asking():
                sums, counts = answer_log_probs(self.model, encoded)
            for row, value in zip(rows, (sums / counts).tolist(), strict=True):
                found[row].append(value)
        return found

    def save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Write adapters or model, and the processor, so that ``model: <folder>`` loads them.

        Args:
            folder: Folder to write to.
            merge: Whether to merge adapters into the weights, which ``AutoModelForImageTextToText`` loads and servers
                take; otherwise the folder holds adapters and a trained projector as peft writes them.
        """
        self.configure_model()
        write_model(self.model, self.processor, folder, merge, self._compute_dtype)

    def check_save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Check, before training, that :meth:`save_pretrained` will be able to write.

        Raises:
            ValueError: If the adapters cannot be merged, or the folder holds what would be loaded instead.
        """
        check_write(self.model, folder, merge)

    def trainable_parts(self) -> dict[str, int]:
        """Return how many parameters train in ``language model``, ``projector`` and ``vision tower``."""
        self.configure_model()
        found = {"language model": 0, "projector": 0, "vision tower": 0}
        for name, parameter in self.model.named_parameters():
            found[part_of(name, self.projector)] += parameter.numel() if parameter.requires_grad else 0
        return found

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the projector in a group of its own, and the schedule."""
        groups: dict[str, list[nn.Parameter]] = {"language": [], "projector": []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups["projector" if part_of(name, self.projector) == "projector" else "language"].append(parameter)
        rates = {"language": self.learning_rate, "projector": self.projector_learning_rate}
        return self.scheduled([(group, rates[name]) for name, group in groups.items()])

    def on_fit_start(self) -> None:
        """Tell what trains."""
        parts = ", ".join(f"{name} {number:,}" for name, number in self.trainable_parts().items())
        rank_zero_info(f"Trainable parameters: {parts}.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what trains, the configuration of the adapters, and the name of the base."""
        super().on_save_checkpoint(checkpoint)
        config = adapters.own_config(self.model)
        if config is not None:
            checkpoint[adapters.KEY] = adapters.describe(config)
        checkpoint["lit_modules_base"] = {"model": self.model_name, "revision": self.revision}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other adapters."""
        self.configure_model()
        remedy = "give the arguments that say what trains as they were"
        if adapters.adapter_to_restore(checkpoint, adapters.own_config(self.model), remedy) is not None:
            raise ValueError(
                f"The checkpoint holds adapters, and tuning={self.tuning!r} has none to load them into; set tuning to "
                "'lora'."
            )
        super().on_load_checkpoint(checkpoint)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask without dropout, in the type of computing."""
        training = self.model.training
        self.model.eval()
        try:
            with autocast(self.model, self._compute_dtype):
                yield
        finally:
            self.model.train(training)

    def _check_arguments(self) -> None:
        choices = {
            "tuning": (self.tuning, ("lora", "full", "none")),
            "dtype": (self.dtype_name, ("float32", "bfloat16")),
            "scoring": (self.scoring, ("generate", "loglik")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")
        for name in ("rank", "alpha", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "projector_learning_rate", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {self.max_length}.")
        if self.load_in_4bit and (self.tuning == "full" or self.model_name is None):
            raise ValueError("load_in_4bit needs the name of a model, and adapters: set tuning to 'lora'.")
