"""Work through the items of a preparation, some at a time, and lose nothing that is finished when it is stopped."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from lit_modules.synthia.endpoints import AnswerError, EndpointError, RefusedError

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST_REFUSED = 8


class Work(Generic[Item, Result]):
    """Items to be done one by one or in threads; results are kept by the calling thread alone.

    If the first few items are all refused, the fault lies with the request and not with the items: the work stops, and
    nothing is recorded as refused.

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
        if workers == 1:
            for item in items:
                future: Future[Result] = Future()
                try:
                    future.set_result(self.do(item))
                except (RefusedError, AnswerError) as error:
                    future.set_exception(error)
                self._settle(item, future)
                advance()
        else:
            self._in_threads(items, workers, advance)
        self._record()

    def _in_threads(self, items: Sequence[Item], workers: int, advance: Callable[[], None]) -> None:
        coming = iter(items)
        running: dict[Future[Result], Item] = {}
        broken: BaseException | None = None
        with ThreadPoolExecutor(workers) as pool:
            while True:
                try:
                    while broken is None and len(running) < 2 * workers:
                        item = next(coming, None)
                        if item is None:
                            break
                        running[pool.submit(self.do, item)] = item
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        item = running[future]
                        try:
                            if not future.cancelled():
                                self._settle(item, future)
                                advance()
                        except KeyboardInterrupt:  # it may not be kept yet, so it is settled once more
                            raise
                        except BaseException:
                            del running[future]
                            raise
                        del running[future]
                except BaseException as error:  # an interrupt too: what is under way was paid for, and is kept
                    self.stop()
                    for future in running:
                        future.cancel()
                    if broken is not None and isinstance(error, KeyboardInterrupt):
                        raise
                    broken = broken or error
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
                self.stop()
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
