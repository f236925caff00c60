"""Base of the modules around a text-to-image model: loading, adapters, encodings, generation, saving."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.encodings import Encoder
from lit_modules.synthia.core.objective import prediction_error, weighted_mean
from lit_modules.synthia.core.prior import PriorPictures
from lit_modules.synthia.core.randomness import generator_of, row_noise
from lit_modules.synthia.core.sampling import min_snr_weights
from lit_modules.utils import adapters
from lit_modules.utils.model_cards import model_card
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.precision import check_precision
from lit_modules.utils.progress import shown, track
from lit_modules.utils.resuming import bring
from lit_modules.utils.suggestions import did_you_mean
from lit_modules.utils.training_state import check_finite

TEMPLATE = "a new design that has functions of {affordances}"
Batch = dict[str, Any]

# settings of LoRA with which diffusers were seen to draw what was trained
_LOADABLE = {
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
_STARTS = (True, False, "gaussian", "orthogonal", "mica")
_TEXT_KEY = f"{adapters.KEY}_text"


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build AdamW at a learning rate of 1e-4 with a weight decay of 0.01."""
    return AdamW(parameters, lr=1e-4, weight_decay=0.01)


class TextToImageArguments(TypedDict, total=False):
    """Arguments that all modules here share; documented in :class:`TextToImage`."""

    peft_config: LoraConfig | None
    text_peft_config: LoraConfig | None
    gradient_checkpointing: bool
    compile: bool
    cache: str | None
    min_snr_gamma: float | None
    template: str
    known_affordances: Sequence[str] | None
    metric: Metric | None
    images_per_prompt: int
    prior_weight: float
    prior_prompts: Sequence[str]
    prior_images: int
    seed: int
    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None


class TextToImage(LightningModule):
    """Train the network of a text-to-image model, generate with it and save it; base of the modules here.

    Only the network is part of the module. The frozen encoders stay outside it, are loaded when something must be
    encoded that the cache does not hold, and are in no checkpoint; of the network a checkpoint holds what trains, and
    the adapter's configuration, so that it loads without ``peft_config``. Trained weights are float32, frozen ones of
    the backbone's precision; the trainer's is ``32-true`` or ``bf16-mixed``.

    Test generates ``images_per_prompt`` images for each row of a batch and hands them to ``metric.update(images,
    batch)``, images as floats in [0, 1], ``(n, 3, height, width)``; it logs what ``metric.compute()`` names as
    ``test/<name>``. Prediction returns the same images. Tried on one device and with DDP.

    Args:
        backbone: Text-to-image model.
        peft_config: Adapter to train instead of the network's own weights; settings that diffusers do not load are
            refused before training.
        text_peft_config: Adapter to train on the text encoders too, beside ``peft_config``, with the layers of
            attention by default; of the CLIP encoders of Stable Diffusion, SDXL, Stable Diffusion 3 and FLUX.1, whose
            pipelines load them. Prompts are then encoded in each step, with gradients, and not kept.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether to compile the network's blocks.
        cache: Folder in which encodings of prompts and images are kept between runs, by their content; ``None`` keeps
            them in memory.
        min_snr_gamma: Cap of the clean image's weight in denoising losses (Min-SNR); ``None`` weighs all timesteps 1.
        template: Prompt of :meth:`generate`, with the place ``{affordances}``.
        known_affordances: Affordances that :meth:`generate` takes; ``None`` takes any.
        metric: Turns generated images into numbers.
        images_per_prompt: Images that a test generates for each row.
        prior_weight: Weight of the denoising loss on class pictures, which the untuned model draws for
            ``prior_prompts`` before training, and which hold what it could do; DreamBooth's is 1. Each row of a batch
            brings one of them. They are kept in ``cache``.
        prior_prompts: Prompts of the classes, whole, such as ``["a photo of a chair"]``; they go with a
            ``prior_weight``.
        prior_images: Class pictures of each of them.
        seed: Seed of noise, timesteps and class pictures.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If an argument is out of its range.
    """

    injected: ClassVar[tuple[str, ...]] = (
        *("backbone", "peft_config", "text_peft_config", "metric", "optimizer", "scheduler"),
    )
    """Arguments that are objects, and so no hyperparameters."""

    network: Any

    def __init__(
        self,
        backbone: Backbone,
        peft_config: LoraConfig | None = None,
        text_peft_config: LoraConfig | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        cache: str | None = None,
        min_snr_gamma: float | None = None,
        template: str = TEMPLATE,
        known_affordances: Sequence[str] | None = None,
        metric: Metric | None = None,
        images_per_prompt: int = 4,
        prior_weight: float = 0.0,
        prior_prompts: Sequence[str] = (),
        prior_images: int = 16,
        seed: int = 0,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if "{affordances}" not in template:
            raise ValueError(f"template must have the place '{{affordances}}', got {template!r}.")
        if images_per_prompt < 1:
            raise ValueError(f"images_per_prompt must be at least 1, got {images_per_prompt}.")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma must be positive or None, got {min_snr_gamma}.")
        if not prior_weight >= 0 or bool(prior_weight) != bool(prior_prompts):
            raise ValueError(
                "prior_weight must be 0, or positive with prior_prompts of what the model is to remember, such as "
                f"['a photo of a chair'], got {prior_weight} with {prior_prompts!r}."
            )
        if text_peft_config is not None:
            if not backbone.text_adapter_parts:
                raise ValueError(
                    f"diffusers load no adapters of the text encoders of {type(backbone).__name__}; leave "
                    "text_peft_config out."
                )
            if peft_config is None:
                raise ValueError(
                    "text_peft_config goes with a peft_config, as diffusers load both adapters from one file, got "
                    "peft_config=None."
                )
            check_loadable(text_peft_config, "text_peft_config")
        self.save_hyperparameters(ignore=self.injected)
        self.backbone, self.encoder = backbone, Encoder(backbone, cache)
        self.peft_config, self.text_peft_config = peft_config, text_peft_config
        self.gradient_checkpointing, self.compile_network = gradient_checkpointing, compile
        self.min_snr_gamma = min_snr_gamma
        self.template = template
        self.known_affordances = None if known_affordances is None else tuple(known_affordances)
        self.metric, self.images_per_prompt = metric, images_per_prompt
        self.seed = seed
        self.prior_weight = prior_weight
        self.prior = PriorPictures(backbone, prior_prompts, prior_images, seed, cache) if prior_weight else None
        self.optimizer, self.scheduler = optimizer, scheduler
        self.strict_loading = False
        self.network = None
        self.text_encoders = nn.ModuleDict()
        self._results: dict[str, float] | None = None

    def configure_callbacks(self) -> list[Any]:
        """Bring what lets a run stop and go on at any batch."""
        return bring(self.trainer)

    def setup(self, stage: str) -> None:
        """Draw the class pictures and encode the prompts that the data names, before the network takes the memory."""
        check_precision(self)
        self.backbone.to(self.trainer.strategy.root_device)
        if stage == "fit":
            self._check_sizes()
        if stage == "fit" and self.prior is not None:
            with shown(self.trainer):
                self.prior.prepare(self.trainer.global_rank, self.trainer.world_size)
            self.trainer.strategy.barrier("class pictures are drawn")
        # a user's own datamodule, or none
        prompts = getattr(getattr(self.trainer, "datamodule", None), "prompts", None)
        if stage != "fit" or prompts is None or self.encoder.cache is None or self.text_peft_config is not None:
            return
        named = [*prompts(), *(self.prior.prompts if self.prior is not None else ())]
        first = self.trainer.is_global_zero or self.encoder.cache.folder is None
        if first:
            self.encoder.keep_prompts(named)
        self.trainer.strategy.barrier("prompts are encoded")
        if not first:
            self.encoder.keep_prompts(named)

    def _check_sizes(self) -> None:
        """Refuse aspect-ratio buckets that the model cannot encode."""
        # a user's own datamodule, or none
        sizes = getattr(getattr(self.trainer, "datamodule", None), "image_sizes", ())
        for size in sizes:
            if any(side % self.backbone.multiple for side in size):
                raise ValueError(
                    f"{type(self.backbone).__name__} takes images whose sides are multiples of "
                    f"{self.backbone.multiple} pixels, and a bucket has {size[0]} x {size[1]}; give the data a "
                    "bucket_step that is one."
                )

    def configure_model(self) -> None:
        """Load the network and add the adapter, once, in training mode."""
        if self.network is not None:
            return
        self.backbone.load("network")
        if self.backbone.adapter is not None:
            if self.peft_config is not None:
                raise ValueError(
                    "peft_config asks for a new adapter, and the backbone has loaded one; leave peft_config out to go "
                    "on with it."
                )
            _to_float32(self.backbone.network)
        elif self.peft_config is not None:
            self._put_adapter(self.peft_config)
        else:
            self.backbone.network.requires_grad_(not self.backbone.quantised)
        if self.text_peft_config is not None:
            self._put_text_adapters(self.text_peft_config)
        if self.gradient_checkpointing:
            self.backbone.enable_checkpointing()
        if self.compile_network:
            self.backbone.compile()
        self.network = self.backbone.network.train()

    def forward(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """Draw an image for each prompt.

        Args:
            prompts: Whole prompts, without the template.
            seed: Seed; an image also depends on its index.

        Returns:
            Floats in [0, 1], ``(prompts, 3, height, width)``.

        Raises:
            TypeError: If the prompts are no sequence of texts.
        """
        if isinstance(prompts, str | Tensor) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(
                f"{type(self).__name__} draws a sequence of prompts, such as ['a cup'], got {type(prompts).__name__}."
            )
        return self.draw(prompts, [generator_of(seed, "image", index) for index in range(len(prompts))])

    def conditions(self, batch: Mapping[str, Any]) -> Condition:
        """Return what the network is conditioned on for each row of a batch, by its ``prompt``."""
        return self.encoder.conditions(batch["prompt"])

    def latents(self, batch: Mapping[str, Any], key: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw latents of a batch's images from their distribution, ``(batch, ..., channel, height, width)``.

        ``key`` is ``"image"``, ``"pos"`` or ``"neg"``, of images ``(batch, ..., 3, height, width)``.
        """
        images = batch[key]
        if not images.numel():
            height, width = images.shape[-2:]
            empty: Tensor = images.new_empty(*images.shape[:-3], *self.backbone.latent_shape((height, width)))
            return empty
        mean, std = self.encoder.moments(images.flatten(0, -4))
        mean, std = (value.reshape(*images.shape[:-3], *value.shape[1:]) for value in (mean, std))
        return mean + std * row_noise(mean.shape[1:], generators, mean.device)

    def draw_noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw the noise and the training timestep of each row of latents ``(batch, ...)``."""
        noise = row_noise(latents.shape[1:], generators, latents.device)
        return noise, self.backbone.draw_timesteps(generators)

    def noise_errors(self, latents: Tensor, noise: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Return the network's error on noised latents, ``(batch,)`` or ``(batch, n)``.

        Latents are ``(batch, channel, height, width)`` or ``(batch, n, channel, height, width)``; all of a row get the
        same noise ``(batch, channel, height, width)``, timestep ``(batch,)`` and condition.
        """
        many = latents.ndim == 5
        count = latents.shape[1] if many else 1
        if count == 0:
            return latents.new_zeros(latents.shape[:2])
        flat = latents.flatten(0, 1) if many else latents
        noise, timesteps = noise.repeat_interleave(count, 0), timesteps.repeat_interleave(count, 0)
        condition = {key: value.repeat_interleave(count, 0) for key, value in condition.items()}
        schedule = self.backbone.schedule
        prediction = self.backbone.denoise(schedule.add_noise(flat, noise, timesteps), timesteps, condition)
        errors = prediction_error(prediction, schedule.target(flat, noise, timesteps))
        return errors.reshape(-1, count) if many else errors

    def with_prior(self, losses: dict[str, Tensor], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Add the denoising loss on class pictures, one for each generator, as ``prior``, if it is asked for."""
        if self.prior is None:
            return losses
        prompts, pictures = self.prior.choose(generators)
        latents = self.latents({"image": pictures.to(self.backbone.device)}, "image", generators)
        noise, timesteps = self.draw_noise(latents, generators)
        errors = self.noise_errors(latents, noise, timesteps, self.conditions({"prompt": prompts}))
        prior = weighted_mean(errors, self.denoising_weights(timesteps))
        return losses | {"loss": losses["loss"] + self.prior_weight * prior, "prior": prior}

    def denoising_weights(self, timesteps: Tensor) -> Tensor | None:
        """Return the Min-SNR weight of each row, ``(batch,)``, or ``None`` without Min-SNR."""
        if self.min_snr_gamma is None:
            return None
        schedule = self.backbone.schedule
        return min_snr_weights(schedule.snr(timesteps), schedule.prediction, self.min_snr_gamma).float()

    def row_generators(self, batch: Mapping[str, Any], *key: object) -> list[torch.Generator]:
        """Return a source of randomness for each row, which depends on the row, the seed and the key alone.

        A row is identified by its ``pair_id`` or ``index`` and its ``draw``. Rows of a batch that share these are
        numbered, so that no two have the same noise.
        """
        ids = _row_ids(batch)
        rows = list(range(len(batch["prompt"]))) if ids is None else ids.tolist()
        draws = batch["draw"].tolist() if "draw" in batch else [0] * len(rows)
        seen: Counter[tuple[int, int]] = Counter()
        generators = []
        for row in zip(rows, draws, strict=True):
            generators.append(generator_of(self.seed, *key, *row, seen[row]))
            seen[row] += 1
        return generators

    def check(self, losses: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Stop with the rows' names if the loss is not finite on any process."""
        value: Any = self.trainer.strategy.reduce(losses["loss"].detach(), reduce_op="mean")
        ids = _row_ids(batch)
        check_finite(
            self, {"training": float(value)}, {"training": [] if ids is None else list(map(str, ids.tolist()))}
        )

    @torch.no_grad()
    def generate(
        self,
        affordances: Sequence[str],
        num_images: int = 1,
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draw new designs that offer all of the affordances.

        Args:
            affordances: One or more affordances.
            num_images: Number of images; the first of more are the same as those of fewer.
            seed: Seed.
            num_steps: Steps of sampling; ``None`` takes the model's usual number.
            guidance: Scale of classifier-free guidance; ``None`` takes the usual one.

        Returns:
            Floats in [0, 1], ``(num_images, 3, height, width)``.

        Raises:
            ValueError: If there is no affordance, one is not known, or ``num_images`` is below 1.
        """
        if isinstance(affordances, str) or not affordances:
            raise ValueError(f"affordances must be a list of at least one, got {affordances!r}.")
        for name in affordances:
            if self.known_affordances is not None and name not in self.known_affordances:
                raise ValueError(f"There is no affordance {name!r}{did_you_mean(name, self.known_affordances)}")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}.")
        prompt = self.template.format(affordances=", ".join(affordances))
        generators = [generator_of(seed, "image", index) for index in range(num_images)]
        return self.draw([prompt] * num_images, generators, num_steps=num_steps, guidance=guidance)

    def draw(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draw an image for each prompt; see :meth:`generate`."""
        self.configure_model()
        with evaluation_mode([self.network, self.text_encoders]):
            condition = self.encoder.conditions(prompts)
            self.backbone.load("images")
            return self.backbone.generate(condition, generators, num_steps=num_steps, guidance=guidance)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Generate images for each row, and hand them to the metric."""
        if self.metric is not None:
            self.score(batch, self.images_per_prompt)

    def on_test_epoch_end(self) -> None:
        """Log the metric's numbers."""
        if self.metric is not None:
            self._results = self.log_metric("test")

    def predict_step(self, batch: Batch | Sequence[str], batch_idx: int = 0) -> dict[str, Any]:
        """Draw images for each row, the same as a test draws for it; the seed is the module's.

        Args:
            batch: Batch with ``prompt``, or prompts alone.
            batch_idx: Number of the batch, by which rows without ``pair_id`` or ``index`` differ.

        Returns:
            ``prompt``, and ``affordances``, ``pair_id`` and ``index`` where the batch has them; ``image``: floats in
            [0, 1], ``(batch, images_per_prompt, 3, height, width)``, on the CPU.

        Raises:
            ValueError: If there are no prompts.
        """
        rows: Batch = dict(batch) if isinstance(batch, Mapping) else {"prompt": batch}
        prompts = rows.get("prompt")
        if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
            keys = ", ".join(map(str, rows)) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f"{type(self).__name__} draws what batch['prompt'] says, a list of texts, got {keys}; give it prompts."
            )
        key = () if _row_ids(rows) is not None else (batch_idx,)
        images = [
            self.draw(prompts, self.row_generators(rows, "image", number, *key)).cpu()
            for number in range(self.images_per_prompt)
        ]
        names = [name for name in ("prompt", "affordances", "pair_id", "index") if name in rows]
        return {**{name: rows[name] for name in names}, "image": torch.stack(images, 1)}

    def score(self, batch: Batch, images_per_prompt: int) -> None:
        """Generate images for each row of a batch, and hand them to the metric."""
        metric: Any = self.metric
        with shown(self._trainer):
            for number in track(range(images_per_prompt), f"pictures of {len(batch['prompt'])} prompts"):
                metric.update(self.draw(batch["prompt"], self.row_generators(batch, "image", number)), batch)

    def log_metric(self, stage: str) -> dict[str, float]:
        """Log the metric's numbers under a stage, return them and reset it."""
        metric: Any = self.metric
        numbers = {name: float(value) for name, value in metric.compute().items()}
        metric.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, sync_dist=False)
        return numbers

    def results(self) -> dict[str, float]:
        """Return the numbers of the last test, which must have run with a metric."""
        if self._results is None:
            raise RuntimeError(f"{type(self).__name__} has no results yet: run `test` with a `metric` first.")
        return self._results

    def save_pretrained(self, folder: str) -> None:
        """Write the adapter, or the whole network if that was trained, as diffusers load them, and a model card.

        An adapter is read by ``pipeline.load_lora_weights(folder)``.
        """
        self.configure_model()
        adapter = self.backbone.adapter is not None
        with model_card(self, folder, self.backbone.origin(adapter)):
            self.backbone.save_pretrained(folder, adapter)

    def configure_optimizers(self) -> Any:
        """Build optimizer and scheduler for what trains; a whole network must be float32."""
        if self.backbone.quantised and self.backbone.adapter is None:
            raise ValueError(
                f"The weights of the network are quantised, so {type(self).__name__} cannot train them; give a "
                "peft_config, or leave the quantization_config out."
            )
        if {parameter.dtype for parameter in self.trainable_parameters()} != {torch.float32}:
            raise ValueError(
                f"The whole network can only be trained in float32, got precision {self.backbone.precision!r}; let the "
                "backbone load it in 'float32' and the trainer run in 'bf16-mixed', or give a peft_config."
            )
        optimizer = self.optimizer(self.trainable_parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that train."""
        models = (self.network, self.text_encoders)
        return [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; with an adapter, its configuration, and no buffer of the frozen network."""
        models = {"network": self.network, "text_encoders": self.text_encoders}
        trains = {
            f"{prefix}.{name}"
            for prefix, model in models.items()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if self.backbone.adapter is None:
            trains |= {f"network.{name}" for name, _ in self.network.named_buffers()}
        else:
            checkpoint[adapters.KEY] = adapters.describe(self.backbone.adapter)
        if self.backbone.text_adapter is not None:
            checkpoint[_TEXT_KEY] = adapters.describe(self.backbone.text_adapter)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trains}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the checkpoint's adapter on a network that has none; another one, or other weights, are refused."""
        self.configure_model()
        missing: Any = adapters.adapter_to_restore(checkpoint, self.backbone.adapter)
        if missing is not None:
            self.peft_config = missing
            self._put_adapter(missing)
        own = self.backbone.text_adapter
        if _TEXT_KEY in checkpoint:
            missing = adapters.adapter_to_restore({adapters.KEY: checkpoint[_TEXT_KEY]}, own)
            if missing is not None:
                self.text_peft_config = missing
                self._put_text_adapters(missing)
        elif own is not None:
            raise ValueError(
                "The checkpoint holds no adapters of the text encoders, and this module has some, which it would leave "
                "as they are; leave text_peft_config out."
            )
        for name, model in (("network.", self.network), ("text_encoders.", self.text_encoders)):
            adapters.check_restored(checkpoint["state_dict"], model, name)

    def _put_adapter(self, config: LoraConfig) -> None:
        check_loadable(config)
        self.backbone.network.requires_grad_(False)
        config = copy.deepcopy(config)
        if config.target_modules is None:
            config.target_modules = list(self.backbone.lora_targets)
        self.backbone.add_adapter(config)
        _to_float32(self.backbone.network)

    def _put_text_adapters(self, config: LoraConfig) -> None:
        config = copy.deepcopy(config)
        if config.target_modules is None:
            config.target_modules = list(self.backbone.text_lora_targets)
        self.backbone.add_text_adapters(config)
        self.text_encoders.update(self.backbone.text_encoders)
        self.text_encoders.train()
        _to_float32(self.text_encoders)


def _to_float32(model: nn.Module) -> None:
    """Let what trains be float32: of 16 bits it would lose small updates, and could not be unscaled."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_loadable(config: LoraConfig, argument: str = "peft_config") -> None:
    """Check that pipelines of diffusers will load an adapter, an argument, and draw what was trained."""
    if config.init_lora_weights not in _STARTS:
        raise ValueError(
            f"diffusers do not load an adapter with init_lora_weights={config.init_lora_weights!r}; it must be "
            f"{', '.join(map(repr, _STARTS))}."
        )
    usual, asked = adapters.essence(LoraConfig()), adapters.essence(config)
    for name in sorted(asked.keys() - _LOADABLE):
        if asked[name] != usual[name]:
            raise ValueError(
                f"diffusers do not load an adapter with {name}={asked[name]!r}; leave {name} out of the {argument}."
            )


def _row_ids(batch: Mapping[str, Any]) -> Tensor | None:
    return batch["pair_id"] if "pair_id" in batch else batch.get("index")
