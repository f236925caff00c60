"""Editing pictures by instructions on this machine, with pipelines of diffusers such as InstructPix2Pix."""

import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from lit_modules.coda.backends.model_versions import chosen_device, model_version
from lit_modules.coda.backends.protocols import BackendError

_STEP = 8  # sides are multiples of it, as latents are an eighth of them


class DiffusersEdits:
    """A pipeline of diffusers that edits a picture by an instruction, loaded for the first picture.

    The noise is drawn on the CPU, so that a seed means the same noise on every device.

    Args:
        model: Name or folder of the pipeline, such as one of ``StableDiffusionInstructPix2PixPipeline``.
        revision: Revision of a pipeline on the Hub; ``None`` takes the newest.
        device: Where to compute, as torch names it; ``None`` takes a GPU if there is one.
        dtype: Precision of the weights, such as ``"float32"`` or ``"bfloat16"``.
        max_side: Pictures are scaled so that their longest side has as many pixels.

    Raises:
        ValueError: If ``max_side`` is too small; at the first picture, if the pipeline edits no pictures.

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
        if max_side < _STEP:
            raise ValueError(f"max_side must be at least {_STEP}, got {max_side}.")
        self.model, self.revision, self.device, self.dtype, self.max_side = model, revision, device, dtype, max_side

    @cached_property
    def identity(self) -> str:
        """Name, revision or hash of the files, precision and size."""
        version = model_version(self.model, self.revision, "model_index.json")
        return f"{version} ({self.dtype}, max_side={self.max_side})"

    def edit(
        self, image: Image.Image, instruction: str, seed: int, steps: int, guidance: float, image_guidance: float
    ) -> Image.Image:
        """Return the changed picture, RGB; the same arguments give the same one.

        Raises:
            BackendError: If the pipeline's own safety checker takes the picture out.
            ValueError: If the pipeline edits no pictures.
        """
        import torch

        pipeline = self._pipeline
        with torch.no_grad():
            output = pipeline(
                prompt=instruction,
                image=image.convert("RGB").resize(self._size(image)),
                num_inference_steps=steps,
                guidance_scale=guidance,
                image_guidance_scale=image_guidance,
                generator=torch.Generator().manual_seed(seed),
            )
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise BackendError(f"The safety checker of {self.model} took the picture out.")
        picture: Image.Image = output.images[0].convert("RGB")
        return picture

    def _size(self, image: Image.Image) -> tuple[int, int]:
        scale = self.max_side / max(image.size)
        width, height = (max(_STEP, round(side * scale / _STEP) * _STEP) for side in image.size)
        return width, height

    @cached_property
    def _pipeline(self) -> Any:
        import torch
        from diffusers import DiffusionPipeline

        where = {} if Path(self.model).is_dir() else {"revision": self.revision}
        pipeline: Any = DiffusionPipeline.from_pretrained(self.model, dtype=getattr(torch, self.dtype), **where)
        missing = {"image", "image_guidance_scale"} - set(inspect.signature(pipeline.__call__).parameters)
        if missing:
            raise ValueError(
                f"{type(pipeline).__name__} of {self.model} edits no pictures by instructions, as it does not take "
                f"{' and '.join(sorted(missing))}; give a pipeline such as StableDiffusionInstructPix2PixPipeline."
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(chosen_device(self.device))
