"""Models on this machine: image-text models of transformers, pipelines of diffusers, CLIP-like embedders."""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lit_modules.coda.backends.protocols import BackendError, Capabilities, ChatRequest, Message, Reply, Usage
from lit_modules.utils.model_versions import model_version
from lit_modules.utils.thoughts import decode_answer, mentions_thoughts, template_options

if TYPE_CHECKING:
    from torch import Tensor

_QUESTION_END = 16  # tokens among which a template opens a thought
_SIDE_UNIT = 8  # of edited images, as a side of the latents is an eighth of theirs


class LocalChat:
    """Image-text model that transformers load through their Auto classes, such as LLaVA-NeXT.

    Questions are answered in batches of similar length with padding on the left, so that the answers are those of the
    same questions asked alone. Where the model allows it, what several questions about one image begin with is read
    once. A temperature of 0 takes the likeliest token; above 0, each answer is drawn from its own seed by noise on its
    own scores (the Gumbel-max trick), which no neighbour in the batch changes. Two tokens that are equally likely
    within the precision may still fall either way. A question that is too long is an error. Thinking is switched off
    where the template can; thoughts are no part of an answer. The model is loaded at the first question, frozen and in
    evaluation mode.

    Args:
        model: Name or folder of the model; its processor must have a chat template.
        revision: Revision of a model on the Hub; ``None`` takes the newest.
        device: Where to compute, as torch names it; ``None`` takes a GPU if there is one.
        dtype: Precision, as torch names it, or ``"auto"`` for that of the file.
        batch_size: Most questions in a batch.
        batch_tokens: Most tokens in a batch, padding included and answers not; a longer question is alone in its own.
        images_per_message: Most images in a message that the model was trained on; 0 for one without vision.

    Raises:
        ValueError: If an argument is out of its range; at the first question, if the processor lacks a setting.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 16,
        batch_tokens: int = 32768,
        images_per_message: int = 1,
    ) -> None:
        if batch_size < 1 or batch_tokens < 1 or images_per_message < 0:
            raise ValueError(
                "batch_size and batch_tokens must be at least 1 and images_per_message not negative, got "
                f"{batch_size}, {batch_tokens} and {images_per_message}."
            )
        self.model, self.revision, self.device, self.dtype = model, revision, device, dtype
        self.batch_size, self.batch_tokens, self.images_per_message = batch_size, batch_tokens, images_per_message
        self._shares: bool | None = None  # known after the first questions on one image

    @cached_property
    def identity(self) -> str:
        """Name, revision or hash of the files, and precision."""
        return f"{model_version(self.model, self.revision, 'config.json')} ({self.dtype})"

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the model."""
        thinks = mentions_thoughts(self._processor)
        return Capabilities(self.images_per_message, thinks=thinks)

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """Return the answer to one question; ``schema`` is not obeyed.

        Raises:
            BackendError: If the question is longer than the model reads.
        """
        request = ChatRequest(
            tuple(messages), tuple(images), max_new_tokens, temperature=temperature, schema=schema, seed=seed
        )
        ((_, reply),) = self.chat_many([request])
        if isinstance(reply, BackendError):
            raise reply
        return reply

    def chat_many(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
        """Yield the number of a request with its answer, batch by batch."""
        from lit_modules.coda.core.batched_answers import batches

        groups: dict[tuple[int, int], dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
        tokens: dict[int, list[int]] = {}
        known: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            key = _token_key(request)
            if key not in known:
                known[key] = self._inputs([request])["input_ids"][0].tolist()
            tokens[number], length = known[key], len(known[key])
            if self._limit is not None and length + request.max_new_tokens > self._limit:
                yield (
                    number,
                    BackendError(
                        f"The question takes {length} tokens and its answer up to {request.max_new_tokens}, more than "
                        f"the {self._limit} that {self.model} reads; ask for fewer, or give smaller images."
                    ),
                )
                continue
            # processors want as many images in each row
            group = groups[request.max_new_tokens, len(request.images)]
            group[tuple(map(id, request.images)) or number].append(number)
        lengths = {number: len(own) for number, own in tokens.items()}
        for group in groups.values():
            for numbers in batches(list(group.values()), lengths, self.batch_size, batch_tokens=self.batch_tokens):
                asked = [requests[number] for number in numbers]
                yield from zip(numbers, self._answer(asked, [tokens[number] for number in numbers]), strict=True)

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        loader: Any = AutoProcessor
        processor: Any = loader.from_pretrained(self.model, **_revision(self.model, self.revision))
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"The processor of {self.model} has no chat template; take an instruction-tuned model.")
        for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
            if hasattr(processor, name) and getattr(processor, name) is None:
                raise ValueError(
                    f"The processor of {self.model} has no {name}, without which the places for an image are not as "
                    f"many as its features; add {name} to its processor_config.json."
                )
        processor.tokenizer.padding_side = "left"  # the answer follows the question at once
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText

        processor = self._processor
        network: Any = AutoModelForImageTextToText.from_pretrained(
            self.model, dtype=self.dtype, **_revision(self.model, self.revision)
        )
        return processor, network.to(_device(self.device)).requires_grad_(False).eval()

    @property
    def _limit(self) -> int | None:
        config = self._loaded[1].config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)  # not all configurations have one
        return None if limit is None else int(limit)

    def _inputs(self, requests: Sequence[ChatRequest]) -> Any:
        processor, network = self._loaded
        return processor.apply_chat_template(
            [_conversation(request) for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **template_options(processor),
        ).to(network.device, network.dtype)

    def _answer(self, requests: Sequence[ChatRequest], tokens: Sequence[list[int]]) -> list[Reply | BackendError]:
        import torch
        from transformers import LogitsProcessorList

        from lit_modules.coda.core.batched_answers import SeededNoise

        processor, network = self._loaded
        ends = network.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        inputs = self._shared_inputs(requests, tokens) or self._inputs(requests)
        noise: Any = LogitsProcessorList([SeededNoise(requests)])
        with torch.no_grad():
            rows: list[list[int]] = network.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,  # would count the padding as repeated
                max_new_tokens=requests[0].max_new_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
                logits_processor=noise,
                use_cache=True,
                temperature=None,
                top_p=None,
                top_k=None,
            )[:, inputs["input_ids"].shape[1] :].tolist()
        replies: list[Reply | BackendError] = []
        for row, question in zip(rows, tokens, strict=True):
            end = next((index for index, token in enumerate(row) if token in ends), len(row))
            asked = str(processor.tokenizer.decode(question[-_QUESTION_END:]))
            text = decode_answer(processor.tokenizer, row[:end], asked)
            if text or not processor.tokenizer.decode(row[:end], skip_special_tokens=True).strip():
                replies.append(Reply(text, self.identity, Usage(len(question), min(end + 1, len(row)))))
            else:
                replies.append(
                    BackendError(
                        f"{self.model} thought for {len(row)} tokens and did not come to an answer; allow longer ones."
                    )
                )
        return replies

    def _shared_inputs(self, requests: Sequence[ChatRequest], tokens: Sequence[list[int]]) -> dict[str, Any] | None:
        """Return inputs that go on from what questions on the same images begin with; ``None`` if there is no gain."""
        from lit_modules.coda.core.batched_answers import can_share, image_groups, read_shared

        processor, network = self._loaded
        groups = None if self._shares is False else image_groups(requests, tokens, processor.image_token_id)
        if groups is None or len(set(groups)) == len(groups):
            return None
        inputs = dict(self._inputs([requests[groups.index(group)] for group in range(max(groups) + 1)]))
        if self._shares is None:
            self._shares = can_share(network, inputs)
        if not self._shares:
            return None
        images = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        shared = read_shared(network, images, tokens, groups=groups, pad=processor.tokenizer.pad_token_id)
        self._shares = shared is not None
        return shared


class DiffusersImages:
    """Text-to-image pipeline of diffusers, loaded for the first image.

    The noise is drawn on the CPU, so that a seed means the same noise on every device.

    Args:
        model: Name or folder of the pipeline.
        revision: Revision of a pipeline on the Hub; ``None`` takes the newest.
        device: Where to compute, as torch names it; ``None`` takes a GPU if there is one.
        dtype: Precision of the weights, such as ``"float32"`` or ``"bfloat16"``.
        options: Further arguments of each call of the pipeline, such as ``{"max_sequence_length": 512}``.

    Raises:
        ValueError: If the pipeline does not know one of the arguments, or takes no negative prompt and is given one.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.revision, self.device, self.dtype = model, revision, device, dtype
        self.options = dict(options or {})

    @cached_property
    def identity(self) -> str:
        """Name, revision or hash of the files, precision and further arguments."""
        more = "".join(f", {name}={value!r}" for name, value in sorted(self.options.items()))
        return f"{model_version(self.model, self.revision, 'model_index.json')} ({self.dtype}{more})"

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        """Return an image; the same arguments give the same one.

        Raises:
            BackendError: If the pipeline's own safety checker removes the image.
            ValueError: If the pipeline does not know one of the arguments.
        """
        import torch

        arguments: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "generator": torch.Generator().manual_seed(seed),
            **self.options,
        }
        if negative is not None:
            arguments["negative_prompt"] = negative
        pipeline = self._pipeline
        unknown = sorted(set(arguments) - set(inspect.signature(pipeline.__call__).parameters))
        if unknown:
            raise ValueError(f"{type(pipeline).__name__} of {self.model} does not take {', '.join(unknown)}.")
        return _run_pipeline(pipeline, self.model, prompt=prompt, **arguments)

    @cached_property
    def _pipeline(self) -> Any:
        return _load_pipeline(self.model, self.revision, self.device, dtype=self.dtype)


class DiffusersEdits:
    """Pipeline of diffusers that edits an image by an instruction, such as InstructPix2Pix, loaded for the first image.

    The noise is drawn on the CPU, so that a seed means the same noise on every device.

    Args:
        model: Name or folder of the pipeline, such as one of ``StableDiffusionInstructPix2PixPipeline``.
        revision: Revision of a pipeline on the Hub; ``None`` takes the newest.
        device: Where to compute, as torch names it; ``None`` takes a GPU if there is one.
        dtype: Precision of the weights, such as ``"float32"`` or ``"bfloat16"``.
        max_side: Longest side of the images after scaling, in pixels.

    Raises:
        ValueError: If ``max_side`` is too small; at the first image, if the pipeline edits no images.

    References:
        Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions", arXiv 2211.09800.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        max_side: int = 512,
    ) -> None:
        if max_side < _SIDE_UNIT:
            raise ValueError(f"max_side must be at least {_SIDE_UNIT}, got {max_side}.")
        self.model, self.revision, self.device, self.dtype, self.max_side = model, revision, device, dtype, max_side

    @cached_property
    def identity(self) -> str:
        """Name, revision or hash of the files, precision and size."""
        version = model_version(self.model, self.revision, "model_index.json")
        return f"{version} ({self.dtype}, max_side={self.max_side})"

    def edit(
        self, image: Image.Image, instruction: str, seed: int, steps: int, guidance: float, image_guidance: float
    ) -> Image.Image:
        """Return the changed image, RGB; the same arguments give the same one.

        Raises:
            BackendError: If the pipeline's own safety checker removes the image.
            ValueError: If the pipeline edits no images.
        """
        import torch

        scale = self.max_side / max(image.size)
        width, height = (max(_SIDE_UNIT, round(side * scale / _SIDE_UNIT) * _SIDE_UNIT) for side in image.size)
        return _run_pipeline(
            self._pipeline,
            self.model,
            prompt=instruction,
            image=image.convert("RGB").resize((width, height)),
            num_inference_steps=steps,
            guidance_scale=guidance,
            image_guidance_scale=image_guidance,
            generator=torch.Generator().manual_seed(seed),
        )

    @cached_property
    def _pipeline(self) -> Any:
        pipeline = _load_pipeline(self.model, self.revision, self.device, dtype=self.dtype)
        missing = {"image", "image_guidance_scale"} - set(inspect.signature(pipeline.__call__).parameters)
        if missing:
            raise ValueError(
                f"{type(pipeline).__name__} of {self.model} edits no pictures by instructions, as it does not take "
                f"{' and '.join(sorted(missing))}; give a pipeline such as StableDiffusionInstructPix2PixPipeline."
            )
        return pipeline


class ClipEmbedder:
    """Model of transformers for images and texts, such as CLIP or SigLIP.

    Args:
        model: Name or folder of the model; a folder pins it.
        device: Where to compute, as torch names it; ``None`` takes a GPU if there is one.
        batch_size: Images or texts in one forward pass.

    Raises:
        ValueError: If ``batch_size`` is not positive; at the first text, if the model has no text tower.
    """

    def __init__(self, model: str, device: str | None = None, batch_size: int = 32) -> None:
        from lit_modules.metrics.image_text import ImageTextEncoder

        self.model, self.device = model, device
        self.encoder = ImageTextEncoder(model, batch_size)

    @cached_property
    def identity(self) -> str:
        """Name, and revision or hash of the files."""
        return model_version(self.model, None, "config.json")

    def embed_images(self, images: Sequence[Image.Image]) -> "Tensor":
        """Return unit vectors ``(n, d)``."""
        import torch

        device = _device(self.device)
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).to(device) for image in images]
        return self.encoder.images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Return unit vectors ``(n, d)``."""
        return self.encoder.texts(texts)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, special ones included."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)


def _conversation(request: ChatRequest) -> list[dict[str, Any]]:
    """Return messages in the form of processors, with the images in their places."""
    images = iter(request.images)
    conversation = []
    for message in request.messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        filled = [
            {"type": "image", "image": next(images).convert("RGB")} if part["type"] == "image" else dict(part)
            for part in parts
        ]
        conversation.append({**message, "content": filled})
    return conversation


def _token_key(request: ChatRequest) -> tuple[Any, ...]:
    """Return what the tokens of a question depend on: its text and the sizes of its images."""
    return (repr([dict(message) for message in request.messages]), *(image.size for image in request.images))


def _device(name: str | None) -> str:
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _revision(model: str, revision: str | None) -> dict[str, str | None]:
    return {} if Path(model).is_dir() else {"revision": revision}


def _load_pipeline(model: str, revision: str | None, device: str | None, dtype: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **_revision(model, revision))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(_device(device))


def _run_pipeline(pipeline: Any, model: str, **arguments: Any) -> Image.Image:
    import torch

    with torch.no_grad():
        output = pipeline(**arguments)
    if any(getattr(output, "nsfw_content_detected", None) or ()):  # not all pipelines have a checker
        raise BackendError(f"The safety checker of {model} took the picture out.")
    image: Image.Image = output.images[0].convert("RGB")
    return image
