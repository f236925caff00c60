"""Answers to many questions together: what they begin with is read once, and an answer that has ended costs nothing."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from lit_modules.coda.backends.protocols import ChatRequest
from lit_modules.utils.kv_cache import cache_argument

_COMPACT = 0.9
"""Answers that ended leave the batch when at most this share of it goes on: each time costs a copy of the cache."""
_INPUTS = {"input_ids", "attention_mask", "pixel_values", "image_sizes", "pixel_attention_mask"}
_OBEYED = {  # what the loop here does as `generate` would, or sets itself
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "transformers_version"),
    *("do_sample", "num_beams", "temperature", "top_p", "top_k", "repetition_penalty", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_scores", "_from_model_config"),
}


class SeededNoise:
    """Makes the largest score a draw: scores over the temperature, plus Gumbel noise from the row's own seed.

    Args:
        requests: Questions of the rows; a temperature of 0 leaves the scores as they are.
    """

    def __init__(self, requests: Sequence[ChatRequest]) -> None:
        self.temperatures = [request.temperature for request in requests]
        self.sources = [torch.Generator().manual_seed(request.seed or 0) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of all rows so that the largest one is the draw, as transformers asks a processor to."""
        return self.drawn(scores, range(len(scores)))

    def drawn(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Return scores so that the largest one is the draw.

        Args:
            scores: Scores ``(rows, vocabulary)``.
            rows: Numbers of the questions that they are of.
        """
        if not any(self.temperatures):
            return scores
        drawn = scores.float().clone()
        for row, number in zip(drawn, rows, strict=True):
            if self.temperatures[number] > 0:
                uniform = torch.rand(row.shape, generator=self.sources[number], dtype=torch.float64).clamp_min(1e-300)
                row.div_(self.temperatures[number]).sub_((-uniform.log()).log().to(row.device, row.dtype))
        return drawn


def can_share(network: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Return whether a model's questions can be read in two parts, and its answers leave the batch one by one.

    That is so where a place is a number, not a point in a picture; where inputs are tokens and pixels alone; and where
    the model's own settings ask nothing of its answers that the loop here does not know.
    """
    known = inspect.signature(network.forward).parameters
    return (
        {"position_ids", "logits_to_keep"} <= set(known)
        and cache_argument(network) is not None
        and set(inputs) <= _INPUTS
        and not any(hasattr(module, "rope_deltas") for module in network.modules())
        and set(network.generation_config.to_diff_dict()) <= _OBEYED
    )


def shared_lengths(tokens: Sequence[Sequence[int]], groups: Sequence[int]) -> list[int]:
    """Return how many tokens the questions of each group have in common at their beginning, one less than all of one.

    Args:
        tokens: Tokens of each question.
        groups: Number of the group of each question, from 0; none is empty.

    Example:
        >>> shared_lengths([[1, 2, 3, 4], [1, 2, 5], [7, 8]], [0, 0, 1])
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

    Returns:
        Groups; ``None`` if a place for an image comes after what the questions of its group have in common.
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

    Args:
        groups: Numbers of the questions of each group.
        lengths: Tokens of each question.
        batch_size: Most questions in a batch.
        batch_tokens: Most tokens in a batch, padding included; a longer question is alone in its own.

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
def answer_together(
    network: Any,
    images: Mapping[str, Tensor],
    tokens: Sequence[Sequence[int]],
    groups: Sequence[int],
    ends: set[int],
    pad: int,
    max_new_tokens: int,
    noise: SeededNoise,
) -> list[list[int]] | None:
    """Answer questions by the token of the largest score at each place.

    Args:
        network: Model for which :func:`can_share` holds, in evaluation mode.
        images: What the model takes beside tokens, for one question of each group.
        tokens: Tokens of each question; all places for images are in what a group has in common.
        groups: Number of the group of each question, from 0: those about the same images.
        ends: Tokens that end an answer.
        pad: Token at masked places.
        max_new_tokens: Longest answer.
        noise: Changes the scores.

    Returns:
        Tokens of each answer, with the one that ended it; ``None`` if the model's memory of what it read is of a kind
        whose rows cannot be handed on.
    """
    from lit_modules.coda.core.growing_cache import make_room

    device = network.device
    cached = cache_argument(network)
    if cached is None:
        return None
    common = shared_lengths(tokens, groups)
    firsts = [groups.index(group) for group in range(len(common))]
    begin, begin_mask = _padded([tokens[row][:length] for row, length in zip(firsts, common, strict=True)], pad, device)
    read = network(
        input_ids=begin,
        attention_mask=begin_mask,
        position_ids=_places(begin_mask),
        use_cache=True,
        logits_to_keep=1,
        **images,
    )
    cache = read[cached]
    rest, rest_mask = _padded([row[common[group] :] for row, group in zip(tokens, groups, strict=True)], pad, device)
    if not make_room(cache, torch.tensor(groups, device=device), rest.shape[1] + max_new_tokens):
        return None
    mask = torch.cat([begin_mask[list(groups)], rest_mask], 1)
    places = _places(mask)[:, begin.shape[1] :]
    answers: list[list[int]] = [[] for _ in tokens]
    rows, going = list(range(len(tokens))), torch.ones(len(tokens), dtype=torch.bool)
    for step in range(max_new_tokens):
        scores = network(
            input_ids=rest,
            attention_mask=mask,
            position_ids=places,
            use_cache=True,
            logits_to_keep=1,
            **{cached: cache},
        ).logits[:, -1]
        best = noise.drawn(scores.float(), rows).argmax(-1)
        for place, token in enumerate(best.tolist()):
            if going[place]:
                answers[rows[place]].append(token)
                going[place] = token not in ends
        kept = int(going.sum())
        if not kept or step + 1 == max_new_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        places = places[:, -1:] + 1
        if kept <= _COMPACT * len(rows):
            live = going.nonzero().squeeze(1).to(device)
            cache.batch_select_indices(live)
            best, mask, places = best[live], mask[live], places[live]
            rows, going = [row for row, on in zip(rows, going.tolist(), strict=True) if on], going[going]
        rest = best[:, None]
    return answers


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows padded on the left, with their mask, int64 ``(rows, tokens)``."""
    width = max(map(len, rows))
    tokens = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _places(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)
