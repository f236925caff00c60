"""Models on this machine: image-text models of transformers, pipelines of diffusers, and CLIP-like embedders."""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lit_modules.coda.backends.model_versions import chosen_device, model_version
from lit_modules.coda.backends.protocols import BackendError, Capabilities, ChatRequest, Message, Reply, Usage
from lit_modules.utils.thoughts import decode_answer, mentions_thoughts, opened_thought, template_options

if TYPE_CHECKING:
    from torch import Tensor

_QUESTION_END = 16  # tokens among which a template opens a thought


class LocalChat:
    """An image-text model that transformers load through their Auto classes, such as LLaVA-NeXT.

    Questions are answered in batches of similar length with padding on the left, so that the answers are those of the
    same questions asked alone. Where the model allows it, what several questions about one image begin with is read
    once. A temperature of 0 takes the likeliest token; above 0, each
    answer is drawn from its own seed by noise on its own scores (the Gumbel-max trick), which no neighbour in the batch
    changes. Two tokens that are equally likely within the precision may still fall either way. Nothing is ever cut off:
    a question that is too long is an error. A template that can switch thinking off does so; where a model thinks all
    the same, its thoughts are no part of the answer. The model is loaded at the first question, frozen and in
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
        """What the model can do."""
        thinks = mentions_thoughts(self._processor)
        return Capabilities(self.images_per_message, option_scores=True, trainable=True, thinks=thinks)

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
        request = ChatRequest(tuple(messages), tuple(images), max_new_tokens, temperature, schema, seed)
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
            for numbers in batches(list(group.values()), lengths, self.batch_size, self.batch_tokens):
                asked = [requests[number] for number in numbers]
                yield from zip(numbers, self._answer(asked, [tokens[number] for number in numbers]), strict=True)

    def score_options(
        self, messages: Sequence[Message], images: Sequence[Image.Image], options: Sequence[str]
    ) -> list[float]:
        """Return the mean log-probability of each option's tokens as the answer.

        Args:
            messages: The conversation.
            images: Images in the order of their places in the messages.
            options: Possible answers, at least one.

        Raises:
            ValueError: If there is no option or an empty one.
        """
        import torch

        if not options or not all(options):
            raise ValueError(f"options must be texts that are not empty, at least one, got {list(options)}.")
        processor, network = self._loaded
        question = dict(self._inputs([ChatRequest(tuple(messages), tuple(images))]))
        marks = opened_thought(processor.tokenizer.decode(question["input_ids"][0, -_QUESTION_END:]))
        if marks is not None:
            question = self._continued(question, f"\n{marks[1]}\n\n")
        scores = []
        for option in options:
            given = self._continued(question, option)
            tokens = given["input_ids"][:, question["input_ids"].shape[1] :]
            with torch.no_grad():
                logits = network(**given).logits[:, -tokens.shape[1] - 1 : -1].float()
            found = logits.log_softmax(-1).gather(-1, tokens[..., None])
            scores.append(float(found.mean()))
        return scores

    def _continued(self, question: dict[str, Any], text: str) -> dict[str, Any]:
        """Return the model's inputs with a text behind the question."""
        import torch

        tokens = self._processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        tokens = tokens.to(question["input_ids"].device)
        given = dict(question)
        for name, fill in (("input_ids", tokens), ("attention_mask", torch.ones_like(tokens))):
            given[name] = torch.cat([question[name], fill], dim=1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in question:
                given[name] = torch.cat([question[name], torch.zeros_like(tokens)], dim=1)
        if "cross_attention_mask" in question:  # the text sees the images that the question's last token sees
            seen = question["cross_attention_mask"]
            last = seen[:, -1:].expand(-1, tokens.shape[1], *seen.shape[2:])
            given["cross_attention_mask"] = torch.cat([seen, last], dim=1)
        return given

    @property
    def _where(self) -> dict[str, str | None]:
        return {} if Path(self.model).is_dir() else {"revision": self.revision}

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        loader: Any = AutoProcessor
        processor: Any = loader.from_pretrained(self.model, **self._where)
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
        network: Any = AutoModelForImageTextToText.from_pretrained(self.model, dtype=self.dtype, **self._where)
        return processor, network.to(chosen_device(self.device)).requires_grad_(False).eval()

    @property
    def _limit(self) -> int | None:
        config = self._loaded[1].config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        return None if found is None else int(found)

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
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
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
        shared = read_shared(network, images, tokens, groups, processor.tokenizer.pad_token_id)
        self._shares = shared is not None
        return shared


class DiffusersImages:
    """Any text-to-image pipeline of diffusers, loaded for the first picture.

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
        """Return a picture; the same arguments give the same one.

        Raises:
            BackendError: If the pipeline's own safety checker takes the picture out.
            ValueError: If the pipeline does not know one of the arguments.
        """
        import torch

        given: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "generator": torch.Generator().manual_seed(seed),
            **self.options,
        }
        if negative is not None:
            given["negative_prompt"] = negative
        pipeline = self._pipeline
        known = inspect.signature(pipeline.__call__).parameters
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"{type(pipeline).__name__} of {self.model} does not take {', '.join(unknown)}.")
        with torch.no_grad():
            output = pipeline(prompt, **given)
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise BackendError(f"The safety checker of {self.model} took the picture out.")
        picture: Image.Image = output.images[0].convert("RGB")
        return picture

    @cached_property
    def _pipeline(self) -> Any:
        import torch
        from diffusers import DiffusionPipeline

        where = {} if Path(self.model).is_dir() else {"revision": self.revision}
        pipeline: Any = DiffusionPipeline.from_pretrained(self.model, dtype=getattr(torch, self.dtype), **where)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(chosen_device(self.device))


class ClipEmbedder:
    """A model for images and texts of transformers, such as CLIP or SigLIP.

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

        device = chosen_device(self.device)
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
