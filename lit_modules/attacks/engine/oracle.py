"""The model as an attack asks it: in which type and memory layout, and where its answer has the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lit_modules.utils.model_modes import modules_of

Model = Callable[[Tensor], Tensor]


def take_logits(answer: object) -> Tensor:
    """Return the logits of a model's answer: itself, or what it holds under the name ``logits``.

    Args:
        answer: Tensor; object or mapping with ``logits``, as the models of transformers give.

    Raises:
        TypeError: If there are none.
    """
    held = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    for logits in (answer, held):
        if isinstance(logits, Tensor):
            return logits
    names = f" with {', '.join(map(repr, answer))}" if isinstance(answer, Mapping) else ""
    raise TypeError(
        f"The model must give a tensor of logits, or an object or mapping that holds one as 'logits', got "
        f"{type(answer).__name__}{names}; wrap it, as in lambda x: model(x)[0]."
    )


class Oracle:
    """A model under attack, asked as its caller would ask it.

    The samples come in their own type, or, where the model refuses that, in the type of its parameters; and in the
    memory layout of a batch of the samples that were given. On the CPU convolutions are up to several times faster with
    the channels innermost in memory. Images are laid out so if a module with convolutions, in evaluation mode, takes
    one sample in either layout and answers the same, which costs two passes of that sample, counted nowhere.

    Args:
        model: Gives logits.
        samples: Samples as they were given, ``(batch, *)``.
        probe: Whether the faster layout may be tried.

    Attributes:
        dtype: Type in which the model is asked.
        own_dtype: Type of the model's first parameter; that of the samples if none is found.
        strides: Memory layout of a batch.
    """

    def __init__(self, model: Model, samples: Tensor, probe: bool = True) -> None:
        self.model = model
        self.dtype = samples.dtype
        self.strides = (samples[0].numel(), *torch.empty_like(samples[0]).stride())
        modules = modules_of(model)
        parameters = [p for module in modules for p in module.parameters(recurse=False) if p.is_floating_point()]
        self.own_dtype = parameters[0].dtype if parameters else samples.dtype
        self._settled = False
        self._probe = (
            probe
            and samples.ndim == 4
            and samples.device.type == "cpu"
            and isinstance(model, nn.Module)
            and any(isinstance(module, nn.Conv2d) for module in modules)
            and not any(module.training for module in modules)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits in the type in which the model gives them.

        Args:
            x: Samples in the type in which the attack computes, ``(batch, *)``.
        """
        if self._settled:
            return self._ask(x)
        self._settled = True
        if self.dtype == self.own_dtype:
            self._choose_layout(x[:1].detach())
            return self._ask(x)
        try:
            logits = self._ask(x)
        except RuntimeError:
            self.dtype = self.own_dtype
            logits = self._ask(x)
        self._choose_layout(x[:1].detach())
        return logits

    def _ask(self, x: Tensor) -> Tensor:
        return take_logits(self.model(arrange(x.to(self.dtype), self.strides)))

    def _choose_layout(self, x: Tensor) -> None:
        """Take the faster layout if a sample goes through in it, forward and backward, with the same logits."""
        if not self._probe:
            return
        given, (_, channels, height, width) = self.strides, x.shape
        try:
            first = self._try(x)
            self.strides = channels * height * width, 1, width * channels, channels
            second = self._try(x)
            same = first[1] == second[1] and _close(first[0], second[0])
        except Exception:  # whatever is wrong with the model itself shows when it is asked in earnest
            same = False
        if not same:
            self.strides = given

    def _try(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return the logits, and whether there is a backward pass."""
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            point = x.clone().requires_grad_()
            logits = self._ask(point)
            try:
                torch.autograd.grad(logits.float().sum(), point)
            except RuntimeError:
                return logits.detach(), False
            return logits.detach(), True


def arrange(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return samples in a memory layout: themselves if they have it, else a copy.

    Args:
        x: Samples.
        strides: Strides of a batch of them.
    """
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _close(first: Tensor, second: Tensor) -> bool:
    """Return whether logits differ by no more than rounding."""
    if first.shape != second.shape:
        return False
    allowed = max(1e-5, torch.finfo(first.dtype).eps) * (1 + float(first.abs().max()))
    return bool(((first - second).abs() <= allowed).all())
