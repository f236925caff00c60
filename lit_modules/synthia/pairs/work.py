"""Worker threads of a preparation, which lose nothing that is finished when they are stopped."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Generic, TypeVar

from lit_modules.utils.endpoints import AnswerError, EndpointError, RefusedError

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST_REFUSED = 8
_POLL = 0.2
"""Seconds after which an interrupt is noticed."""


class Work(Generic[Item, Result]):
    """Items to be done in threads; results are kept by the calling thread alone.

    ``do`` makes the result of an item; its ``RefusedError`` and ``AnswerError`` concern the item, which ``refuse``
    records, others end the work. If the first few items are all refused, the fault lies with the request and not with
    the items: the work stops, and nothing is recorded as refused. An interrupt waits for what is under way and keeps
    it, after ``stop``; a second one does not wait.
    """

    def __init__(
        self,
        do: Callable[[Item], Result],
        keep: Callable[[Item, Result], object],
        refuse: Callable[[Item, ValueError], None],
        stop: Callable[[], None],
    ) -> None:
        self.do, self.keep, self.refuse, self.stop = do, keep, refuse, stop
        self._kept = False
        self._refused: list[tuple[Item, ValueError]] = []

    def run(self, items: Sequence[Item], workers: int, advance: Callable[[], None]) -> None:
        """Do all items in a number of threads; ``advance`` is called after each.

        Raises:
            EndpointError: If the first items were all refused, or ``do`` raised it.
        """
        coming = iter(items)
        running: dict[Future[Result], Item] = {}
        failure: BaseException | None = None
        with _deferred_interrupt() as interrupted, ThreadPoolExecutor(workers) as pool:
            while True:
                while failure is None and len(running) < workers and (item := next(coming, None)) is not None:
                    running[pool.submit(self.do, item)] = item
                if not running:
                    break
                done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                problem: BaseException | None = KeyboardInterrupt() if interrupted.is_set() else None
                for future in done:
                    try:
                        self._settle(running.pop(future), future)
                        advance()
                    except Exception as error:  # what is under way was paid for, and is kept
                        problem = problem or error
                if problem is not None and failure is None:
                    failure = problem
                    self.stop()
        if failure is not None:
            raise failure
        self._record()

    def _settle(self, item: Item, future: Future[Result]) -> None:
        error = future.exception()
        if error is None:
            self.keep(item, future.result())
            self._kept = True
            self._record()
        elif isinstance(error, RefusedError | AnswerError):
            self._refused.append((item, error))
            if self._kept:
                self._record()
            elif len(self._refused) >= _MOST_REFUSED:
                raise EndpointError(
                    f"The first {len(self._refused)} requests all failed, the last one so: {error}. Check the options, "
                    "the model and the size of images; the same command resumes."
                )
        else:
            raise error

    def _record(self) -> None:
        for item, error in self._refused:
            self.refuse(item, error)
        self._refused = []


@contextmanager
def _deferred_interrupt() -> Iterator[Event]:
    """Let the first interrupt set an event instead of breaking in anywhere; the second one breaks in."""
    event, before = Event(), signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(before):  # another thread may set none, and some ignore it
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        event.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
