"""Endpoints that are asked for few things at a time, and budgets at which all that share one stop."""

import threading
import urllib.error
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from lit_modules.coda.augmentation.estimate import Prices
from lit_modules.coda.backends.protocols import BackendError, BudgetExhausted, Usage
from lit_modules.utils.endpoints import AnswerError, Endpoint, EndpointError, RefusedError
from lit_modules.utils.keys import without_key

Answer = TypeVar("Answer")
_FAILURES = 3  # in a row, after all attempts of each


class Budget:
    """What a run may use; the back ends that share it stop at its end, and the run goes on later with a new one.

    A request takes its call or image before it is sent, so that these are never exceeded; one that the endpoint answers
    with an error gives it back. Tokens and cost are known afterwards: no request is sent once they are used up, and the
    answers that are under way then may exceed them.

    Args:
        calls: Most answers of chat models; ``None`` for any number, as for all others.
        tokens: Most tokens of questions and answers together.
        images: Most images.
        cost: Most money, in the currency of ``prices``.
        prices: Prices; needed for ``cost``.

    Attributes:
        used_calls: Calls so far.
        used_images: Images so far.
        usage: Tokens so far.

    Raises:
        ValueError: If a bound is negative, or there is one of cost without prices.
    """

    def __init__(
        self,
        calls: int | None = None,
        tokens: int | None = None,
        images: int | None = None,
        cost: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.bounds = {"calls": calls, "tokens": tokens, "images": images, "cost": cost}
        for name, bound in self.bounds.items():
            if bound is not None and not bound >= 0:
                raise ValueError(f"{name} must not be negative, got {bound}; None sets no bound.")
        if cost is not None and prices is None:
            raise ValueError(f"A budget of cost {cost} needs the prices; give prices=Prices(...).")
        self.prices = prices or Prices()
        self.used_calls = self.used_images = 0
        self.usage = Usage()
        self._lock = threading.Lock()

    @property
    def used(self) -> dict[str, float]:
        """What was used so far, by the names of the bounds."""
        prices, usage = self.prices, self.usage
        cost = self.used_calls * prices.call + self.used_images * prices.image
        cost += usage.input_tokens * prices.million_input_tokens / 1e6
        cost += usage.output_tokens * prices.million_output_tokens / 1e6
        tokens = usage.input_tokens + usage.output_tokens
        return {"calls": self.used_calls, "tokens": tokens, "images": self.used_images, "cost": cost}

    @property
    def counts_tokens(self) -> bool:
        """Whether a bound depends on the tokens that answers took."""
        priced = self.prices.million_input_tokens or self.prices.million_output_tokens
        return self.bounds["tokens"] is not None or bool(self.bounds["cost"] is not None and priced)

    def take(self, what: Literal["calls", "images"]) -> None:
        """Take one call or image.

        Raises:
            BudgetExhausted: If a bound that it counts for is reached.
        """
        with self._lock:
            used = self.used
            for name in (what, "cost", *(("tokens",) if what == "calls" else ())):
                bound = self.bounds[name]
                if bound is not None and used[name] >= bound:
                    raise BudgetExhausted(
                        f"The budget of {bound:g} {name} is used up ({used[name]:g}); go on later with a new one."
                    )
            self._count(what, 1)

    def give_back(self, what: Literal["calls", "images"]) -> None:
        """Give back a call or image that was refused."""
        with self._lock:
            self._count(what, -1)

    def add(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            total = self.usage
            self.usage = Usage(total.input_tokens + usage.input_tokens, total.output_tokens + usage.output_tokens)

    def _count(self, what: str, number: int) -> None:
        name = f"used_{what}"
        setattr(self, name, getattr(self, name) + number)


class BoundedEndpoint(Endpoint):
    """An endpoint that is asked for few things at a time and within a budget, whoever uses it.

    Pauses, attempts and the key are those of :class:`lit_modules.utils.endpoints.Endpoint`.

    Args:
        url: Address up to the version, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model.
        max_concurrency: Most requests under way at the same time.
        budget: What may be used; ``None`` sets no bound.
        more: Further arguments of ``Endpoint``: ``key_variable``, ``timeout``, ``attempts``, ``pause``,
            ``longest_pause``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, url: str, model: str, max_concurrency: int = 8, budget: Budget | None = None, **more: Any
    ) -> None:
        super().__init__(url, model, **more)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}.")
        self.max_concurrency, self.budget = max_concurrency, budget or Budget()
        self._places = threading.BoundedSemaphore(max_concurrency)
        self._lock = threading.Lock()
        self._answered, self._failed = False, 0

    def request(self, path: str, fields: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """Send a request until its answer can be read.

        Args:
            path: What is asked for, such as ``"chat/completions"``.
            fields: Fields of the request beside the model.
            read: Reads the decoded answer; raises ``ValueError`` if it cannot.

        Raises:
            BackendError: If there is no answer to this one request.
            BudgetExhausted: If the budget is used up, or the endpoint cannot be used: at its first request, or three
                times in a row.
        """
        try:
            answer = self._ask(path, fields, read)
        except RefusedError as error:
            raise BackendError(f"{self.model} refuses the request: {error}.") from None
        except AnswerError as error:
            raise BackendError(f"{self.model} gave no answer that can be used: {error}.") from None
        except EndpointError as error:
            with self._lock:
                self._failed += 1
                hopeless = not self._answered or self._failed >= _FAILURES
            if hopeless:
                raise BudgetExhausted(str(error)) from None
            raise BackendError(str(error)) from None
        with self._lock:
            self._answered, self._failed = True, 0
        return answer

    def _send(self, path: str, body: bytes) -> bytes:
        what: Literal["calls", "images"] = "images" if path.startswith("images/") else "calls"
        with self._places:
            self.budget.take(what)
            try:
                return super()._send(path, body)
            except (urllib.error.HTTPError, EndpointError):
                self.budget.give_back(what)
                raise

    def without_key(self, data: bytes) -> bytes:
        """Return text with stars in place of the key, see :func:`lit_modules.utils.keys.without_key`."""
        return without_key(data, self._key())
