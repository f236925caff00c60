"""Progress of long work within a step of a trainer, or without one: a bar that moves while a batch is worked on.

Code that takes long says what it does: ``with step("AutoAttack", 4) as bar: ...; bar.advance()``. That is shown only
where a display is in force: :func:`shown` puts a trainer's own kind of bar in force, :func:`alone` a bar without a
trainer. Without one a step does nothing.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar

DELAY = 1.0
"""Seconds after which a step gets a bar; a shorter one has none."""
PERIOD = 0.2
"""Least seconds between two changes of a bar."""
Item = TypeVar("Item")


class Bar(Protocol):
    """A bar on the screen."""

    def draw(self, done: int, text: str) -> None:
        """Show how much is done, and a text."""

    def close(self) -> None:
        """Take the bar off the screen."""


class Display(Protocol):
    """Opens bars."""

    def __call__(self, total: int | None, text: str) -> Bar:
        """Return a new bar, below those that are open."""


class Step:
    """A piece of work that may have a bar.

    Args:
        title: Name of the work.
        total: Parts of the work, or ``None`` if the number is not known.
        display: Opens the bar; ``None`` shows nothing.
    """

    def __init__(self, title: str, total: int | None, display: Display | None) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._display = display
        self._text = ""
        self._passes = 0
        self._bar: Bar | None = None
        self._due = math.inf if display is None else time.monotonic() + DELAY

    def say(self, text: str) -> None:
        """Say what is worked on now."""
        self._text, self._passes = text, 0
        if self._bar is not None:
            self._due = 0.0  # the last text of a busy moment must not be lost
        self._draw()

    def advance(self, count: int = 1) -> None:
        """Say that so many further parts are done."""
        self.done += count
        self._draw()

    def count_pass(self) -> None:
        """Count a pass of a model; costs the look at a clock."""
        self._passes += 1
        self._draw()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        if self._due == math.inf or (now := time.monotonic()) < self._due:
            return
        self._due = now + PERIOD
        passes = f"{self._passes:,} passes" if self._passes else ""
        text = ", ".join(filter(None, (self._text, passes)))
        text = f"{self.title}: {text}" if text else self.title
        if self._bar is None:
            assert self._display is not None
            self._bar = self._display(self.total, text)
        self._bar.draw(self.done, text)


_DISPLAY: ContextVar[Display | None] = ContextVar("display", default=None)
_STEP: ContextVar[Step | None] = ContextVar("step", default=None)


@contextmanager
def step(title: str, total: int | None = None) -> Iterator[Step]:
    """Show a piece of work in the display in force; nothing if there is none.

    Args:
        title: Name of the work.
        total: Parts of the work, or ``None`` if the number is not known.

    Example:
        >>> with step("attacks", 2) as bar:
        ...     bar.say("PGD")
        ...     bar.advance()
        >>> bar.done
        1
    """
    display = _DISPLAY.get()
    work = Step(title, total, display)
    if display is None:
        yield work
        return
    token = _STEP.set(work)
    try:
        yield work
    finally:
        _STEP.reset(token)
        work.close()


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield items, with a bar of how many are done.

    Args:
        items: The items.
        title: Name of the work.
        total: Number of items; ``None`` takes the length of what has one.

    Example:
        >>> list(track([1, 2], "rows"))
        [1, 2]
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    work = Step(title, count, _DISPLAY.get())  # not the innermost one: the caller's block may hold others
    try:
        for item in items:
            yield item
            work.advance()
    finally:
        work.close()


def count_pass() -> None:
    """Count a pass of a model in the innermost step, if it is shown."""
    work = _STEP.get()
    if work is not None:
        work.count_pass()


def is_shown() -> bool:
    """Return whether a step would be shown."""
    return _DISPLAY.get() is not None


@contextmanager
def shown(trainer: Trainer | None) -> Iterator[None]:
    """Show the steps of a block beside the bar of a trainer, by the library that draws that bar.

    Nothing is shown if the trainer has no bar or a disabled one, in processes other than the first, and where the
    output is neither a terminal nor a notebook. Without a trainer the display in force stays.
    """
    if trainer is None:
        yield
        return
    with _in_force(_display_of(trainer) if on_screen() else None):
        yield


@contextmanager
def alone(show: bool = True) -> Iterator[None]:
    """Show the steps of a block without a trainer, on a terminal or in a notebook.

    Args:
        show: ``False`` leaves the display in force as it is.
    """
    if not show:
        yield
        return
    with _in_force(_TqdmBar if on_screen() else None):
        yield


def on_screen() -> bool:
    """Return whether the output is a terminal or a notebook."""
    return "ipykernel" in sys.modules or sys.stdout.isatty()


@contextmanager
def _in_force(display: Display | None) -> Iterator[None]:
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


def _display_of(trainer: Trainer) -> Display | None:
    from lightning.pytorch.callbacks import RichProgressBar

    callback = trainer.progress_bar_callback
    # a bar of one's own need not know whether it is disabled
    if callback is None or not trainer.is_global_zero or getattr(callback, "is_disabled", False):
        return None
    return _RichBars(callback) if isinstance(callback, RichProgressBar) else _TqdmBar


class _TqdmBar:
    """Bar of tqdm, which finds its line below the bars that are open."""

    def __init__(self, total: int | None, text: str) -> None:
        from tqdm.auto import tqdm

        count = "| {n_fmt}/{total_fmt}" if total is not None else ""
        form = f"{{desc}}{'|{bar:20}' if total is not None else ''}{count} [{{elapsed}}]"
        shape = {"bar_format": form, "dynamic_ncols": True, "leave": False}
        # the delay of short bars has passed already
        self._bar: Any = tqdm(total=total, desc=f"  {text}", file=sys.stdout, delay=0, **shape)

    def draw(self, done: int, text: str) -> None:
        self._bar.n = done
        self._bar.set_description_str(f"  {text} ", refresh=True)

    def close(self) -> None:
        self._bar.close()


class _RichBars:
    """Bars within the display of Lightning's ``RichProgressBar``, or before it is there, in one of their own."""

    def __init__(self, callback: RichProgressBar) -> None:
        self.callback = callback

    def __call__(self, total: int | None, text: str) -> Bar:
        progress = self.callback.progress
        return _RichBar(self.callback if progress is not None and progress.live.is_started else None, total, text)


class _RichBar:
    """Bar of rich.

    Args:
        callback: Callback whose display is on the screen; ``None`` opens one.
        total: Parts of the work.
        text: First text.
    """

    def __init__(self, callback: RichProgressBar | None, total: int | None, text: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._callback = callback
        self._own = None
        self._progress: Any
        if callback is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = self._own = Progress(*columns, transient=True)
            self._own.start()
            self._task = self._progress.add_task(f"  {text}", total=total)
            return
        self._progress = callback.progress
        self._task = self._progress.add_task(f"  {text}", total=math.inf if total is None else total)

    def draw(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=f"  {text}")
        if self._callback is not None:
            self._callback.refresh()

    def close(self) -> None:
        if self._own is not None:
            self._own.stop()
            return
        self._progress.update(self._task, visible=False)  # not removed: Lightning finds its tasks by their place
        assert self._callback is not None
        self._callback.refresh()
