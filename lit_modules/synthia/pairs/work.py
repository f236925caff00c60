"""Work through the items of a preparation, some at a time, and lose nothing that is finished when it is stopped."""

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
    """Items to be done one by one or in threads; results are kept by the calling thread alone.

    If the first few items are all refused, the fault lies with the request and not with the items: the work stops, and
    nothing is recorded as refused. An interrupt waits for what is under way and keeps it; a second one does not wait.

    Args:
        do: Makes the result of an item. ``RefusedError`` and ``AnswerError`` concern the item; others end the work.
        keep: Stores a result.
        refuse: Records an item that could not be done.
        stop: Makes ``do`` end soon in all threads.
    """

    def __init__(
        self,
        do: Callable[[Item], Result],
        keep: Callable[[Item, Result], None],
        refuse: Callable[[Item, ValueError], None],
        stop: Callable[[], None],
    ) -> None:
        self.do, self.keep, self.refuse, self.stop = do, keep, refuse, stop
        self._kept = False
        self._refused: list[tuple[Item, ValueError]] = []

    def run(self, items: Sequence[Item], workers: int, advance: Callable[[], None]) -> None:
        """Do all items.

        Args:
            items: The items.
            workers: Threads; 1 takes none.
            advance: Called after each item.

        Raises:
            EndpointError: If the first items were all refused, or ``do`` raised it.
        """
        with _deferred_interrupt() as interrupted:
            if workers == 1:
                self._one_by_one(items, advance, interrupted)
            else:
                self._in_threads(items, workers, advance, interrupted)
        self._record()

    def _one_by_one(self, items: Sequence[Item], advance: Callable[[], None], interrupted: Event) -> None:
        for item in items:
            future: Future[Result] = Future()
            try:
                future.set_result(self.do(item))
            except (RefusedError, AnswerError) as error:
                future.set_exception(error)
            self._settle(item, future)
            advance()
            if interrupted.is_set():
                raise KeyboardInterrupt

    def _in_threads(self, items: Sequence[Item], workers: int, advance: Callable[[], None], interrupted: Event) -> None:
        coming = iter(items)
        running: dict[Future[Result], Item] = {}
        broken: BaseException | None = None
        with ThreadPoolExecutor(workers) as pool:
            while True:
                while broken is None and len(running) < 2 * workers:
                    item = next(coming, None)
                    if item is None:
                        break
                    running[pool.submit(self.do, item)] = item
                if not running:
                    break
                done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                found: BaseException | None = KeyboardInterrupt() if interrupted.is_set() else None
                for future in done:
                    item = running.pop(future)
                    try:
                        if not future.cancelled():
                            self._settle(item, future)
                            advance()
                    except Exception as error:  # what is under way was paid for, and is kept
                        found = found or error
                if found is not None and broken is None:
                    broken = found
                    self.stop()
                    for future in running:
                        future.cancel()
        if broken is not None:
            raise broken

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
                    "the model and the size of images; the same line goes on."
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
