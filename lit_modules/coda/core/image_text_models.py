"""Image-text models of transformers: loading, adapters, asking, and writing."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from peft import LoraConfig, PeftModel
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from lit_modules.coda.core.conversations import IGNORED, check_processor, encode
from lit_modules.coda.core.model_parts import ModelParts, Part, adapted_layers, find_parts
from lit_modules.coda.core.update import UpdateArguments, UpdateModule
from lit_modules.utils import adapters
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.errors import first_line
from lit_modules.utils.model_cards import model_card, of_transformers
from lit_modules.utils.model_kwargs import check_model_kwargs, file_options, loading_options
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.precision import check_trained
from lit_modules.utils.suggestions import did_you_mean
from lit_modules.utils.thoughts import decode_answer

PRESETS: dict[str, dict[str, Any]] = {
    "coda_34b": {  # the released code, on three devices by default
        "rank": 128,
        "alpha": 256,
        "dropout": 0.05,
        "learning_rate": 2e-4,
        "projector_learning_rate": 2e-5,
        "warmup_ratio": 0.03,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
    "small": {  # a model of 7B on a GPU of 24 to 48 GB: smaller adapters against overfitting, a frozen projector
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "learning_rate": 1e-4,
        "projector_learning_rate": 0.0,
        "warmup_ratio": 0.03,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
}
_REMEDY = "Give the name or folder of an image-text model, as `save_pretrained` writes it."
Tuning = Literal["lora", "full", "none"]
DType = Literal["float32", "bfloat16"]


class ImageTextArguments(UpdateArguments, total=False):
    """Arguments of :class:`ImageTextUpdate`."""

    processor: str | ProcessorMixin | None
    preset: Literal["coda_34b", "small"]
    tuning: Tuning
    rank: int | None
    alpha: int | None
    dropout: float | None
    target_modules: str | None
    learning_rate: float | None
    projector_learning_rate: float | None
    projector: str | None
    warmup_ratio: float | None
    dtype: DType | None
    gradient_checkpointing: bool | None
    load_in_4bit: bool
    image_grid_pinpoints: list[list[int]] | None
    max_length: int | None
    revision: str | None
    model_kwargs: dict[str, Any] | None


class ImageTextUpdate(UpdateModule):
    """Update of an image-text model: its adapters and projector, processor, questions, and what is saved.

    Args:
        model: Name of an image-text model on a hub, folder of one or of adapters, or a model.
        processor: Name, folder or processor; ``None`` takes the one beside the model.
        preset: Settings that take the place of each ``None`` below, see :data:`PRESETS`.
        tuning: ``lora`` trains adapters, ``full`` all but the vision tower, ``none`` asks alone.
        rank: Rank of the adapters, at least 1.
        alpha: Scale of the adapters, divided by the rank.
        dropout: Dropout of the adapters' inputs, in [0, 1).
        target_modules: Regular expression of the layers that get adapters, for the whole of their names; ``None``
            takes all linear layers of the language model.
        learning_rate: Greatest learning rate of adapters or language model.
        projector_learning_rate: The same of the projector; 0 freezes it.
        projector: Name of the module between vision tower and language model; ``None`` finds it, see
            :func:`~lit_modules.coda.core.model_parts.find_parts`.
        warmup_ratio: Share of the steps in which the learning rate rises, in [0, 1]; then it falls by a cosine.
        dtype: Type of frozen weights and of computing; a model that is given keeps its own.
        gradient_checkpointing: Whether to compute activations anew in the backward pass, to save memory.
        load_in_4bit: Whether frozen weights have 4 bits; needs bitsandbytes and CUDA.
        image_grid_pinpoints: LLaVA-NeXT's sizes, height and width in pixels, that pictures are tiled in; fewer save
            memory. ``None`` takes the model's.
        max_length: Most tokens of a conversation, beyond which an error is raised; ``None`` takes the model's limit.
        revision: Revision of the model on the hub.
        model_kwargs: Further arguments of ``from_pretrained``, such as ``{"attn_implementation": "sdpa"}``, or a
            ``quantization_config`` as a mapping; adapters alone train on quantised weights. See
            :func:`~lit_modules.utils.model_kwargs.check_model_kwargs`.
        shared: Arguments of :class:`~lit_modules.coda.core.update.UpdateModule`, by name.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        processor: str | ProcessorMixin | None = None,
        preset: Literal["coda_34b", "small"] = "small",
        tuning: Tuning = "lora",
        rank: int | None = None,
        alpha: int | None = None,
        dropout: float | None = None,
        target_modules: str | None = None,
        learning_rate: float | None = None,
        projector_learning_rate: float | None = None,
        projector: str | None = None,
        warmup_ratio: float | None = None,
        dtype: DType | None = None,
        gradient_checkpointing: bool | None = None,
        load_in_4bit: bool = False,
        image_grid_pinpoints: list[list[int]] | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **shared: Unpack[UpdateArguments],
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}{did_you_mean(preset, PRESETS)}")
        own = {name: value for name, value in locals().items() if name in PRESETS[preset] and value is not None}
        settings = PRESETS[preset] | own
        objects = () if isinstance(processor, str) else ("processor",)
        super().__init__(*objects, model=model, warmup_ratio=settings["warmup_ratio"], **shared)
        self._processor: Any = processor
        self.tuning, self.projector, self.revision = tuning, projector, revision
        self.learning_rate: float = settings["learning_rate"]
        self.projector_learning_rate: float = settings["projector_learning_rate"]
        self.dtype_name: DType = settings["dtype"]
        self.gradient_checkpointing: bool = settings["gradient_checkpointing"]
        self.load_in_4bit, self.image_grid_pinpoints, self.max_length = load_in_4bit, image_grid_pinpoints, max_length
        names = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
        self._lora = {key: settings[name] for key, name in names.items()} | {"target_modules": target_modules}
        # adapters that the model carries must be those that are asked for by name
        self._asked = {key: own[name] for key, name in names.items() if name in own}
        if target_modules is not None:
            self._asked["target_modules"] = target_modules
        for name, allowed in (("tuning", get_args(Tuning)), ("dtype", get_args(DType))):
            value = tuning if name == "tuning" else self.dtype_name
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")
        for name in ("rank", "alpha"):
            if settings[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {settings[name]}.")
        for name in ("learning_rate", "projector_learning_rate"):
            if not 0 <= settings[name] < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {settings[name]}.")
        if not 0 <= settings["dropout"] < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {settings['dropout']}.")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {max_length}.")
        self.model_kwargs = check_model_kwargs(model_kwargs, model)
        if model_kwargs is not None:
            self.hparams["model_kwargs"] = self.model_kwargs  # plain, where a quantization was given as an object
        if "revision" in self.model_kwargs:
            raise ValueError("revision is an argument of its own; give it beside model_kwargs, not inside.")
        if self.model_kwargs.get("trust_remote_code"):
            raise ValueError(
                "model_kwargs takes no trust_remote_code here, as image-text models are those of transformers, and no "
                "code of a model's folder is run."
            )
        self._quantised = load_in_4bit or self.model_kwargs.get("quantization_config") is not None
        if load_in_4bit and "quantization_config" in self.model_kwargs:
            raise ValueError("load_in_4bit and a quantization_config say the same; give one.")
        if self._quantised and (tuning == "full" or self.model_name is None):
            which = "load_in_4bit" if load_in_4bit else "quantization_config"
            raise ValueError(f"{which} needs the name of a model, and adapters: set tuning to 'lora'.")

    def configure_model(self) -> None:
        """Load the model and its processor, add adapters and freeze the rest, once, in training mode."""
        if self._configured:
            return
        dtype: torch.dtype = getattr(torch, self.dtype_name)
        if self.model is None:
            options = loading_options(self.model_kwargs)
            if self.load_in_4bit:
                options |= _four_bits(dtype, self._float_modules())
            self.model = load_model(str(self.model_name), dtype, self.revision, options=options)
        self.model = adapters.take_over(self.model)
        self._compute_dtype = dtype if self._quantised else self.model.dtype
        if self.tuning != "none":  # adapters are float32 and computed with in this type
            check_trained(self.model.parameters(), type(self).__name__)
        if self.image_grid_pinpoints is not None:
            set_pinpoints(self.model, self.processor, self.image_grid_pinpoints)
        check_processor(self.processor, self.model.config)
        self._choose_what_trains()
        # trained weights of 16 bits would lose small updates
        for parameter in self.trainable_parameters():
            parameter.data = parameter.data.float()
        if self.gradient_checkpointing and self.tuning != "none":
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self._configured = True

    @cached_property
    def parts(self) -> ModelParts:
        """The model's modules by what they do."""
        return find_parts(self.model, self.projector)

    @property
    def processor(self) -> Any:
        """The given processor, else the one beside the model."""
        if self._processor is None or isinstance(self._processor, str):
            name = str(self._processor or self.model_name or self.model.config.name_or_path)
            options = file_options(self.model_kwargs)
            self._processor = load_processor(name, self.revision if name == self.model_name else None, options=options)
        return self._processor

    def encode(
        self, images: Sequence[Image], prompts: Sequence[str], answers: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return questions about one image each as the model takes them, with ``labels`` of answers if there are."""
        self.configure_model()
        config = self.model.config
        limit = self.max_length or getattr(config.get_text_config(), "max_position_embeddings", None)  # not all have it
        batch = encode(self.processor, images, prompts, answers=answers, max_length=limit, config=config)
        # Llama 4's processor makes pixels of 16 bits, whatever the model computes in
        return {
            name: value.to(self.model.device, torch.float32 if value.is_floating_point() else value.dtype)
            for name, value in batch.items()
        }

    def forward(self, **inputs: Tensor) -> Any:
        """Run the model; see its own ``forward``."""
        with self.autocast():
            return self.model(**inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the type of the frozen weights, whatever the trainer's precision."""
        kind, dtype = self.model.device.type, self._compute_dtype
        return torch.autocast(kind, enabled=False) if dtype == torch.float32 else torch.autocast(kind, dtype=dtype)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask without dropout, in the type of computing."""
        with evaluation_mode(self.model), self.autocast():
            yield

    def save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Write adapters or model, the processor and a model card, so that ``model: <folder>`` loads them.

        With ``merge`` adapters are merged into the weights, which ``AutoModelForImageTextToText`` loads and servers
        take; otherwise the folder holds adapters and a trained projector as peft writes them.
        """
        self.configure_model()
        self.check_save_pretrained(folder, merge)
        adapted = isinstance(self.model, PeftModel)
        with model_card(self, folder, of_transformers(self.model, merge, self.revision, "image-text-to-text")):
            if adapted and not merge:
                self.model.save_pretrained(folder)
            else:
                whole = adapters.merged(self.model) if adapted else self.model
                state = {name: value.to(self._compute_dtype) for name, value in whole.state_dict().items()}
                whole.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)

    def check_save_pretrained(self, folder: str, merge: bool = False) -> None:
        """Check, before training, that :meth:`save_pretrained` will be able to write.

        Raises:
            ValueError: If the adapters cannot be merged, or the folder holds what would be loaded instead.
        """
        if merge:
            adapters.check_merge(self.model)
        adapters.check_folder(self.model, folder, merge)

    def trainable_parts(self) -> dict[str, int]:
        """Return the numbers of parameters that train in ``language model``, ``projector`` and ``vision tower``."""
        self.configure_model()
        numbers = dict.fromkeys(get_args(Part), 0)
        for name, parameter in self.model.named_parameters():
            numbers[self.parts.of(name)] += parameter.numel() if parameter.requires_grad else 0
        return numbers

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the projector in a group of its own, and the schedule."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[self.parts.of(name) == "projector"].append(parameter)
        return self.scheduled([(groups[False], self.learning_rate), (groups[True], self.projector_learning_rate)])

    def on_fit_start(self) -> None:
        """Print what trains."""
        numbers = ", ".join(f"{name} {number:,}" for name, number in self.trainable_parts().items())
        parts = self.parts
        rank_zero_info(
            f"Trainable parameters: {numbers}. The language model is {parts.language_model}, the vision tower "
            f"{parts.vision_tower}, the projector {', '.join(parts.projector) or 'not found'}."
        )

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

    def _float_modules(self) -> list[str]:
        """Return the names of the modules that a model of 4 bits leaves as they are: a projector that trains, the head.

        They are found in the model of the same configuration without weights.
        """
        name, revision = str(self.model_name), self.revision
        saved = adapters.saved_config(name, revision)
        if saved is not None:
            name, revision = adapters.base_of(saved, name), saved.revision
        auto: Any = AutoModelForImageTextToText
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(name, revision=revision)
            parts = find_parts(auto.from_config(config), self.projector)
        return [*(parts.projector if self.projector_learning_rate > 0 else ()), *filter(None, [parts.head])]

    def _choose_what_trains(self) -> None:
        """Add adapters and freeze the rest, or go on with the adapters that the model carries."""
        if self.tuning == "none":
            self.model.requires_grad_(False)
            return
        projector = self.parts.projector if self.projector_learning_rate > 0 else ()
        carried: Any = adapters.own_config(self.model)
        if self.tuning == "full" and carried is not None:
            raise ValueError(
                "tuning='full' trains a whole model, and this one carries adapters; set tuning to 'lora' to go on with "
                "them, or merge them first, save_pretrained(folder, merge=True), and give that folder."
            )
        if carried is not None:
            self._check_carried(carried, projector)
            return
        if self.projector_learning_rate > 0 and not projector:
            raise ValueError(
                f"No module of {type(self.model).__name__} was found between vision tower and language model; set "
                "projector to its name, or projector_learning_rate to 0."
            )
        quantised = [name for name in projector if any(map(_is_quantised, self.model.get_submodule(name).parameters()))]
        if quantised:
            raise ValueError(
                f"The projector {', '.join(quantised)} is quantised and cannot train; set projector_learning_rate to 0 "
                "or name it in the quantization_config among the modules to leave as they are, such as "
                "llm_int8_skip_modules of bitsandbytes or modules_to_not_convert of torchao."
            )
        if self.tuning == "full":
            for name, parameter in self.model.named_parameters():
                part = self.parts.of(name)
                parameter.requires_grad_(part == "language model" or (part == "projector" and bool(projector)))
            return
        targets = self._lora["target_modules"] or adapted_layers(self.model, self.parts)
        config = LoraConfig(**self._lora | {"target_modules": targets}, modules_to_save=list(projector) or None)
        try:
            self.model = adapters.start_adapter(self.model, config, self.revision)
        except ValueError as error:
            raise ValueError(
                f"target_modules {config.target_modules!r} finds no layer of {type(self.model).__name__}."
            ) from error

    def _check_carried(self, config: Any, projector: Sequence[str]) -> None:
        """Check that the adapters that the model carries are those that are asked for."""
        for name, value in self._asked.items():
            carried = getattr(config, name)
            if value != carried:
                raise ValueError(
                    f"The model carries adapters with {name}={carried!r}, got {value!r}; leave it out to go on with "
                    "them, or merge them first, save_pretrained(folder, merge=True), and start new ones from that "
                    "folder."
                )
        if not {*projector} <= {*(config.modules_to_save or ())}:
            raise ValueError(
                f"The adapters that the model carries leave {', '.join(projector)} frozen; set projector_learning_rate "
                "to 0, or merge them first, save_pretrained(folder, merge=True), and start from that folder."
            )


def load_model(
    name: str, dtype: torch.dtype, revision: str | None = None, *, options: Mapping[str, Any] | None = None
) -> Any:
    """Load an image-text model, or a base model with the adapters that a folder holds.

    ``options`` are further arguments of ``from_pretrained``.

    Raises:
        ValueError: If it does not load, or lacks weights.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no model folder {name!r}. {_REMEDY}")
    saved = adapters.saved_config(name, revision)
    if saved is not None:
        base = adapters.base_of(saved, name)
        return adapters.continue_adapter(load_model(base, dtype, saved.revision, options=options), name)
    try:
        with only_tensors(name):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, revision=revision, output_loading_info=True, **options or {}
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        asked = f" It was asked for with model_kwargs={dict(options)}." if options else ""
        raise ValueError(
            f"{name!r} does not load as an image-text model: {first_line(error)} {_REMEDY}{asked}"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{name!r} lacks {len(missing)} weights, such as {missing[0]!r}. {_REMEDY}")
    return model


def load_processor(name: str, revision: str | None = None, *, options: Mapping[str, Any] | None = None) -> Any:
    """Load the processor of a model, with further arguments of ``from_pretrained``, ``options``.

    Raises:
        ValueError: If there is none with a tokenizer.
    """
    try:
        auto: Any = AutoProcessor
        processor = auto.from_pretrained(name, revision=revision, **options or {})
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No processor loads from {name!r}: {first_line(error)} Give CoDA(processor=...).") from error
    if not hasattr(processor, "tokenizer"):
        raise ValueError(f"What loads from {name!r} is a {type(processor).__name__}, not a processor with a tokenizer.")
    return processor


def set_pinpoints(model: Any, processor: Any, pinpoints: list[list[int]]) -> None:
    """Set the sizes, height and width, into whose tiles a picture is cut; fewer need less memory.

    Raises:
        ValueError: If the model cuts no tiles, or a size is no multiple of a tile.
    """
    if not hasattr(model.config, "image_grid_pinpoints"):
        raise ValueError(f"{type(model).__name__} has no image_grid_pinpoints; leave them out.")
    side = model.config.vision_config.image_size
    if not pinpoints or any(len(size) != 2 or min(size) < 1 or any(n % side for n in size) for size in pinpoints):
        raise ValueError(f"image_grid_pinpoints must be pairs of multiples of {side} pixels, got {pinpoints}.")
    model.config.image_grid_pinpoints = pinpoints
    processor.image_processor.image_grid_pinpoints = pinpoints


def answer_log_probs(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's answer with its end token, and its tokens, both ``(batch,)``.

    The batch is padded on the right, with ``labels``, -100 where there is no answer. Logits of the questions, most of
    which are image tokens, are not computed where the model can leave them out.
    """
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    first = int((labels != IGNORED).any(0).nonzero()[0])
    keep = labels.shape[1] - first + 1  # the token before an answer foretells its first
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        inputs["logits_to_keep"] = keep
    logits = model(**inputs, use_cache=False).logits[:, -keep:-1].float()
    targets = labels[:, first:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return -losses.sum(1), (targets != IGNORED).sum(1)


def generate(
    model: Any, tokenizer: Any, batch: Mapping[str, Tensor], *, max_new_tokens: int, temperature: float
) -> list[str]:
    """Answer questions, padded on the left, without thoughts and special tokens; a temperature of 0 is greedy."""
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    # the model's own settings of sampling do not hold here
    drawing = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
    off = dict.fromkeys(("temperature", "top_p", "top_k"))
    tokens = model.generate(
        **batch,
        **(drawing or off),
        do_sample=temperature > 0,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    return [decode_answer(tokenizer, row) for row in tokens[:, batch["input_ids"].shape[1] :].tolist()]


def _four_bits(dtype: torch.dtype, kept: list[str]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for weights of 4 bits (NF4), but for those of some modules."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ImportError('load_in_4bit needs bitsandbytes: pip install "lit-modules[quantization]".')
    if not torch.cuda.is_available():
        raise ValueError("load_in_4bit needs a CUDA device; leave it out.")
    settings: Any = BitsAndBytesConfig
    four = settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
    return {"quantization_config": four, "device_map": {"": torch.cuda.current_device()}}


def _is_quantised(weight: Tensor) -> bool:
    """Return whether a weight is an integer, or a tensor of torchao, which looks like a number of its scale's type."""
    return not weight.is_floating_point() or type(weight.data) is not Tensor
