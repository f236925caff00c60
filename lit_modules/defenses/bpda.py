"""Backward pass differentiable approximation: attack through a function that has no useful gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Backward = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor | Sequence[Tensor | None]]


class BPDA(nn.Module):
    """Keep a function's forward pass and replace its backward pass.

    The gradient comes from ``backward`` if it is given, else from ``substitute`` at the same inputs, else it is
    passed on to every input as it is (straight through). Functions that are modules are registered: their parameters
    and buffers move, save and load with this module. The substitute gets the keyword arguments of the call as well;
    its parameters receive no gradient, and those of ``forward`` neither.

    AdverTorch v0.1 takes the substitute before the backward function, in the arguments and in precedence; pass them
    by name.

    Args:
        forward: The function or module, of one or more tensors.
        backward: Gives the inputs' gradients: ``backward(inputs, output_gradients)``, both tuples of tensors. It
            returns one tensor if there is a single input, else one tensor or ``None`` for each input.
        substitute: Differentiable function or module of the same inputs, close to ``forward``.

    Raises:
        TypeError: If an argument cannot be called.
        ValueError: On the backward pass, if gradients do not fit the inputs.

    Example:
        >>> layer = BPDA(torch.round)
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> layer(x).sum().backward()
        >>> x.grad
        tensor([1., 1.])

    References:
        Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security" (arXiv 1802.00420), section
        4.1.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        backward: Backward | None = None,
        substitute: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("forward", forward), ("backward", backward), ("substitute", substitute)):
            if not callable(value) and (value is not None or name == "forward"):
                raise TypeError(f"{name} of BPDA must be callable, got {type(value).__name__}.")
        self.function = forward
        self.backward_function = backward
        self.substitute = substitute

    def forward(self, *inputs: Tensor, **arguments: Any) -> Any:
        """Return what the wrapped function returns: a tensor or a tuple of tensors."""
        return _Approximated.apply(self, arguments, *inputs)

    def gradients(
        self, inputs: tuple[Tensor, ...], output_gradients: tuple[Tensor, ...], arguments: dict[str, Any]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient for each input of a forward pass with these keyword arguments."""
        gradients: tuple[Tensor | None, ...]
        if self.backward_function is not None:
            answer = self.backward_function(inputs, output_gradients)
            gradients = (answer,) if isinstance(answer, Tensor) else tuple(answer)
        elif self.substitute is not None:
            gradients = self._substitute_gradients(inputs, output_gradients, arguments)
        else:
            gradients = output_gradients[:1] * len(inputs)
        if len(gradients) != len(inputs):
            raise ValueError(f"The backward pass of BPDA gave {len(gradients)} gradients for {len(inputs)} inputs.")
        for gradient, value in zip(gradients, inputs, strict=True):
            if gradient is not None and gradient.shape != value.shape:
                raise ValueError(
                    f"The backward pass of BPDA gave a gradient of shape {tuple(gradient.shape)} for an input of shape "
                    f"{tuple(value.shape)}; a function that changes the shape needs backward= or substitute=."
                )
        return gradients

    def _substitute_gradients(
        self, inputs: tuple[Tensor, ...], output_gradients: tuple[Tensor, ...], arguments: dict[str, Any]
    ) -> tuple[Tensor | None, ...]:
        assert self.substitute is not None
        with torch.enable_grad():
            points = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
            outputs = self.substitute(*points, **arguments)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        if [o.shape for o in outputs] != [g.shape for g in output_gradients]:
            raise ValueError(
                f"The substitute of BPDA gives shapes {[tuple(o.shape) for o in outputs]}, the forward function "
                f"{[tuple(g.shape) for g in output_gradients]}; they must agree."
            )
        differentiable = [x for x in points if x.requires_grad]
        gradients = iter(torch.autograd.grad(outputs, differentiable, output_gradients, allow_unused=True))
        return tuple(next(gradients) if x.requires_grad else None for x in points)


class _Approximated(torch.autograd.Function):
    """The one function of all wrappers; what differs is in the module."""

    @staticmethod
    def forward(ctx: Any, module: BPDA, arguments: dict[str, Any], *inputs: Tensor) -> Any:
        ctx.module, ctx.arguments = module, arguments
        ctx.save_for_backward(*inputs)
        outputs = module.function(*inputs, **arguments)
        if isinstance(outputs, Tensor):
            return outputs.clone() if any(outputs is x for x in inputs) else outputs
        return tuple(o.clone() if any(o is x for x in inputs) else o for o in outputs)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        return None, None, *ctx.module.gradients(ctx.saved_tensors, output_gradients, ctx.arguments)
