"""Base of models that diffusers have a pipeline for: parts loaded one by one, the pipeline's encoding and sampling."""

import importlib
import inspect
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, get_args

import torch
from torch import Tensor

from lit_modules.synthia.backbones.autoencoders import Latents
from lit_modules.synthia.backbones.base import Backbone, Condition, Precision
from lit_modules.synthia.core.sampling import NoiseSchedule
from lit_modules.utils.adapters import without_dropout
from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.errors import first_line
from lit_modules.utils.hashing import hash_folder

_OWNERS = {
    "StableDiffusionPipeline": "StableDiffusion",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusion3Pipeline": "StableDiffusion3",
    "FluxPipeline": "Flux",
    "Kandinsky3Pipeline": "Kandinsky3",
    "SanaPipeline": "Sana",
    "PixArtSigmaPipeline": "PixArtSigma",
    "Lumina2Pipeline": "Lumina2",
    "ZImagePipeline": "ZImage",
    "QwenImagePipeline": "QwenImage",
    "Flux2KleinPipeline": "Flux2Klein",
    "ChromaPipeline": "Chroma",
    "HiDreamImagePipeline": "HiDream",
}
_LOADABLE = {
    "diffusers": ("ModelMixin", "SchedulerMixin"),
    "transformers": ("PreTrainedModel", "PreTrainedTokenizerBase"),
}
"""Libraries that a model's index may name classes of, and what these must be."""


class WeightArguments(TypedDict, total=False):
    """Shared arguments on the files of weights; see :class:`PipelineBackbone`."""

    trained_network: str | None
    variant: str | None


class PrecisionArguments(WeightArguments, total=False):
    """Shared arguments on files and types of weights; see :class:`PipelineBackbone`."""

    precision: Precision
    encoder_precision: Precision | None
    quantization_config: dict[str, Any] | None


class PipelineArguments(PrecisionArguments, total=False):
    """Shared arguments of pipelines; see :class:`PipelineBackbone`."""

    vae_slicing: bool


class PipelineBackbone(Backbone):
    """A model that diffusers have a pipeline for, in the pipeline's folders.

    Prompts are encoded by the pipeline's own ``encode_prompt`` around the text encoders alone, and images are drawn by
    the pipeline's own loop and scheduler around network and image encoder, so that what is trained is what any user of
    the pipeline gets. Encoders run in their own precision, whatever autocast is on.

    A subclass names the pipeline and its parts, and says how the network is asked.

    Args:
        model: Folder or name of the pipeline's weights.
        image_size: Side of the images in pixels.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        precision: Type of the network's weights; what trains is float32 in any case.
        encoder_precision: Type of the frozen encoders; ``None`` takes ``precision``.
        quantization_config: How diffusers quantise the network when they load it, as a mapping: ``{"load_in_4bit":
            True, "bnb_4bit_compute_dtype": "bfloat16"}`` of bitsandbytes on CUDA, or ``TorchAoConfig(...).to_dict()``
            on any device. Adapters alone train on it.
        vae_slicing: Whether to encode and decode one image at a time, which takes less memory.
        trained_network: Folder that :meth:`save_pretrained` wrote a whole network to, which replaces the model's.
        variant: Variant of the files, such as ``"fp16"``, of the parts that have it; others are taken as they are.

    Attributes:
        unconditional: What guidance leads away from, one row; encoded when the text encoder is loaded.

    Raises:
        ValueError: If an argument is out of its range; in ``load``, if the model is of another kind, or ``image_size``
            does not fit it.
        FileNotFoundError: In ``load``, if there is no such model, or a part of it is missing.
        ImportError: In ``load``, if the installed diffusers have no such pipeline.
    """

    pipeline_name: ClassVar[str]
    """Class of diffusers."""
    network_part: ClassVar[str] = "unet"
    encoder_part: ClassVar[str] = "vae"
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    least_multiple: ClassVar[int] = 8
    """Number that the pipeline wants the side of images to be a multiple of."""
    latents_kind: ClassVar[type[Latents]] = Latents
    """Latents of its autoencoder."""
    length_mask: ClassVar[str | None] = None
    """Part of the condition that marks each row's tokens, if the pipeline takes prompts of any length."""
    guidance_argument: ClassVar[str] = "guidance_scale"
    """Argument of the pipeline for the scale of classifier-free guidance."""
    guidance_offset: ClassVar[int] = 0
    """Number by which the pipeline's scale is less than the usual one, whose 1 is no guidance."""
    call_options: ClassVar[Mapping[str, Any]] = {}
    """Other arguments of the pipeline."""

    unconditional: Condition | None = None
    scheduler: Any

    def __init__(
        self,
        model: str,
        image_size: int,
        num_steps: int | None,
        guidance: float,
        precision: Precision = "bfloat16",
        encoder_precision: Precision | None = None,
        quantization_config: dict[str, Any] | None = None,
        vae_slicing: bool = False,
        trained_network: str | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__(model, image_size, precision)
        if encoder_precision not in (None, *get_args(Precision)):
            allowed = ", ".join(map(repr, get_args(Precision)))
            raise ValueError(f"encoder_precision must be {allowed} or None, got {encoder_precision!r}.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if guidance < 0:
            raise ValueError(f"guidance must not be negative, got {guidance}.")
        if quantization_config is not None and not isinstance(quantization_config, Mapping):
            raise ValueError(
                "quantization_config must be a mapping, such as {'load_in_4bit': True}, or what to_dict() of a "
                f"configuration of diffusers gives, got {quantization_config!r}."
            )
        self.quantization_config = quantization_config
        self.encoder_precision: Precision = encoder_precision or precision
        self.num_steps, self.guidance, self.vae_slicing = num_steps, guidance, vae_slicing
        self.trained_network, self.variant = trained_network, variant

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on."""
        own = f"{self.model}/{self.version}/{self.variant}/{self.encoder_precision}"
        return f"{type(self).__name__}/{part}/{own}/{self.image_size}"

    def drawing_identity(self) -> str:
        """Return what the pictures that the untuned model draws depend on, beside prompt and noise."""
        trained = self.trained_network and hash_folder(self.trained_network)
        own = f"{self.precision}/{trained}/{self.num_steps}/{self.guidance}/{self.quantization_config}"
        return f"{super().drawing_identity()}/{own}"

    @property
    def encoder_dtype(self) -> torch.dtype:
        """Type of the frozen encoders."""
        dtype: torch.dtype = getattr(torch, self.encoder_precision)
        return dtype

    @cached_property
    def index(self) -> dict[str, Any]:
        """Return the pipeline's ``model_index.json``, checked."""
        import diffusers

        try:
            index: dict[str, Any] = dict(diffusers.DiffusionPipeline.load_config(self.model))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"There is no model {self.model!r}: it must be a folder with a model_index.json, as save_pretrained() "
                "of diffusers' pipelines writes it, or the name of one on the Hugging Face hub that can be reached."
            ) from error
        kind = str(index.get("_class_name"))
        if kind != self.pipeline_name:
            other = f"; {_OWNERS[kind]} takes it" if kind in _OWNERS else ""
            raise ValueError(
                f"{type(self).__name__} takes a {self.pipeline_name}, got {self.model!r}, a {kind}{other}."
            )
        if not hasattr(diffusers, kind):  # which newer versions have
            raise ImportError(
                f"{type(self).__name__} needs the {kind} of diffusers, and version {diffusers.__version__} has none; "
                "update it: pip install -U diffusers."
            )
        return index

    @cached_property
    def image_config(self) -> dict[str, Any]:
        """Return the configuration of the image encoder with its defaults, and check the images' size against it."""
        kind = self.component_class(self.encoder_part)
        arguments = inspect.signature(kind.__init__).parameters.values()
        defaults = {each.name: each.default for each in arguments if each.default is not inspect.Parameter.empty}
        # the files of early models leave out what was added later
        config = defaults | dict(kind.load_config(self.model, subfolder=self.encoder_part))
        self.check_image_size(config)
        return config

    @property
    def latents(self) -> Latents:
        """Return the latents of the image encoder, by its configuration."""
        return self.latents_kind(self.image_config)

    def check_image_size(self, config: dict[str, Any]) -> None:
        """Raise if images of this size do not fit the image encoder or the pipeline."""
        multiple = self._multiple(config)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size must be a multiple of {multiple} for {type(self).__name__}, got {self.image_size}."
            )

    @property
    def multiple(self) -> int:
        """Number of pixels that an image's height and width must be multiples of."""
        return self._multiple(self.image_config)

    def _multiple(self, config: dict[str, Any]) -> int:
        return lcm(self.least_multiple, self.latents_kind(config).factor)

    def component_class(self, name: str) -> Any:
        """Return the class of a part of the pipeline, one of diffusers or transformers.

        The index is a file of whoever made the model, so no other module that it names is imported.
        """
        entry = self.index.get(name)
        if not entry or not all(entry):
            raise FileNotFoundError(f"The model {self.model!r} has no {name}, which {type(self).__name__} needs.")
        library, kind = map(str, entry) if len(entry) == 2 else (str(entry), "")
        bases: tuple[type, ...] = ()
        part_class = None
        if library in _LOADABLE:
            module = importlib.import_module(library)
            bases = tuple(getattr(module, base) for base in _LOADABLE[library])
            part_class = getattr(module, kind, None)
        if not isinstance(part_class, type) or not issubclass(part_class, bases):
            raise ValueError(
                f"The model_index.json of {self.model!r} names {entry!r} for its {name}, and parts are loaded by the "
                "models, schedulers and tokenizers of diffusers and transformers alone; do not use a model that you do "
                "not trust."
            )
        return part_class

    @cached_property
    def files(self) -> frozenset[str]:
        """Return the paths of the model's files; of one on the hub that cannot be reached, of those that are here."""
        folder = Path(self.model)
        if not folder.is_dir():
            from huggingface_hub import HfApi, snapshot_download

            try:
                return frozenset(HfApi().list_repo_files(self.model))
            except Exception:  # the client's own, without network; what was downloaded before is here
                folder = Path(snapshot_download(self.model, local_files_only=True))
        return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))

    def has_variant(self, name: str) -> bool:
        """Return whether a part has files of the variant; one that no part has is refused."""
        if self.variant is None:
            return False
        pattern = re.compile(rf"\.{re.escape(self.variant)}[.-][^/]*$")
        parts = {path.partition("/")[0] for path in self.files if pattern.search(path)}
        if not parts:
            raise FileNotFoundError(f"The model {self.model!r} has no files of variant {self.variant!r}; leave it out.")
        return name in parts

    def component(self, name: str, dtype: torch.dtype | None = None, folder: str | None = None) -> Any:
        """Load a part of the pipeline, its weights in a type, from the model or another folder."""
        kind = self.component_class(name)
        options: dict[str, Any] = {"subfolder": name}
        if dtype is not None:
            of_diffusers = kind.__module__.startswith("diffusers")
            options |= {"torch_dtype" if of_diffusers else "dtype": dtype}
            options |= {"variant": self.variant} if folder is None and self.has_variant(name) else {}
        if name == self.network_part and self.quantization_config is not None:
            options |= {"quantization_config": self._quantization(self.quantization_config)}
        return self.read(kind, name, folder or self.model, **options)

    def read(self, kind: Any, name: str, source: str, **options: Any) -> Any:
        """Load a part by its class from a folder or name; no pickle of more than tensors."""
        try:
            with only_tensors(source):
                return kind.from_pretrained(source, **options)
        except OSError as error:
            reason = first_line(error)
            raise FileNotFoundError(f"The {name} of {source!r} cannot be loaded: {reason}") from error

    def pipeline(self, **components: Any) -> Any:
        """Return the pipeline around some of its parts, without the others and without a progress bar."""
        import diffusers

        kind = getattr(diffusers, self.pipeline_name)
        parameters = inspect.signature(kind.__init__).parameters.values()
        absent = {each.name: None for each in parameters if each.default is inspect.Parameter.empty}
        absent.pop("self")
        pipeline = kind(**absent | components | self.pipeline_options())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pipeline_options(self) -> dict[str, Any]:
        """Return what else the pipeline is made with."""
        return {}

    def present_text_parts(self) -> tuple[str, ...]:
        """Return the tokenizers and text encoders that are used."""
        return self.text_parts

    def load_text(self) -> None:
        """Load tokenizers and text encoders, and encode what guidance leads away from."""
        parts = {}
        for name in self.present_text_parts():
            parts[name] = self.component(name, None if name.startswith("tokenizer") else self.encoder_dtype)
        self.hold("text", **parts)
        self._held["text"]["pipeline"] = self.pipeline(**parts)
        if self.unconditional is None:
            with torch.no_grad():
                self.unconditional = {name: value.cpu() for name, value in self.encode_prompt([""]).items()}

    def load_images(self) -> None:
        """Load the image encoder and decoder."""
        config = self.image_config
        vae = self.component(self.encoder_part, self.image_dtype(config))
        if self.vae_slicing:
            vae.enable_slicing()
        self.hold("images", vae=vae)

    def image_dtype(self, config: dict[str, Any]) -> torch.dtype:
        """Return the type of the image encoder's weights."""
        return self.encoder_dtype

    def load_network(self) -> None:
        """Load the network, and the scheduler that the schedule is read from."""
        _ = self.image_config
        self.scheduler = self.component("scheduler")
        self.schedule = self.noise_schedule()
        self.network = self.component(self.network_part, self.dtype, self.trained_network)
        if self.quantization_config is not None:  # bitsandbytes load where they compute
            self.to(next(self.network.parameters()).device)

    def _quantization(self, config: dict[str, Any]) -> Any:
        from diffusers.quantizers.auto import DiffusersAutoQuantizer

        try:
            return DiffusersAutoQuantizer.from_dict(dict(config))
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(f"diffusers take no quantization_config {config!r}: {first_line(error)}") from error

    def noise_schedule(self) -> NoiseSchedule:
        """Return the schedule that the scheduler describes."""
        levels = getattr(self.scheduler, "alphas_cumprod", None)
        prediction = self.scheduler.config.get("prediction_type")
        if levels is None or prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"{type(self).__name__} needs a scheduler with alphas_cumprod and a prediction_type of 'epsilon' or "
                f"'v_prediction', got {type(self.scheduler).__name__} with {prediction!r} in {self.model!r}."
            )
        if prediction == "epsilon" and self.scheduler.config.get("rescale_betas_zero_snr"):
            raise ValueError(
                f"The scheduler of {self.model!r} is rescaled to zero terminal SNR, where the noise that a network of "
                "'epsilon' predicts says nothing of the picture, and what it draws is not finite; set "
                "rescale_betas_zero_snr to false in its scheduler_config.json, or take a model of 'v_prediction'."
            )
        return NoiseSchedule(levels, prediction)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Return the shape of one image's latents."""
        return self.latents.shape(*(size or (self.image_size, self.image_size)))

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return what the pipeline makes of the prompts; of an empty one, what guidance leads away from.

        Gradients pass through text encoders with adapters.
        """
        pipeline = self.held("text", "pipeline")
        with self.own_precision():
            return self.encode_with(pipeline, list(prompts))

    @abstractmethod
    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Encode prompts with the pipeline around the text encoders."""

    def split(self, condition: Condition) -> list[Condition]:
        """Return the rows of a condition, each cut to its own tokens if the pipeline takes prompts of any length."""
        rows = super().split(condition)
        if self.length_mask is None:
            return rows
        ends = condition[self.length_mask].sum(1).tolist()
        return [{name: value[:end] for name, value in row.items()} for row, end in zip(rows, ends, strict=True)]

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, in the network's scale, float32."""
        vae = self.held("images", "vae")
        with self.own_precision():
            return self.latents.encode(vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, float32."""
        vae = self.held("images", "vae")
        with self.own_precision():
            return self.latents.decode(vae, latents)

    def own_precision(self) -> AbstractContextManager[Any]:
        """Switch autocast off."""
        return torch.autocast(self.device.type, enabled=False)

    def cast(self, condition: Condition) -> Condition:
        """Return the condition in the type of the network; masks as they are."""
        dtype = self.network.dtype
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}

    def unconditional_rows(self, number: int) -> Condition:
        """Return what guidance leads away from, a number of times; load the text encoder for it if need be."""
        if self.text_encoders:  # they have changed since
            self.unconditional = self.encode_prompt([""])
        elif self.unconditional is None:
            loaded = "text" in self._held
            self.load("text")
            if not loaded:
                self.free("text")
        assert self.unconditional is not None
        rows = {
            name: value.to(self.device).expand(number, *value.shape[1:]) for name, value in self.unconditional.items()
        }
        return self.cast(rows)

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        generators: Sequence[torch.Generator],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Run the pipeline with its own scheduler; what it draws is decoded by :meth:`decode`."""
        self.load("images", "network")
        scale = self.guidance if guidance is None else guidance
        parts = {
            self.network_part: self.network,
            self.encoder_part: self.held("images", "vae"),
            "scheduler": self.scheduler,
        }
        latents = self.pipeline(**parts)(
            **self.call_arguments(self.cast(condition), scale),
            height=self.image_size,
            width=self.image_size,
            num_inference_steps=num_steps or self.usual_steps(),
            generator=list(generators),
            output_type="latent",
            return_dict=False,
        )[0]
        return self.decode(self.unpacked(latents)).clamp(-1, 1) / 2 + 0.5

    def usual_steps(self) -> int:
        """Return the usual number of steps."""
        assert self.num_steps is not None
        return self.num_steps

    def call_arguments(self, condition: Condition, guidance: float) -> dict[str, Any]:
        """Return the arguments of the pipeline that say what to draw, for a scale of guidance in the usual notation."""
        scale = {self.guidance_argument: guidance - self.guidance_offset}
        arguments = {**self.prompt_arguments(condition), **scale, **self.call_options}
        if guidance > 1:
            rows = self.unconditional_rows(len(condition["prompt_embeds"]))
            arguments |= self.prompt_arguments(rows, "negative_")
        return arguments

    def prompt_arguments(self, condition: Condition, prefix: str = "") -> dict[str, Any]:
        """Return prompts as the pipeline takes them; the prefix is that of what guidance leads away from."""
        return {f"{prefix}{name}": value for name, value in condition.items()}

    def unpacked(self, latents: Tensor) -> Tensor:
        """Return the pipeline's latents in the shape of :meth:`latent_shape`."""
        return latents

    def save_pretrained(self, folder: str, adapter: bool) -> None:
        """Write the adapters for ``load_lora_weights`` of the pipeline, or the whole network in its own folder."""
        if not adapter:
            self.network.save_pretrained(f"{folder}/{self.network_part}")
            return
        import diffusers
        from peft import get_peft_model_state_dict

        written: dict[str, Any] = {}
        for part, model in {self.network_part: self.network, **self.text_encoders}.items():
            weights = get_peft_model_state_dict(model, adapter_name="default")
            written[f"{part}_lora_layers"] = {name: value.contiguous() for name, value in weights.items()}
            # without it the scale of an adapter would be guessed
            config: Any = without_dropout(model.peft_config["default"])
            written[f"{part}_lora_adapter_metadata"] = config.to_dict()
        getattr(diffusers, self.pipeline_name).save_lora_weights(folder, **written)

    def usage(self, adapter: bool) -> str:
        """Return lines that load the adapter, or the network, into the pipeline."""
        kind = self.pipeline_name
        if adapter:
            start = f'from diffusers import {kind}\n\npipeline = {kind}.from_pretrained("{self.model}")'
            return f'{start}\npipeline.load_lora_weights("FOLDER")'
        part, network = self.network_part, type(self.network).__name__
        return (
            f'from diffusers import {kind}, {network}\n\nnetwork = {network}.from_pretrained("FOLDER/{part}")\n'
            f'pipeline = {kind}.from_pretrained("{self.model}", {part}=network)'
        )
