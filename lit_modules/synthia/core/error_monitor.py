"""Monitor of the error on the positives, which preference losses may raise."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


class ErrorMonitor:
    """Warn, once, when an error has risen over its start.

    The start is the mean of the first ``window`` values, the present a moving average over about as many.

    Args:
        window: Number of values, at least 1.
        factor: Ratio of present to start that counts as risen, above 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> monitor = ErrorMonitor(window=2, factor=1.5)
        >>> [monitor.update(value) for value in (1.0, 1.0, 1.1, 3.0)]
        [False, False, False, True]
    """

    def __init__(self, window: int = 50, factor: float = 1.2) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}.")
        self.window, self.factor = window, factor
        self.count, self.start, self.present = 0, 0.0, 0.0
        self.warned = False

    def update(self, error: float) -> bool:
        """Take the error of a step, and return whether it has risen; warn the first time."""
        self.count += 1
        if self.count <= self.window:
            self.start += (error - self.start) / self.count
            self.present = self.start
            return False
        self.present += (error - self.present) / self.window
        risen = self.present > self.factor * self.start
        if risen and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"The error on the positives has risen to {self.present:.4g} from {self.start:.4g} at the start (after "
                f"{self.count} steps): the loss is lowered by spoiling the images. Lower the learning rate or the "
                "weight of the negatives, or stop earlier."
            )
        return risen

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"count": self.count, "start": self.start, "present": self.present, "warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.count, self.start, self.present = int(state["count"]), state["start"], state["present"]
        self.warned = bool(state["warned"])
