"""Base of flow matching transformers: timesteps drawn in training, and spaced in sampling."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.pipeline import PipelineArguments, PipelineBackbone
from lit_modules.synthia.core.sampling import NoiseSchedule
from lit_modules.utils.arguments import Unpack


class FlowBackbone(PipelineBackbone):
    """A pipeline of a flow matching transformer: timesteps of the middle are trained more, and sampling is shifted.

    Args:
        prompt_length: Tokens of a prompt for the T5 encoder, 1 to 512; the rest is cut off.

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
        if not 1 <= prompt_length <= 512:
            raise ValueError(f"prompt_length must be from 1 to 512 tokens, got {prompt_length}.")
        self.prompt_length = prompt_length

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on."""
        return f"{super().identity(part)}/{self.prompt_length}"

    def noise_schedule(self) -> NoiseSchedule:
        """Return the schedule of flow matching; the scheduler's shift belongs to sampling."""
        total = self.scheduler.config.get("num_train_timesteps")
        if not hasattr(self.scheduler, "sigmas") or hasattr(self.scheduler, "alphas_cumprod") or total is None:
            raise ValueError(
                f"{type(self).__name__} needs a scheduler of flow matching, got {type(self.scheduler).__name__} in "
                f"{self.model!r}."
            )
        return NoiseSchedule(None, "flow", total)

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
        """Return the timesteps of the pipeline's scheduler, shifted as there."""
        steps = num_steps or self.usual_few_steps()
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, **self.timestep_arguments(steps))
        timesteps: list[float] = scheduler.timesteps.tolist()
        return timesteps

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """Return what else the pipeline sets its scheduler's timesteps by."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return {}
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        _, height, width = self.latent_shape()
        return {
            "mu": calculate_shift(
                height // 2 * (width // 2),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        }
