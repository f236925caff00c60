"""Greedy generation in batches, with the same ids as one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_modules.utils.kv_cache import accepted_arguments, cache_argument

__all__ = ["greedy_generate", "position_limit"]

COMPACT = 0.8
"""Ended rows leave the batch when at most this share of it goes on: each time costs a copy of the cache."""


def greedy_generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int | list[int] | None,
    pad_token_id: int,
) -> list[Tensor]:
    """Continue each prompt by its most probable tokens.

    The prompts run through the model once; after that each step feeds one token per row and reads the rest from the
    key-value cache. Rows that have ended leave the batch and the cache, so short answers do not pay for long ones. Pad
    positions are masked and do not count as positions, so a row gets the ids that it gets alone, up to ties of the
    logits within rounding. Of ``model.generation_config`` only the ends are read.

    A model that takes no positions, keeps a state or is made as a decoder beside an encoder is tried once on two short
    rows. If its cache cannot drop rows, ended ones stay. If it has no cache, or answers a padded row otherwise than the
    row alone, as RWKV, RecurrentGemma and the decoder of BART do, its prompts are answered one by one and read anew for
    each token, which is slow; a warning says so.

    The model runs in evaluation mode without gradients; afterwards each of its parts is back in the mode it had.

    Args:
        model: Causal language model of transformers, bare, compiled, or wrapped by peft.
        input_ids: Prompts, padded on the left, ``(batch, tokens)``.
        attention_mask: 1 on prompt tokens and 0 on padding, ``(batch, tokens)``.
        max_new_tokens: Most tokens to add to a prompt, at least 1. An answer also ends where the model has no further
            position.
        eos_token_id: Token, or tokens, that end an answer, beside those of ``model.generation_config``; ``None`` adds
            none to them.
        pad_token_id: Token written at the masked positions of the prompts before the model reads them.

    Returns:
        The new ids of each row, 1-D int64 on the device of ``input_ids``, without the prompt and without the token that
        ended the answer. An empty tensor if the first token ends it.

    Raises:
        ValueError: If ``max_new_tokens`` is not positive, the prompts are empty or not padded on the left, or a prompt
            is longer than the positions the model has.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    _check_prompts(input_ids, attention_mask)
    inner = _unwrap(model)
    if len(input_ids) == 0:
        return []
    room = _room(inner, attention_mask, max_new_tokens)

    way = _way(model, inner, pad_token_id)
    if way == "alone":
        return _one_by_one(model, inner, input_ids, attention_mask, room, eos_token_id)
    accepted = accepted_arguments(inner)
    ends = _ends(inner, eos_token_id, input_ids.device)
    mask = attention_mask.to(torch.int64)
    tokens = input_ids.masked_fill(mask == 0, pad_token_id)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(input_ids), device=input_ids.device)  # where each live row stands in the result
    answers = input_ids.new_full((len(input_ids), max_new_tokens), pad_token_id)
    lengths = room.clone()
    going = torch.ones_like(rows, dtype=torch.bool)
    extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    cached = cast("str", cache_argument(inner))

    with _evaluation_mode(model), torch.inference_mode():
        cache = None
        for step in range(max_new_tokens):
            if "position_ids" in accepted:
                extra["position_ids"] = positions
            output = model(input_ids=tokens, attention_mask=mask, use_cache=True, **{cached: cache}, **extra)
            best = output.logits[:, -1].argmax(-1)
            ended = torch.isin(best, ends) & going
            answers[rows, step] = best
            lengths[rows[ended]] = step
            going &= ~ended & (room > step + 1)
            kept = int(going.sum())
            if kept == 0:
                break
            cache = getattr(output, cached)
            positions = (positions[:, -1:] + 1) * going.unsqueeze(1)  # rows that have ended must not run out of them
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if way == "compact" and kept <= COMPACT * len(rows):
                live = going.nonzero().squeeze(1)
                cache.batch_select_indices(live)
                rows, best, positions, mask = rows[live], best[live], positions[live], mask[live]
                going, room = going[live], room[live]
            tokens = best.unsqueeze(1)
    return [answer[:length].clone() for answer, length in zip(answers, lengths.tolist(), strict=True)]


Way = Literal["compact", "batch", "alone"]
"""Prompts in a batch that ended rows leave, in one that they stay in, or one by one without a cache."""
_TRIED: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()


def _way(model: nn.Module, inner: nn.Module, pad_token_id: int) -> Way:
    """Return the fastest way that gives each row what it gets alone; try a model once if its kind leaves a doubt."""
    accepted = accepted_arguments(inner)
    if cache_argument(inner) is None:
        way: Way = "alone"
    elif (
        "position_ids" in accepted
        and "encoder_hidden_states" not in accepted
        and not getattr(inner, "_is_stateful", False)
    ):
        return "compact"
    elif inner in _TRIED:
        return _TRIED[inner]
    else:
        with _evaluation_mode(model), torch.inference_mode():
            ways: tuple[Way, ...] = ("compact", "batch")
            way = next((way for way in ways if _agrees(model, inner, pad_token_id, way)), "alone")
    if way == "alone" and inner not in _TRIED:
        rank_zero_warn(
            f"{type(inner).__name__} does not answer a padded batch from a cache as it answers each prompt alone, so "
            "its prompts are answered one by one, and read anew for each token; this is slow."
        )
    _TRIED[inner] = way
    return way


def _agrees(model: nn.Module, inner: Any, pad_token_id: int, way: Way) -> bool:
    """Return whether a short row in a padded batch has the next two predictions that it has alone."""
    accepted = accepted_arguments(inner)
    device = next(inner.parameters()).device
    long = torch.arange(1, 6, device=device) % inner.get_input_embeddings().weight.shape[0]
    short = torch.cat([long.new_full((2,), pad_token_id), long[2:]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]], device=device)
    cached = cast("str", cache_argument(inner))

    def read(tokens: Tensor, mask: Tensor, cache: Any) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        extra = {"position_ids": positions} if "position_ids" in accepted else {}
        return model(input_ids=tokens, attention_mask=mask, use_cache=True, **{cached: cache}, **extra)

    output = read(torch.stack([long, short]), mask[:, :5], None)
    cache = getattr(output, cached, None)
    if cache is None:
        return False
    found, tokens = [output.logits[1, -1]], long[:1].expand(2, 1)
    if way == "compact":
        try:
            cache.batch_select_indices(torch.tensor([1], device=device))
        except AttributeError:  # a layer whose state has no such method
            return False
        tokens, mask = tokens[1:], mask[1:]
    found.append(read(tokens, mask, cache).logits[-1, -1])
    expected = [_read(model, inner, long[2:]), _read(model, inner, torch.cat([long[2:], long[:1]]))]
    loose = 1e-3 if expected[0].dtype in (torch.float32, torch.float64) else 5e-2
    return all(
        bool((one - two).abs().max() <= loose * two.abs().max()) for one, two in zip(found, expected, strict=True)
    )


def _read(model: nn.Module, inner: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits behind a row that is read alone, without cache."""
    accepted = accepted_arguments(inner)
    ids = tokens.unsqueeze(0)
    extra: dict[str, Any] = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in accepted else {}
    if "use_cache" in accepted:
        extra["use_cache"] = False
    logits: Tensor = model(input_ids=ids, **extra).logits
    return logits[0, -1]


def _one_by_one(
    model: nn.Module,
    inner: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    room: Tensor,
    eos_token_id: int | list[int] | None,
) -> list[Tensor]:
    """Answer each prompt alone, without a cache; see :func:`greedy_generate`."""
    ends = _ends(inner, eos_token_id, input_ids.device)
    answers = []
    with _evaluation_mode(model), torch.inference_mode():
        for ids, mask, most in zip(input_ids, attention_mask.bool(), room.tolist(), strict=True):
            row = ids[mask]
            start = len(row)
            while len(row) < start + most:
                best = _read(model, inner, row).argmax(-1, keepdim=True)
                if torch.isin(best, ends):
                    break
                row = torch.cat([row, best])
            answers.append(row[start:].clone())
    return answers


def _ends(inner: nn.Module, eos_token_id: int | list[int] | None, device: torch.device) -> Tensor:
    """Return the tokens that end an answer: those given, and the model's own."""
    configured = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    return torch.tensor(sorted({*_as_list(eos_token_id), *_as_list(configured)}), dtype=torch.int64, device=device)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            "input_ids and attention_mask must have the same shape (batch, tokens), "
            f"got {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}."
        )
    if len(input_ids) == 0:
        return
    attended = attention_mask.bool()
    padded_left = attended.any(1) & (attended[:, 1:] | ~attended[:, :-1]).all(1)
    if not padded_left.all():
        rows = (~padded_left).nonzero().squeeze(1).tolist()
        raise ValueError(f"Each prompt must hold a token and be padded on the left only; rows {rows} are not.")


def position_limit(model: nn.Module) -> int | None:
    """Return the number of positions that a model has; ``None`` if it has no end."""
    limit: int | None = getattr(getattr(_unwrap(model), "config", None), "max_position_embeddings", None)
    return limit if limit is not None and limit > 0 else None


def _room(model: nn.Module, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
    """Return the most new tokens of each row; the last one is not read again, so it needs no position."""
    lengths = attention_mask.sum(1)
    limit = position_limit(model)
    if limit is None:
        return torch.full_like(lengths, max_new_tokens)
    longest, row = lengths.max(0)
    if int(longest) > limit:
        raise ValueError(
            f"The model has {limit} positions, and the prompt of row {int(row)} has {int(longest)} tokens; shorten it."
        )
    return (limit - lengths + 1).clamp(max=max_new_tokens)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of ``torch.compile`` and peft, whose ``forward`` names its arguments."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return cast("nn.Module", inner)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and give each of its parts its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
