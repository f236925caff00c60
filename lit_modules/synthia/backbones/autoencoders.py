"""Latents of each kind of autoencoder: their shape, and the way from images to what a network sees and back."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Latents:
    """Latents of an ``AutoencoderKL``, shifted and scaled by its configuration; base of those of other autoencoders.

    Args:
        config: Configuration of the autoencoder, with its defaults.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each element of the latents' side."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def channels(self) -> int:
        """Channels of the latents that the network sees."""
        return int(self.config["latent_channels"])

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of one image's latents, ``(channel, height, width)``, by the image's sides in pixels."""
        return self.channels, height // self.factor, width // self.factor

    def encode(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, in the network's scale, float32.

        Args:
            autoencoder: The autoencoder, loaded.
            images: Floats in [-1, 1], ``(batch, 3, height, width)``.
        """
        shift, factor = self.scale(autoencoder, images.device)
        mean, std = self.moments(autoencoder, images.to(autoencoder.dtype))
        return (mean.float() - shift) * factor, std.float() * factor

    def decode(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return images in about [-1, 1], ``(batch, 3, height, width)``, of latents in the network's scale, float32."""
        shift, factor = self.scale(autoencoder, latents.device)
        return self.images(autoencoder, (latents / factor + shift).to(autoencoder.dtype)).float()

    def scale(self, autoencoder: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what is subtracted from the encoder's latents, and what they are then multiplied by, float32."""
        shift, spread = self.config.get("latents_mean"), self.config.get("latents_std")
        shift = (self.config.get("shift_factor") or 0.0) if shift is None else shift
        factor = torch.tensor(self.config.get("scaling_factor", 1.0), device=device)  # some have the spread alone
        if spread is not None:
            factor = factor / torch.tensor(spread, device=device)
        shape = (1, -1, 1, 1)
        return torch.tensor(shift, device=device).view(shape), factor.view(shape)

    def moments(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation that the encoder gives, in the shape of :meth:`shape`."""
        posterior = autoencoder.encode(images).latent_dist
        return posterior.mean, posterior.std

    def images(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return the images that the decoder gives."""
        decoded: Tensor = autoencoder.decode(latents, return_dict=False)[0]
        return decoded


class MoVQLatents(Latents):
    """Latents of a ``VQModel``, neither scaled nor quantised and without a distribution: their deviation is 0."""

    def scale(self, autoencoder: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return 0 and 1; the factor in the configuration is not used by the pipelines."""
        return torch.zeros((), device=device), torch.ones((), device=device)

    def moments(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents and zeros."""
        latents = autoencoder.encode(images).latents
        return latents, torch.zeros_like(latents)

    def images(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return the images of latents that are not quantised."""
        decoded: Tensor = autoencoder.decode(latents, force_not_quantize=True).sample
        return decoded


class DeepCompressionLatents(Latents):
    """Latents of an ``AutoencoderDC``, without a distribution: their deviation is 0.

    References:
        Chen et al., "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models", arXiv 2410.10733.
    """

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each element of the latents' side."""
        return int(2 ** (len(self.config["encoder_block_out_channels"]) - 1))

    def moments(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents and zeros."""
        latents = autoencoder.encode(images).latent
        return latents, torch.zeros_like(latents)


class QwenImageLatents(Latents):
    """Latents of an ``AutoencoderKLQwenImage``, which takes an image for a video of one frame."""

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each element of the latents' side."""
        return int(2 ** len(self.config["temperal_downsample"]))

    @property
    def channels(self) -> int:
        """Channels of the latents that the network sees."""
        return int(self.config["z_dim"])

    def moments(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the one frame."""
        mean, std = super().moments(autoencoder, images.unsqueeze(2))
        return mean.squeeze(2), std.squeeze(2)

    def images(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return the one frame that the decoder gives."""
        return super().images(autoencoder, latents.unsqueeze(2)).squeeze(2)


class Flux2Latents(Latents):
    """Latents of an ``AutoencoderKLFlux2``: squares of 2 x 2 as channels, scaled by what it knows of each channel."""

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each element of the latents' side."""
        return 2 * super().factor

    @property
    def channels(self) -> int:
        """Channels of the latents that the network sees."""
        return 4 * super().channels

    def scale(self, autoencoder: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and inverse deviation of each channel, which are among the autoencoder's weights."""
        mean, variance = (autoencoder.bn.running_mean.float(), autoencoder.bn.running_var.float())
        factor = (variance + self.config["batch_norm_eps"]).rsqrt()
        return mean.to(device).view(1, -1, 1, 1), factor.to(device).view(1, -1, 1, 1)

    def moments(self, autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, squares of 2 x 2 as channels."""
        mean, std = super().moments(autoencoder, images)
        return F.pixel_unshuffle(mean, 2), F.pixel_unshuffle(std, 2)

    def images(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return the images that the decoder gives of channels as squares."""
        return super().images(autoencoder, F.pixel_shuffle(latents, 2))

    def from_pipeline(self, autoencoder: Any, latents: Tensor) -> Tensor:
        """Return latents as the network sees them of those that the pipeline returns, ready for the decoder."""
        shift, factor = self.scale(autoencoder, latents.device)
        return (F.pixel_unshuffle(latents.float(), 2) - shift) * factor
