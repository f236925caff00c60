"""The discriminability of attributes against the loop over pairs of images.

One loop has plain numbers, on cosines that are there already; the other a tensor for each softmax of two, timed on a
share. The first call of a process, which loads what torch has not yet, is timed in processes of its own.
"""

import statistics
import subprocess
import sys
from functools import partial
from math import exp

import torch
from timing import Row, in_turns, ratios, seconds, spread
from torch import Tensor

from lit_modules.coda import discriminability_values


def cosines(images: int, attributes: int) -> tuple[Tensor, Tensor]:
    """Return random cosines of target and confusable images."""
    generator = torch.Generator().manual_seed(0)
    target, confusable = (0.2 + 0.02 * torch.randn(images, attributes, generator=generator) for _ in range(2))
    return target, confusable


def plain_loop(target: Tensor, confusable: Tensor) -> list[float]:
    """Return the discriminability of attributes by its definition, in plain numbers."""
    found = []
    for own, others in zip(target.T.tolist(), confusable.T.tolist(), strict=True):
        total = 0.0
        for x in own:
            for y in others:
                shown, other = exp(100 * x), exp(100 * y)
                total += shown / (shown + other)
        found.append(total / (len(own) * len(others)))
    return found


def tensor_loop(target: Tensor, confusable: Tensor) -> float:
    """Return the discriminability of one attribute, by a softmax of two for each pair of images."""
    shares = [float(torch.stack([100 * x, 100 * y]).softmax(0)[0]) for x in target for y in confusable]
    return statistics.fmean(shares)


def first_call(images: int, attributes: int) -> float:
    """Return the seconds of the first call in a process of its own."""
    code = (
        f"import torch; torch.set_num_threads({torch.get_num_threads()}); from coda_scores import cosines; "
        "from lit_modules.coda import discriminability_values as values; from timing import seconds; "
        f"sides = cosines({images}, {attributes}); print(seconds(lambda: values(*sides))[0])"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path[:1]!r}; {code}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def scores(attributes: int, images: int, rounds: int) -> list[Row]:
    """Time the scores against both loops."""
    target, confusable = cosines(images, attributes)
    share = max(1, images // 10)
    wide = target.double(), confusable.double()
    expected = plain_loop(target, confusable)
    errors = [
        max(abs(a - b) for a, b in zip(discriminability_values(*sides).tolist(), expected, strict=True))
        for sides in ((target, confusable), wide)
    ]
    ours, double, first, plain, tensors = in_turns(
        rounds,
        lambda: statistics.median(seconds(partial(discriminability_values, target, confusable))[0] for _ in range(9)),
        lambda: statistics.median(seconds(partial(discriminability_values, *wide))[0] for _ in range(9)),
        lambda: first_call(images, attributes),
        lambda: seconds(partial(plain_loop, target, confusable))[0],
        lambda: seconds(partial(tensor_loop, target[:share, 0], confusable[:, 0]))[0] * attributes * images / share,
    )
    what = f"scores of {attributes} attributes, {images} x {images} images"
    return [
        (what, f"{1000 * statistics.median(ours):.1f} ms", f"greatest difference {errors[0]:.0e}"),
        ("  the same in float64", f"{1000 * statistics.median(double):.1f} ms", f"greatest difference {errors[1]:.0e}"),
        ("  loop in plain numbers / scores", spread(ratios(plain, ours), 0), ">= 100"),
        ("  loop in plain numbers / scores in float64", spread(ratios(plain, double), 0), ""),
        ("  loop in plain numbers / first scores of a process", spread(ratios(plain, first), 0), ""),
        ("  loop of tensors / scores", spread(ratios(tensors, ours), 0), ">= 100"),
    ]
