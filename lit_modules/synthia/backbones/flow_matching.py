"""Bases of flow matching transformers: timesteps drawn in training, and spaced in sampling; latents as tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.pipeline import PipelineArguments, PipelineBackbone
from lit_modules.synthia.core.sampling import NoiseSchedule, precise
from lit_modules.utils.arguments import Unpack


class FlowBackbone(PipelineBackbone):
    """A pipeline of a flow matching transformer: timesteps of the middle are trained more, and sampling is shifted.

    Its scheduler may be any of diffusers that follows a flow: those of flow matching, and solvers with
    ``prediction_type="flow_prediction"`` and ``use_flow_sigmas``.

    Args:
        prompt_length: Tokens of a prompt, from 1 to :attr:`longest_prompt`; the rest is cut off.

    References:
        Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206
        (logit-normal timesteps, section 3.1; the shift, section 5.3.2).
    """

    network_part: ClassVar[str] = "transformer"
    least_multiple: ClassVar[int] = 16
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    longest_prompt: ClassVar[int] = 512
    """Most tokens of a prompt that the pipeline takes."""
    spaces_sigmas: ClassVar[bool] = False
    """True if the pipeline spaces the noise levels itself, evenly before the shift."""

    def __init__(
        self,
        model: str,
        image_size: int,
        num_steps: int | None,
        guidance: float,
        prompt_length: int,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(model, image_size, num_steps=num_steps, guidance=guidance, **shared)
        if not 1 <= prompt_length <= self.longest_prompt:
            raise ValueError(f"prompt_length must be from 1 to {self.longest_prompt} tokens, got {prompt_length}.")
        self.prompt_length = prompt_length

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on."""
        return f"{super().identity(part)}/{self.prompt_length}"

    def noise_schedule(self) -> NoiseSchedule:
        """Return the schedule of flow matching; the scheduler's shift belongs to sampling."""
        config = self.scheduler.config
        total, prediction = config.get("num_train_timesteps"), config.get("prediction_type", "flow_prediction")
        # solvers for any kind of model have levels of diffusion too, and say that they do not follow them
        follows = hasattr(self.scheduler, "sigmas") and (
            not hasattr(self.scheduler, "alphas_cumprod") or config.get("use_flow_sigmas")
        )
        if total is None or prediction != "flow_prediction" or not follows:
            raise ValueError(
                f"{type(self).__name__} needs a scheduler of flow matching, got {type(self.scheduler).__name__} in "
                f"{self.model!r}; take one whose name begins with FlowMatch, or a solver with "
                "prediction_type='flow_prediction' and use_flow_sigmas=True."
            )
        return NoiseSchedule(None, "flow", total)

    def encode_masked(self, pipeline: Any, prompts: list[str], **options: Any) -> Condition:
        """Return what a pipeline encodes with a mask; of an empty prompt, what guidance leads away from.

        Some pipelines put an instruction before a prompt, which that goes without.
        """
        empty = torch.tensor([prompt == "" for prompt in prompts], device=self.device)
        embeds, mask, away, away_mask = pipeline.encode_prompt(
            prompts, "" in prompts, device=self.device, max_sequence_length=self.prompt_length, **options
        )
        if "" in prompts:
            embeds = torch.where(empty[:, None, None], away, embeds)
            mask = torch.where(empty[:, None], away_mask, mask)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def draw_timesteps(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw a training timestep from each generator, logit-normal over the schedule, on :attr:`device`."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        shares = [
            compute_density_for_timestep_sampling("logit_normal", 1, logit_mean=0.0, logit_std=1.0, generator=generator)
            for generator in generators
        ]
        return (torch.cat(shares) * self.schedule.num_timesteps).to(self.device)

    def usual_few_steps(self) -> int:
        """Return the number of steps that gradients pass through by default."""
        return 8

    def few_step_timesteps(self, num_steps: int | None) -> list[float]:
        """Return the timesteps of the pipeline's scheduler, shifted as there, each once."""
        steps = num_steps or self.usual_few_steps()
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, **self.timestep_arguments(steps))
        timesteps: list[float] = scheduler.timesteps.tolist()
        return list(dict.fromkeys(timesteps))  # Heun's method asks twice

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """Return what else the pipeline sets its scheduler's timesteps by."""
        arguments: dict[str, Any] = {}
        if self.spaces_sigmas:
            arguments["sigmas"] = np.linspace(1.0, 1 / num_steps, num_steps)
        if self.scheduler.config.get("use_dynamic_shifting"):
            arguments["mu"] = self.shift(num_steps)
        return arguments

    def shift(self, num_steps: int) -> float:
        """Return the logarithm of the shift, by the number of the network's tokens."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.scheduler.config
        shift: float = calculate_shift(
            self.shifting_length(),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return shift

    def shifting_length(self) -> int:
        """Return the number of tokens that the pipeline computes the shift by."""
        _, height, width = self.latent_shape()
        return height // 2 * (width // 2)


class PackedFlowBackbone(FlowBackbone):
    """A flow matching pipeline whose network takes squares of 2 x 2 latents as tokens; ours have an image's shape."""

    spaces_sigmas: ClassVar[bool] = True

    def ask(self, noised: Tensor, **inputs: Any) -> Tensor:
        """Ask the network about latents ``(batch, channel, height, width)``, and return its answer like them."""
        rows, columns = noised.shape[-2] // 2, noised.shape[-1] // 2
        tokens = F.pixel_unshuffle(noised, 2).flatten(2).transpose(1, 2)
        predicted: Tensor = self.network(hidden_states=tokens.to(self.network.dtype), return_dict=False, **inputs)[0]
        return _as_image(precise(predicted), rows, columns)

    def unpacked(self, latents: Tensor) -> Tensor:
        """Return the pipeline's tokens as latents."""
        _, height, width = self.latent_shape()
        return _as_image(latents, height // 2, width // 2)


def _as_image(tokens: Tensor, rows: int, columns: int) -> Tensor:
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns), 2)
