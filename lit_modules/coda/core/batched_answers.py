"""Batches of questions, of which those about the same images read what they begin with once."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from lit_modules.coda.backends.protocols import ChatRequest
from lit_modules.utils.kv_cache import cache_argument

_INPUTS = {"input_ids", "attention_mask", "pixel_values", "image_sizes", "pixel_attention_mask"}


class SeededNoise:
    """Noise that makes the largest score a draw: Gumbel noise from the row's own seed on scores over the temperature.

    A temperature of 0 leaves the scores as they are.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self.temperatures = [request.temperature for request in requests]
        self.sources = [torch.Generator().manual_seed(request.seed or 0) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``(rows, vocabulary)`` so that the largest one is the draw, as a logits processor."""
        if not any(self.temperatures):
            return scores
        drawn = scores.float().clone()
        for row, temperature, source in zip(drawn, self.temperatures, self.sources, strict=True):
            if temperature > 0:
                uniform = torch.rand(row.shape, generator=source, dtype=torch.float64).clamp_min(1e-300)
                row.div_(temperature).sub_((-uniform.log()).log().to(row.device, row.dtype))
        return drawn


def can_share(network: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Return whether a model's questions can be read in two parts.

    That is so where a position is a number, not a point in a picture, where inputs are tokens and pixels alone, and
    where the model's settings leave the kind of its key-value cache open.
    """
    return (
        "position_ids" in inspect.signature(network.forward).parameters
        and cache_argument(network) is not None
        and set(inputs) <= _INPUTS
        and not any(hasattr(module, "rope_deltas") for module in network.modules())
        and network.generation_config.cache_implementation is None
    )


def shared_lengths(tokens: Sequence[Sequence[int]], groups: Sequence[int]) -> list[int]:
    """Return how many tokens the questions of each group have in common at their beginning, one less than all of one.

    Example:
        >>> shared_lengths([[1, 2, 3, 4], [1, 2, 5], [7, 8]], groups=[0, 0, 1])
        [2, 1]
    """
    found = []
    for group in range(max(groups) + 1):
        members = [row for row, own in zip(tokens, groups, strict=True) if own == group]
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*members, strict=False)))
        found.append(min(same, min(map(len, members)) - 1))
    return found


def image_groups(
    requests: Sequence[ChatRequest], tokens: Sequence[Sequence[int]], image_token: int | None
) -> list[int] | None:
    """Return the group of each question, from 0: those about the very same images; one without images is alone.

    ``None`` if a place for an image comes after what the questions of its group have in common.
    """
    numbers: dict[object, int] = {}
    keys: list[object] = [tuple(map(id, request.images)) or place for place, request in enumerate(requests)]
    groups = [numbers.setdefault(key, len(numbers)) for key in keys]
    common = shared_lengths(tokens, groups)
    rest = [row[common[group] :] for row, group in zip(tokens, groups, strict=True)]
    return None if any(image_token in row for row in rest) else groups


def batches(
    groups: Sequence[Sequence[int]], lengths: Mapping[int, int], batch_size: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Yield the numbers of questions to answer together: of similar length, those of a group together if they can be.

    A batch has at most ``batch_tokens``, padding included; a longer question is alone in its own.

    Example:
        >>> list(batches([[0], [1, 2], [3]], {0: 9, 1: 5, 2: 4, 3: 3}, batch_size=2, batch_tokens=100))
        [[3], [2, 1], [0]]
    """
    batch: list[int] = []
    longest = 0
    ordered = [sorted(group, key=lambda number: lengths[number]) for group in groups]
    for group in sorted(ordered, key=lambda group: lengths[group[-1]]):
        if batch and len(batch) + len(group) > batch_size >= len(group):
            yield batch
            batch, longest = [], 0
        for number in group:
            longest = max(longest, lengths[number])
            if batch and (len(batch) == batch_size or longest * (len(batch) + 1) > batch_tokens):
                yield batch
                batch, longest = [], lengths[number]
            batch.append(number)
    if batch:
        yield batch


@torch.no_grad()
def read_shared(
    network: Any, images: Mapping[str, Tensor], tokens: Sequence[Sequence[int]], groups: Sequence[int], pad: int
) -> dict[str, Any] | None:
    """Read what the questions of each group have in common, and return the inputs with which ``generate`` goes on.

    Against ``generate`` on whole questions with their image repeated, verdicts of two tokens, five on an image of 744
    tokens, are answered 3.99 times as fast (3.38 to 4.64 in five turns; LLaVA-NeXT of 10.1 M parameters, one thread,
    2 cores, no GPU, 2026-11-28, ``python benchmarks/coda.py --part verdicts --tile 168 --questions 15``). Questions
    that share no image gain nothing, so they are read whole.

    Args:
        network: Model for which :func:`can_share` holds, in evaluation mode.
        images: Inputs of the model beside tokens, for one question of each group.
        tokens: Tokens of each question; all places for images are in what a group has in common.
        groups: Number of the group of each question, from 0: those about the same images.
        pad: Token at masked places.

    Returns:
        Tokens, mask and key-value cache; ``None`` if the cache does not keep all that was read, as one of a sliding
        window, for which padding between the two parts would count.
    """
    device = network.device
    common = shared_lengths(tokens, groups)
    firsts = [tokens[groups.index(group)][:length] for group, length in enumerate(common)]
    begin, begin_mask = _padded(firsts, pad, device)
    positions = (begin_mask.cumsum(1) - 1).clamp(min=0)
    named = {"input_ids": begin, "attention_mask": begin_mask, "position_ids": positions, "use_cache": True}
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        named["logits_to_keep"] = 1
    cached = cache_argument(network)
    cache = network(**named, **images)[cached]
    if type(cache) is not DynamicCache or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    rows = torch.tensor(groups, device=device)
    cache.batch_select_indices(rows)
    rest, rest_mask = _padded([row[common[group] :] for row, group in zip(tokens, groups, strict=True)], pad, device)
    whole, mask = torch.cat([begin[rows], rest], 1), torch.cat([begin_mask[rows], rest_mask], 1)
    return {"input_ids": whole, "attention_mask": mask, str(cached): cache}


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows padded on the left, with their mask, int64 ``(rows, tokens)``."""
    width = max(map(len, rows))
    tokens = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
