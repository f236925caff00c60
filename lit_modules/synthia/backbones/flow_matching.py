"""What adapters of flow matching transformers share: how timesteps are drawn in training, and spaced in sampling."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.pipeline import PipelineBackbone
from lit_modules.synthia.core.sampling import FewStepSampler, NoiseSchedule


class FlowBackbone(PipelineBackbone):
    """A pipeline of a flow matching transformer: timesteps of the middle are trained more, and sampling is shifted.

    References:
        Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206
        (logit-normal timesteps, section 3.1; the shift, section 5.3.2).
    """

    network_part: ClassVar[str] = "transformer"
    least_multiple: ClassVar[int] = 16

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

    def few_step_sampler(
        self,
        num_steps: int | None = None,
        truncation: int | Literal["random"] | None = 1,
        checkpointing: bool = True,
    ) -> FewStepSampler:
        """Return Euler's method at the timesteps of the pipeline's scheduler, shifted as there; 8 steps by default."""
        steps = num_steps or self.usual_few_steps()
        timesteps = self.sampling_timesteps(steps)
        return FewStepSampler(self.schedule, timesteps, "deterministic", truncation, checkpointing)

    def usual_few_steps(self) -> int:
        """Return the number of steps that gradients pass through by default."""
        return 8

    def sampling_timesteps(self, num_steps: int) -> list[float]:
        """Return the timesteps of the pipeline's scheduler."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(num_steps, **self.timestep_arguments(num_steps))
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
