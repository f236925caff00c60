"""Makers of images from prompts: any pipeline of diffusers, or a remote endpoint."""

import hashlib
from functools import cached_property
from typing import Any, Protocol

from lit_modules.utils.endpoints import Endpoint, RefusedError
from lit_modules.utils.images import encoded, read_picture
from lit_modules.utils.model_versions import model_version

PHOTO = "A photo of one object, without any lettering. {caption}"
"""Prompt of a caption."""
CONCEPT = "a photo of a {concept}"
"""Prompt of an existing concept."""


class ImageMaker(Protocol):
    """Makes an image from a prompt.

    Attributes:
        concurrent: Whether several threads may ask at once.
    """

    concurrent: bool

    @property
    def version(self) -> str | None:
        """Mark of the weights, by which they differ from others of the same name; ``None`` where there is none."""
        ...

    def __call__(self, prompt: str, seed: int) -> bytes:
        """Return a PNG file of what a prompt says, by a seed below 2^63.

        Raises:
            RefusedError: If there is no image for this prompt.
            ValueError: If what came is no image.
        """
        ...

    def stop(self) -> None:
        """End as soon as possible."""
        ...


class PipelineImages:
    """Images from a text-to-image pipeline of diffusers, which is loaded for the first one.

    Args:
        model: Name or folder of the pipeline.
        size: Side in pixels; ``None`` takes the model's usual one.
        num_steps: Steps; ``None`` takes the model's usual number.
        guidance: Scale of guidance; ``None`` takes the model's usual one.
        precision: Type of the weights, such as ``"float32"`` or ``"bfloat16"``.
        device: Where to compute; ``None`` takes a GPU if there is one.
    """

    concurrent = False

    def __init__(
        self,
        model: str,
        size: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        precision: str = "float32",
        device: str | None = None,
    ) -> None:
        self.model, self.precision, self.device = model, precision, device
        options = {"height": size, "width": size, "num_inference_steps": num_steps, "guidance_scale": guidance}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._pipeline: Any = None

    @cached_property
    def version(self) -> str:
        """Mark of the weights, by which they differ from others of the same name."""
        return model_version(self.model, None, "model_index.json")

    def __call__(self, prompt: str, seed: int) -> bytes:
        """Return a PNG file; a seed gives the same image."""
        import torch

        pipeline = self._load()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            output = pipeline(prompt, generator=generator, **self._options)
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise RefusedError("the pipeline's own safety checker took the image out", content=True)
        return encoded(output.images[0])

    def stop(self) -> None:
        """Do nothing: each image is made before the next one is asked for."""

    def _load(self) -> Any:
        if self._pipeline is None:
            import torch
            from diffusers import DiffusionPipeline

            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            pipeline = DiffusionPipeline.from_pretrained(self.model, dtype=getattr(torch, self.precision))
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(device)
        return self._pipeline


class EndpointImages:
    """Images from a remote endpoint, which knows no seed.

    Args:
        endpoint: The endpoint.
        size: Side in pixels.
    """

    concurrent = True
    version = None

    def __init__(self, endpoint: Endpoint, size: int = 1024) -> None:
        self.endpoint, self.size = endpoint, size

    def __call__(self, prompt: str, seed: int) -> bytes:
        """Return a PNG file."""
        return self.endpoint.image(prompt, self.size, reread)

    def stop(self) -> None:
        """Send no further request."""
        self.endpoint.stop()


def image_seed(*parts: str | int) -> int:
    """Return a seed below 2^63 that depends on the parts alone, on every machine."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def reread(data: bytes) -> bytes:
    """Return an image file that :func:`lit_modules.utils.images.read_picture` takes as a PNG file."""
    return encoded(read_picture(data, "what came"))
