"""Learning rates along the stages of a curriculum."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Decay = Literal["cosine", "linear", "none"]


class StagedLR(LRScheduler):
    """Warm up and decay the learning rate within each stage of a curriculum, so that the stages are treated alike.

    A cycle over the whole run would train the last stage, the most distant pairs, at a fraction of the first one's
    rates. Here, in a stage of ``n`` steps of which ``w = round(warmup * n)`` warm up, step ``i`` (from 0) has the
    optimizer's rate times

    - ``(i + 1) / (w + 1)`` if ``i < w``,
    - then ``(1 + cos(pi s)) / 2`` with ``s = (i - w) / (n - w)`` (``"cosine"``), ``1 - s`` (``"linear"``), or 1
      (``"none"``).

    Stages of the same length thus have the same mean rate. ``warmup=0.0, decay="none"`` is the constant rate of the
    authors' script.

    The lengths of the stages are given as ``steps``, or by :class:`~callbacks.Curriculum`, which reads them from the
    training sampler and gives them again when a metric brings a stage forward; that stage ends without the rest of its
    decay. The rate is a function of the number of steps and these lengths alone, and both are in the state: a resumed
    run has the rates of one that was not stopped. Steps past the last stage keep its last rate.

    A sampler without stages makes the whole run one stage. In mode ``"competence"``, where distances grow all along,
    that favours close pairs again; take ``decay="none"`` there.

    Args:
        optimizer: Optimizer, whose rate is the highest of the schedule.
        warmup: Share of a stage's steps in which the rate rises, in [0, 1).
        decay: How the rate falls afterwards.
        steps: Optimizer steps of each stage; ``None`` waits for ``callbacks.Curriculum`` to give them.

    Raises:
        ValueError: If an argument is out of its range.
        RuntimeError: In ``step``, if nothing has given the stages.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule, rates = StagedLR(optimizer, warmup=0.0, decay="linear", steps=[2, 4]), []
        >>> for _ in range(6):
        ...     rates += schedule.get_last_lr()
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.05,
        decay: Decay = "cosine",
        steps: Sequence[int] | None = None,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be a share of a stage in [0, 1), got {warmup}.")
        if decay not in get_args(Decay):
            raise ValueError(f"decay must be {', '.join(map(repr, get_args(Decay)))}, got {decay!r}.")
        self.warmup, self.decay = warmup, decay
        self.steps = None if steps is None else _checked(steps)
        super().__init__(optimizer)

    def set_stages(self, steps: Sequence[int]) -> None:
        """Set the optimizer steps of each stage, from the first of the run on, and the coming step's rate by them."""
        self.steps = _checked(steps)
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = rates

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group for the coming step."""
        factor = self.factor(self.last_epoch)
        return [float(rate) * factor for rate in self.base_lrs]

    def factor(self, step: int) -> float:
        """Return the factor of the optimizer's rate after a number of optimizer steps."""
        if self.steps is None:
            if step:
                raise RuntimeError(
                    "StagedLR does not know the stages of the curriculum: add callbacks.Curriculum to the trainer's "
                    "callbacks, or give it the steps of each stage."
                )
            return 1.0  # while it is built; the stages come before the first step
        ends = list(accumulate(self.steps))
        stage = min(bisect_right(ends, step), len(ends) - 1)
        length = self.steps[stage]
        index = min(step, ends[-1] - 1) - (ends[stage] - length)
        rising = round(self.warmup * length)
        if index < rising:
            return (index + 1) / (rising + 1)
        share = (index - rising) / (length - rising) if length > rising else 0.0
        return {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share, "none": 1.0}[self.decay]


def _checked(steps: Sequence[int]) -> list[int]:
    if not steps or any(number < 1 for number in steps):
        raise ValueError(f"steps must be at least one for each of one or more stages, got {list(steps)}.")
    return list(steps)
