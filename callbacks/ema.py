"""The exponential moving average of what trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


class EMA(Callback):
    """Average the trainable parameters over the steps, and validate, test and predict with the averages.

    After optimizer step ``k + 1`` each average moves to ``d * average + (1 - d) * parameter`` with ``d = min(decay,
    (1 + k) / (10 + k))``, the first step aside, which takes the parameter itself. diffusers' ``EMAModel`` does it, in
    float32 or better. Batches without an optimizer step do not count, and a batch with several counts once.

    Lightning's ``EMAWeightAveraging`` copies the whole module. This copies no frozen weight, which matters for an
    adapter on a large network, and no buffer: statistics of batch normalisation stay those of training.

    Validation, test and prediction run with the averages; the module has its own weights back afterwards, and after an
    exception. Checkpoints hold the module's own weights under ``state_dict`` and the averages in the state of this
    callback: a resumed run goes on as if there had been no break, and ``test`` with ``ckpt_path`` tests the averages.
    To save them in another format::

        with ema.averaged(module):
            module.save_pretrained(folder)

    With ``save_averaged`` the callbacks that act when ``fit`` has ended, as :class:`~callbacks.SavePretrained` does,
    find the averages in the module, and so does a last checkpoint of weights alone, which holds no callback's state.

    Every process keeps the same averages. Tried on one device and with DDP; strategies that shard parameters are
    refused.

    Args:
        decay: Largest weight of the old average in the new one, in (0, 1).
        offload: Whether the averages lie on the CPU, to save device memory; each step then copies the parameters there.
        save_averaged: Whether callbacks at the end of ``fit`` find the averages in the module.

    Raises:
        ValueError: If ``decay`` is not in (0, 1).

    Example:
        >>> EMA(decay=0.999).state_dict()
        {}

    References:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30 (1992).
    """

    def __init__(self, decay: float = 0.9999, offload: bool = False, save_averaged: bool = True) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}.")
        self.decay = decay
        self.offload = offload
        self.save_averaged = save_averaged
        self._average: EMAModel | None = None
        self._names: list[str] = []  # of the averages, in their order
        self._tracked: list[nn.Parameter] = []  # the module's, during fit
        self._pending: Mapping[str, Any] | None = None  # state of a checkpoint that waits for the module
        self._step = 0  # optimizer steps at the last update
        self._owns_swap = False  # whether a hook put the averages in, and not averaged()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies under which a process does not have whole parameters."""
        strategy = trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
            raise ValueError(
                f"EMA needs whole parameters on every process, and {type(strategy).__name__} shards them; use 'ddp', "
                "or leave the callback out."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the averages at the weights, or take up those of the checkpoint or of the trainer's last ``fit``."""
        if self._pending is None and (trainer.global_step or trainer.current_epoch):
            self._pending = self.state_dict() or None
        if self._pending is None:
            self._begin(pl_module, _trainable(pl_module))
        self._take_up(pl_module, fitting=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note from which step on to count."""
        self._take_up(pl_module, fitting=True)
        self._step = trainer.global_step
        if self._step and self._average is not None and not self._average.optimization_step:
            rank_zero_info(f"EMA: the checkpoint holds no averages; they begin at the weights of step {self._step}.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the averages if the optimizer has stepped."""
        if self._average is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        pairs = zip(self._tracked, self._average.shadow_params, strict=True)
        # EMAModel copies what needs no gradient; a manual step may have left some of it switched off
        self._average.step([nn.Parameter(parameter.detach().to(average.device)) for parameter, average in pairs])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that no other parameter has begun to train."""
        late = [name for name in _trainable(pl_module) if name not in set(self._names)]
        if late and self._average is not None:
            raise RuntimeError(
                f"EMA averages what trains when fit begins, and {late[0]} has begun to train since; let it train from "
                "the start, or leave the callback out."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in for the callbacks that save."""
        if self.save_averaged and self._average is not None and not self._owns_swap:
            self._owns_swap = self._swap(pl_module)

    on_fit_end = on_train_end  # where there was nothing left to train

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its weights back, and follow it to the CPU."""
        self.on_validation_end(trainer, pl_module)
        self._tracked = []
        if self._average is not None:
            self._average.to("cpu")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its weights back."""
        self.on_validation_end(trainer, pl_module)
        self._tracked, self._pending = [], None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in."""
        self._take_up(pl_module)
        if self._average is not None:
            self._owns_swap = self._swap(pl_module)
        elif trainer.state.fn is not None and trainer.state.fn != "fit":
            rank_zero_warn(
                f"EMA has no averages, so {trainer.state.fn.value} runs with the module's own weights; give the "
                "ckpt_path of a run with EMA to have them."
            )

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its weights back."""
        if self._owns_swap:
            self._owns_swap = False
            self._restore(pl_module)

    on_test_end = on_predict_end = on_validation_end

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Put the averages into the module, and its own weights back when the context ends, however it does.

        Args:
            pl_module: Module that was trained, or another one with the same parameters.

        Raises:
            RuntimeError: If there are no averages yet.
            ValueError: If the module lacks an averaged parameter or has it in another shape.
        """
        self._take_up(pl_module)
        if self._average is None:
            raise RuntimeError("EMA has no averages yet: they begin with fit, or come with a checkpoint.")
        swapped = self._swap(pl_module)
        try:
            yield
        finally:
            if swapped:
                self._restore(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by the parameters' names, and the number of steps they have taken."""
        if self._pending is not None:
            return dict(self._pending)
        if self._average is None:
            return {}
        averages = dict(zip(self._names, self._average.shadow_params, strict=True))
        return {"steps": self._average.optimization_step, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averages of a checkpoint until the module is there."""
        self._pending = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the module's own weights, also where the averages are in the module."""
        own = self._average.temp_stored_params if self._average is not None else None
        if own is not None:
            weights = checkpoint["state_dict"]
            weights.update({name: own for name, own in zip(self._names, own, strict=True) if name in weights})

    def _begin(
        self, pl_module: LightningModule, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Any] | None = None
    ) -> None:
        """Make the averages, at the parameters or from a state."""
        from diffusers.training_utils import EMAModel  # takes a second to import, which other commands need not wait

        if not parameters:
            raise ValueError(
                f"EMA averages trainable parameters, and {type(pl_module).__name__} has none; let some require a "
                "gradient, or leave the callback out."
            )
        with torch.inference_mode(False), torch.no_grad():  # test runs in inference mode, whose tensors could not train
            average = EMAModel([], decay=self.decay, foreach=True)
            source: Mapping[str, Tensor] = parameters if state is None else state["averages"]
            for name, parameter in parameters.items():
                device = torch.device("cpu") if self.offload else parameter.device
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                average.shadow_params.append(source[name].detach().to(device, dtype, copy=True))
            average.optimization_step = 0 if state is None else int(state["steps"])
        self._average, self._names, self._tracked = average, list(parameters), list(parameters.values())

    def _take_up(self, pl_module: LightningModule, fitting: bool = False) -> None:
        """Take up the averages of a checkpoint, once the module has its parameters."""
        state, self._pending = self._pending, None
        if state is None:
            return
        averages: Mapping[str, Tensor] = state["averages"]
        parameters = _trainable(pl_module) if fitting else dict(pl_module.named_parameters())
        problem, module = _difference(averages, parameters), type(pl_module).__name__
        extra = [name for name in parameters if name not in averages] if fitting else []
        if problem or extra:
            what = f"{problem[0]}, and {module} {problem[1]}" if problem else f"no {extra[0]}, which {module} trains"
            raise ValueError(
                f"The checkpoint has an average of {what}; use the model and adapter that it was saved with."
            )
        self._begin(pl_module, {name: parameters[name] for name in averages}, state)

    def _swap(self, pl_module: LightningModule) -> bool:
        """Put the averages into the module; return whether they were not there already."""
        average: Any = self._average
        if average.temp_stored_params is not None:
            return False
        parameters = self._parameters(pl_module)
        with torch.inference_mode(False), torch.no_grad():
            average.store(parameters)
            average.copy_to(parameters)
        return True

    def _restore(self, pl_module: LightningModule) -> None:
        average: Any = self._average
        if average.temp_stored_params is None:  # a checkpoint has been loaded meanwhile
            return
        with torch.inference_mode(False), torch.no_grad():
            average.restore(self._parameters(pl_module))

    def _parameters(self, pl_module: LightningModule) -> list[nn.Parameter]:
        average: Any = self._average
        parameters = dict(pl_module.named_parameters())
        problem = _difference(dict(zip(self._names, average.shadow_params, strict=True)), parameters)
        if problem is not None:
            raise ValueError(f"EMA averages {problem[0]}, and {type(pl_module).__name__} {problem[1]}.")
        return [parameters[name] for name in self._names]


def _difference(averages: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> tuple[str, str] | None:
    """Return the first average that no parameter fits, and what there is instead."""
    for name, value in averages.items():
        if name not in parameters:
            return name, "does not train it"
        if value.shape != parameters[name].shape:
            return f"{name} of shape {tuple(value.shape)}", f"has {tuple(parameters[name].shape)}"
    return None


def _trainable(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
