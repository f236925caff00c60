"""Judges that ask a model: one of transformers on this machine, or one behind an OpenAI-compatible endpoint."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_modules.synthia.core.images import as_array, data_uri
from lit_modules.synthia.judge.asking import AskingJudge, NoAnswerError
from lit_modules.utils.endpoints import Endpoint, EndpointError, RefusedError
from lit_modules.utils.thoughts import decode_answer, template_options

_FAILURES = 3


class LocalJudge(AskingJudge):
    """Ask a model for images and texts that transformers load, one question at a time, by greedy decoding.

    The model is loaded at the first question, frozen and in evaluation mode.

    Args:
        model: Name or folder of a model, such as ``"HuggingFaceTB/SmolVLM-500M-Instruct"``; its processor must have a
            chat template.
        device: Where to compute, as torch names it.
        dtype: Precision, as torch names it, or ``"auto"`` for that of the file.
        max_new_tokens: Longest answer.
        retries: Times that a useless answer is asked for again, with a reminder.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, model: str, device: str = "cpu", dtype: str = "auto", max_new_tokens: int = 256, retries: int = 1
    ) -> None:
        super().__init__(retries)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        self.model, self.device, self.dtype, self.max_new_tokens = model, device, dtype, max_new_tokens
        self._loaded: tuple[Any, Any] | None = None

    def answer(self, question: str, images: Sequence[Tensor]) -> str:
        """Return the answer to a question about images, in words."""
        import torch
        from PIL import Image

        processor, network = self._load()
        content: list[dict[str, Any]] = [
            {"type": "image", "image": Image.fromarray(as_array(image))} for image in images
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **template_options(processor),
        ).to(network.device, network.dtype)
        prompt = inputs["input_ids"][0]
        with torch.no_grad():
            tokens = network.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        return decode_answer(processor.tokenizer, tokens[0, len(prompt) :].tolist(), processor.decode(prompt[-16:]))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            loader: Any = AutoProcessor
            processor: Any = loader.from_pretrained(self.model)
            if not getattr(processor, "chat_template", None):
                raise ValueError(
                    f"The processor of {self.model} has no chat template; take an instruction-tuned model."
                )
            network: Any = AutoModelForImageTextToText.from_pretrained(self.model, dtype=self.dtype)
            self._loaded = processor, network.to(self.device).requires_grad_(False).eval()
        return self._loaded


class EndpointJudge(AskingJudge):
    """Ask a model for images and texts behind an OpenAI-compatible endpoint; the images travel in the request.

    The endpoint sends again what fails for a while. A question that it refuses has no answer, and so has one that it
    leaves without, up to three in a row.

    Args:
        endpoint: Address, model, and the environment variable of the key.
        temperature: Temperature of the answers; ``None`` leaves it to the endpoint, as some models demand.
        enlarge_to: Least side of the images in pixels; smaller ones are enlarged by a whole number.
        retries: Times that a useless answer is asked for again, with a reminder.
        workers: Questions asked at the same time.

    Raises:
        ValueError: If an argument is out of its range.
        EndpointError: In a question, if the endpoint cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        temperature: float | None = 0.0,
        enlarge_to: int = 256,
        retries: int = 2,
        workers: int = 4,
    ) -> None:
        super().__init__(retries, workers)
        if enlarge_to < 1:
            raise ValueError(f"enlarge_to must be at least 1 pixel, got {enlarge_to}.")
        self.endpoint, self.enlarge_to = endpoint, enlarge_to
        self._options = {} if temperature is None else {"temperature": temperature}
        self._answered = self._failed = 0

    def answer(self, question: str, images: Sequence[Tensor]) -> str:
        """Return the answer to a question about images, in words."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        for image in images:
            content.append({"type": "image_url", "image_url": {"url": data_uri(image, self.enlarge_to)}})
        messages: Any = [{"role": "user", "content": content}]
        try:
            answer = self.endpoint.chat(messages, str, **self._options)
        except RefusedError as error:
            raise NoAnswerError(f"the endpoint refuses the question ({error}).") from None
        except ValueError as error:
            raise NoAnswerError(f"the endpoint's answer cannot be read ({error}).") from None
        except EndpointError as error:
            with self._lock:
                self._failed += 1
                hopeless = not self._answered or self._failed >= _FAILURES
            if hopeless:
                raise
            raise NoAnswerError(str(error)) from None
        with self._lock:
            self._answered, self._failed = self._answered + 1, 0
        return answer
