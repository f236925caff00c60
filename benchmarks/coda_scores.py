"""The discriminability of attributes against the loop over pairs of images.

One loop has plain numbers, on cosines that are there already; the other a tensor for each softmax of two, timed on a
share. The first call of a process, which loads what torch has not yet, is timed in processes of its own. A row is void
where a score differs by more than 1e-5, in float64 by more than 1e-12.
"""

import statistics
import subprocess
import sys
from functools import partial
from math import exp

import torch
from timing import Table, in_turns, seconds
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


def scores(table: Table, attributes: int, images: int, rounds: int) -> None:
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
    void = ["scores differ" if error > bound else "" for error, bound in zip(errors, (1e-5, 1e-12), strict=True)]
    results = [f"within {error:.0e}" for error in errors]
    loops = {"loop in plain numbers": plain, "loop of tensors": tensors}
    table.add(what, ours, loops, results[0], void=void[0], most=0.01, unit="ms")
    loop = {"loop in plain numbers": plain}
    table.add("  in float64", double, loop, results[1], void=void[1], most=None, unit="ms")
    table.add("  first of a process", first, loop, results[0], void=void[0], most=None, unit="ms")
