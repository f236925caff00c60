"""The box-constrained L-BFGS attack."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_modules.attacks.carlini_wagner import ConstantSearch, class_scales, in_turn, nearest_lead
from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import check_count, check_positive
from lit_modules.attacks.engine.losses import Loss, LossName, margin, resolve_loss
from lit_modules.attacks.engine.norms import lp_norm, per_sample
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.utils.arguments import Unpack

Array = np.ndarray[Any, np.dtype[np.float64]]
Evaluation = tuple[float, Array]
Evaluate = Callable[[list[int], list[Array]], list[Evaluation]]


class LBFGS(Attack):
    """L-BFGS attack: scipy's box-constrained L-BFGS on ``||x' - x||^2 + c loss``, with a search over c for each sample.

    A loss of the target is lowered, or for an untargeted attack one of the label raised. Of all
    points that the optimiser evaluates, the nearest that fools is kept; at the end it is moved towards the sample, by
    bisection of the segment between them, as far as it still fools. The optimisers of a batch run side by side, so that
    the model is called once for all of them; each sees its own sample alone.

    AdverTorch v0.1 has 100 iterations and cross-entropy, takes one sample at a time, and without a target does not
    succeed: it turns the sign of the loss without that of its gradient, and tests for a target. Here the
    leads of :class:`CarliniWagner` are the default: with more than two classes the least change of the label's
    cross-entropy is not the way to the nearest boundary. The other defaults are v0.1's.

    Args:
        search_steps: Rounds of the search over c: ten times c until a round fools, then bisection.
        steps: Most iterations of L-BFGS in a round, each of one or more forward and backward passes.
        initial_const: First weight c of the loss.
        refine_steps: Bisections of the segment at the end, one forward pass each.
        loss: ``nearest`` for the lead of the class whose boundary is nearest (targeted: of the target over the others),
            ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        max_batch_size: Most optimisers at work side by side, each in a thread.

    References:
        Szegedy et al., "Intriguing properties of neural networks" (arXiv 1312.6199), section 4.1.
        Zhu, Byrd, Lu, Nocedal, "Algorithm 778: L-BFGS-B" (ACM TOMS 23, 1997).
    """

    norm = "l2"
    minimum_norm = True

    def __init__(
        self,
        *,
        search_steps: int = 9,
        steps: int = 100,
        initial_const: float = 1e-2,
        refine_steps: int = 16,
        loss: Literal["nearest"] | LossName | Loss = "nearest",
        max_batch_size: int = 128,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(search_steps=search_steps, steps=steps, max_batch_size=max_batch_size)
        check_positive(initial_const=initial_const)
        check_count(least=0, refine_steps=refine_steps)
        self.search_steps = search_steps
        self.steps = steps
        self.initial_const = initial_const
        self.refine_steps = refine_steps
        self.loss = loss
        self.max_batch_size = max_batch_size
        self._loss = margin if loss == "nearest" else resolve_loss(loss)

    def attack(self, state: AttackState) -> Outcome:
        """Run the rounds of every sample, then bisect."""
        parts = [self._search(state.select(index)) for index in torch.split(state.positions(), self.max_batch_size)]
        adversarial, success = (torch.cat(values) for values in zip(*parts, strict=True))
        if bool(success.any()):
            index = success.nonzero()[:, 0]
            adversarial[index] = bisect_segment(state.select(index), adversarial[index], self.refine_steps)
        distance = lp_norm(adversarial - state.x, "l2")
        return Outcome(adversarial, success, torch.where(success, -distance, float("-inf")))

    def _search(self, state: AttackState) -> tuple[Tensor, Tensor]:
        search = ConstantSearch(state.x, self.initial_const)
        nearest_class = self.loss == "nearest" and not state.targeted
        scale = class_scales(state) if nearest_class else None
        adversarial = state.x.clone()
        nearest = torch.full((len(state),), float("inf"), dtype=state.x.dtype, device=state.x.device)
        successful = torch.zeros_like(nearest, dtype=torch.bool)
        positions = state.positions()
        starts = list(state.x.flatten(1).double().cpu().numpy())
        bounds = [self._bounds(state.select(index)) for index in positions[:, None]]

        def evaluate(numbers: list[int], points: list[Array]) -> list[Evaluation]:
            index = torch.tensor(numbers, device=state.x.device)
            active = state.select(index)
            x = torch.from_numpy(np.stack(points)).to(active.x).view_as(active.x)
            loss = self._loss
            if scale is not None:
                stretch = in_turn(scale[index], search.rounds[index])

                def loss(logits: Tensor, label: Tensor) -> Tensor:
                    return nearest_lead(logits, label, stretch)

            logits, objective, gradient = active.gradient(x, loss)
            delta = x - active.x
            length, fooled = lp_norm(delta, "l2"), active.fooled(logits)
            successful[index] |= fooled
            better = (fooled & (length < nearest[index])).nonzero()[:, 0]
            adversarial[index[better]], nearest[index[better]] = x[better], length[better]
            weight = search.weight[index]
            value = (length.square() - weight * objective).double().cpu()
            slope = (2 * delta - per_sample(weight, x) * gradient).flatten(1).double().cpu().numpy()
            return [(float(v), g) for v, g in zip(value, slope, strict=True)]

        for _ in range(self.search_steps):
            successful.zero_()
            minimise_together(starts, bounds, evaluate, self.steps)
            search.advance(positions, successful)
        return adversarial, nearest.isfinite()

    @staticmethod
    def _bounds(state: AttackState) -> tuple[Array, Array] | None:
        if state.lower is None or state.upper is None:
            return None
        lower, upper = (b.expand_as(state.x).flatten().double().cpu().numpy() for b in (state.lower, state.upper))
        return lower, upper


class _Closed(BaseException):
    """Ends an optimiser whose batch was given up."""


def minimise_together(
    starts: list[Array], bounds: list[tuple[Array, Array] | None], evaluate: Evaluate, steps: int
) -> None:
    """Run one L-BFGS-B of at most ``steps`` iterations for each start, and evaluate their points together.

    Each optimiser runs in a thread of its own; all of them wait while the caller's thread evaluates. ``evaluate`` gives
    value and gradient for the optimisers named and their points.
    """
    from scipy.optimize import Bounds, minimize

    questions: SimpleQueue[tuple[int, Array | BaseException | None]] = SimpleQueue()
    answers: list[SimpleQueue[Evaluation | None]] = [SimpleQueue() for _ in starts]

    def work(number: int) -> None:
        def ask(point: Array) -> Evaluation:
            questions.put((number, point.copy()))
            answer = answers[number].get()
            if answer is None:
                raise _Closed
            return answer

        box = bounds[number]
        failure: BaseException | None = None
        try:
            minimize(
                ask,
                starts[number],
                jac=True,
                method="L-BFGS-B",
                bounds=None if box is None else Bounds(*box),
                options={"maxiter": steps},
            )
        except _Closed:
            pass
        except BaseException as error:  # raised again in the caller's thread
            failure = error
        questions.put((number, failure))

    threads = [Thread(target=work, args=(number,), daemon=True) for number in range(len(starts))]
    for thread in threads:
        thread.start()
    active = len(threads)
    try:
        while active:
            requests: dict[int, Array] = {}
            for _ in range(active):
                number, question = questions.get()
                if isinstance(question, BaseException):
                    raise question
                if question is None:
                    active -= 1
                else:
                    requests[number] = question
            order = sorted(requests)
            replies = evaluate(order, [requests[number] for number in order]) if order else []
            for number, answer in zip(order, replies, strict=True):
                answers[number].put(answer)
    finally:
        for queue in answers:
            queue.put(None)
        for thread in threads:
            thread.join()


def bisect_segment(state: AttackState, adversarial: Tensor, steps: int) -> Tensor:
    """Return, between each sample and its adversarial one, the nearest point that still fools, by bisection.

    Each step costs one forward pass; every point returned has been evaluated.
    """
    near = torch.zeros(len(state), dtype=state.x.dtype, device=state.x.device)
    far = torch.ones_like(near)
    best, delta = adversarial, adversarial - state.x
    for _ in range(steps):
        middle = (near + far) / 2
        x = state.clamp(state.x + per_sample(middle, delta) * delta)
        with torch.no_grad():
            fooled = state.fooled(state.logits(x))
        best = torch.where(per_sample(fooled, x), x, best)
        near, far = torch.where(fooled, near, middle), torch.where(fooled, middle, far)
    return best
