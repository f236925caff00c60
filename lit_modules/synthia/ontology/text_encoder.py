"""Phrases as vectors, from the text models of transformers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_modules.utils.checkpoints import only_tensors


class TextEncoder:
    """Encode phrases with BERT and its kin, or with the text tower of CLIP.

    A CLIP model gives its projected text features. Any other model gives the mean over its last hidden states, those
    of special tokens left out. The model is loaded at the first call, in float32 and evaluation mode.

    Args:
        model: Name or folder of the model, such as ``"bert-base-uncased"`` or ``"openai/clip-vit-base-patch32"``.
        batch_size: Phrases in one forward pass.
        device: Where to compute, as torch names it.

    Raises:
        ValueError: If ``batch_size`` is not positive; at the first call, if the model cannot be loaded.

    References:
        The mean over tokens of ``bert-base-uncased`` is what the authors of arXiv 2502.17793 compare names by.
    """

    def __init__(self, model: str, batch_size: int = 256, device: str = "cpu") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 phrase, got {batch_size}.")
        self.model = model
        self.batch_size = batch_size
        self.device = device
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, phrases: list[str]) -> NDArray[np.float64]:
        """Return the vectors of phrases, ``(phrases, features)``."""
        import torch

        tokenizer, network = self._load()
        encoded = []
        for start in range(0, len(phrases), self.batch_size):
            tokens = tokenizer(
                phrases[start : start + self.batch_size],
                padding=True,
                truncation=True,
                return_tensors="pt",
                return_special_tokens_mask=True,
            ).to(self.device)
            special = tokens.pop("special_tokens_mask")
            with torch.no_grad():
                output = network(**tokens)
            if hasattr(output, "text_embeds"):
                encoded.append(output.text_embeds)
                continue
            # padding is special too, but a phrase of special tokens alone keeps what it has
            mask = tokens["attention_mask"] * (1 - special)
            mask = torch.where(mask.sum(1, keepdim=True) > 0, mask, tokens["attention_mask"]).unsqueeze(-1)
            encoded.append((output.last_hidden_state * mask).sum(1) / mask.sum(1))
        vectors: NDArray[np.float64] = torch.cat(encoded).double().cpu().numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

            try:
                kind = AutoConfig.from_pretrained(self.model).model_type
                family: Any = CLIPTextModelWithProjection if kind in ("clip", "clip_text_model") else AutoModel
                tokenizer: Any = AutoTokenizer.from_pretrained(self.model)
                with only_tensors(self.model):
                    network = family.from_pretrained(self.model, dtype=torch.float32).to(self.device).eval()
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(
                    f"The text model {self.model!r} cannot be loaded: {reason} Give the name or folder of a model of "
                    "transformers with its tokenizer."
                ) from error
            self._loaded = tokenizer, network
        return self._loaded
