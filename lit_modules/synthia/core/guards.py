"""Guards of fine-tuning by errors of a denoising network: Min-SNR weights, and a watch on the positives' error."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor


def min_snr_weights(
    snr: Tensor, prediction: Literal["epsilon", "v_prediction", "flow"] = "epsilon", gamma: float = 5.0
) -> Tensor:
    """Return the weight of each timestep's error, which caps the weight of the clean image's error at ``gamma``.

    The clean image's error is the error of the noise over the SNR, that of the velocity over ``snr + 1`` and that of
    the flow over ``(1 + sqrt(snr))^2``; so the weights are ``min(snr, gamma)`` over these. The last follows from the
    first by ``snr = ((1 - s) / s)^2``. An SNR of 0, which schedules with a last step of pure noise have, is raised to
    1e-8: the weight of the noise's error is 1 there, its limit, and not NaN.

    Args:
        snr: Signal-to-noise ratio of each timestep, not negative; infinite ones weigh 0.
        prediction: What the network predicts.
        gamma: Largest weight of the clean image's error, positive.

    Raises:
        ValueError: If ``prediction`` is unknown or ``gamma`` is not positive.

    Example:
        >>> import torch
        >>> min_snr_weights(torch.tensor([0.0, 1.0, 10.0]))
        tensor([1.0000, 1.0000, 0.5000])
        >>> min_snr_weights(torch.tensor([0.0, 1.0, 9.0]), "v_prediction")
        tensor([1.0000e-08, 5.0000e-01, 5.0000e-01])

    References:
        Hang et al., "Efficient diffusion training via Min-SNR weighting strategy", arXiv 2303.09556.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")
    snr = snr.clamp(min=1e-8)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "flow": (1 + snr.sqrt()).square()}
    if prediction not in divisors:
        raise ValueError(f"prediction must be 'epsilon', 'v_prediction' or 'flow', got {prediction!r}.")
    return snr.clamp(max=gamma) / divisors[prediction]


class RisingError:
    """Tells whether the error on the positives has risen over its start, as preference losses may make it.

    The start is the mean of the first ``window`` values, the present a moving average over about as many.

    Args:
        window: Number of values, at least 1.
        factor: Ratio of present to start that counts as risen, above 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> watch = RisingError(window=2, factor=1.5)
        >>> [watch.update(value) for value in (1.0, 1.0, 1.1, 3.0)]
        [False, False, False, True]
    """

    def __init__(self, window: int = 50, factor: float = 1.2) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}.")
        self.window, self.factor = window, factor
        self.count, self.start, self.present = 0, 0.0, 0.0

    def update(self, error: float) -> bool:
        """Take the error of a step, and say whether it has risen."""
        self.count += 1
        if self.count <= self.window:
            self.start += (error - self.start) / self.count
            self.present = self.start
            return False
        self.present += (error - self.present) / self.window
        return self.present > self.factor * self.start

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"count": self.count, "start": self.start, "present": self.present}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.count, self.start, self.present = int(state["count"]), state["start"], state["present"]
