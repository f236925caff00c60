"""Greedy generation in batches, with the same ids as one row at a time; samples of one prompt."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList

from lit_modules.unlearning.core.language_part import text_config
from lit_modules.utils.kv_cache import accepted_arguments, cache_argument
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.progress import Step, is_shown, step

__all__ = ["greedy_generate", "position_limit", "sample"]


def greedy_generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int | list[int] | None,
    pad_token_id: int,
) -> list[Tensor]:
    """Continue each prompt by its most probable tokens.

    This is transformers' batched ``generate`` with the model's own settings set aside; of them only the ends are read.
    A loop that lets ended rows leave the batch is 1.26 times as fast on LUME, too little for a loop of our own
    (``python benchmarks/generation.py``, Llama of 4.7 M parameters, one thread of 2 cores, no GPU, 2026-11-28). A batch
    costs as many steps as its longest answer, so put prompts of one kind and of similar length together.

    Pad positions are masked and do not count as positions, so a row gets the ids that it gets alone, up to ties of the
    logits within rounding. A model that takes no positions, keeps a state or is made as a decoder beside an encoder is
    tried once on two short rows. If it has no cache, or answers a padded row otherwise than the row alone, as RWKV and
    the decoder of BART do, its prompts are answered one by one and read anew for each token, which is slow; a warning
    says so.

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

    ends = _ends(inner, eos_token_id)
    mask = attention_mask.to(torch.int64)
    answers = [input_ids[0, :0]] * len(input_ids)
    with evaluation_mode(model), torch.no_grad():
        if not _reads_padded(model, inner, pad_token_id):
            rows = zip(input_ids, mask.bool(), room.tolist(), strict=True)
            return [_read_anew(model, inner, ids[attended], most, ends) for ids, attended, most in rows]
        tokens = input_ids.masked_fill(mask == 0, pad_token_id)
        for most in sorted(set(room.tolist())):  # a row must not run out of positions while another goes on
            places = (room == most).nonzero().squeeze(1)
            whole = _generate(
                model,
                inner,
                input_ids=tokens[places],
                attention_mask=mask[places],
                max_new_tokens=most,
                eos_token_id=ends or None,
                pad_token_id=pad_token_id,
            )
            new = whole[:, tokens.shape[1] :]
            ended = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device))
            lengths = torch.where(ended.any(1), ended.int().argmax(1), new.shape[1])
            for place, row, length in zip(places.tolist(), new, lengths.tolist(), strict=True):
                answers[place] = row[:length].clone()
    return answers


def sample(
    model: nn.Module,
    prompt: Tensor,
    number: int,
    max_new_tokens: int,
    eos_token_id: int | list[int] | None,
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Tensor]:
    """Draw several continuations of one prompt, in evaluation mode, from torch's generator.

    Args:
        model: Causal language model of transformers, bare, compiled, or wrapped by peft.
        prompt: Ids of the prompt, 1-D, at least one.
        number: Continuations to draw.
        max_new_tokens: Most tokens of each; it also ends where the model has no further position.
        eos_token_id: Token, or tokens, that end a continuation, beside those of ``model.generation_config``.
        pad_token_id: Token that fills up the shorter ones.
        temperature: Divisor of the logits.
        top_p: Smallest probability mass to draw from, in (0, 1].

    Returns:
        The new ids of each continuation, 1-D, without the token that ended it.

    Raises:
        ValueError: If the prompt is longer than the positions of the model, or this has no ``generate``.
    """
    inner = _unwrap(model)
    if not isinstance(inner, GenerationMixin):
        raise ValueError(f"Answers are drawn by transformers' generate, which {type(inner).__name__} lacks.")
    ids = prompt.unsqueeze(0)
    mask = torch.ones_like(ids)
    most = int(_room(inner, mask, max_new_tokens))
    ends = _ends(inner, eos_token_id)
    with evaluation_mode(model), torch.no_grad():
        whole = _generate(
            model,
            inner,
            do_sample=True,
            input_ids=ids,
            attention_mask=mask,
            num_return_sequences=number,
            max_new_tokens=most,
            eos_token_id=ends or None,
            pad_token_id=pad_token_id,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
        )
    answers = []
    for row in whole[:, len(prompt) :]:
        ended = torch.isin(row, torch.tensor(ends, dtype=row.dtype, device=row.device))
        answers.append(row[: int(ended.int().argmax())] if ended.any() else row)
    return answers


def _generate(model: Any, inner: Any, do_sample: bool = False, **options: Any) -> Any:
    """Call ``generate`` without the settings of the model, which it would take for all that the options leave open."""
    settings, inner.generation_config = inner.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    rows, most = len(options["input_ids"]), options["max_new_tokens"]
    try:
        with step(f"tokens of {rows} answers", most) as bar:
            if is_shown():
                options["stopping_criteria"] = StoppingCriteriaList([partial(_count_token, bar)])
            # `sharding.in_step` keeps ranks in step
            return model.generate(do_sample=do_sample, synced_gpus=False, **options)
    finally:
        inner.generation_config = settings


def _count_token(bar: Step, input_ids: Tensor, scores: Tensor, **unused: Any) -> Tensor:
    """Move a bar by a token; a criterion of ``generate`` that ends no row."""
    bar.advance()
    return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _reads_padded(model: nn.Module, inner: nn.Module, pad_token_id: int) -> bool:
    """Return whether a row in a padded batch gets what it gets alone; try a model once if its kind leaves a doubt."""
    accepted = accepted_arguments(inner)
    if inner in _TRIED:
        return _TRIED[inner]
    if not isinstance(inner, GenerationMixin) or cache_argument(inner) is None:
        padded = False
    elif (
        "position_ids" in inspect.signature(inner.forward).parameters  # where `generate` looks, too
        and "encoder_hidden_states" not in accepted
        and not getattr(inner, "_is_stateful", False)
    ):
        return True
    else:
        padded = _agrees(model, inner, pad_token_id)
    if not padded:
        rank_zero_warn(
            f"{type(inner).__name__} does not answer a padded batch from a cache as it answers each prompt alone, so "
            "its prompts are answered one by one, and read anew for each token; this is slow."
        )
    _TRIED[inner] = padded
    return padded


def _agrees(model: nn.Module, inner: Any, pad_token_id: int) -> bool:
    """Return whether a short row in a padded batch has the next two predictions that it has alone."""
    device = next(inner.parameters()).device
    long = torch.arange(1, 6, device=device) % inner.get_input_embeddings().weight.shape[0]
    short = torch.cat([long.new_full((2,), pad_token_id), long[2:]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], device=device)
    output = _generate(
        model,
        inner,
        input_ids=torch.stack([long, short]),
        attention_mask=mask,
        max_new_tokens=2,
        pad_token_id=pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = [_read(model, inner, row) for row in (long[2:], output.sequences[1, 2:-1])]
    loose = 1e-3 if expected[0].dtype in (torch.float32, torch.float64) else 5e-2
    return all(
        bool((one[1] - two).abs().max() <= loose * two.abs().max())
        for one, two in zip(output.logits, expected, strict=True)
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


def _read_anew(model: nn.Module, inner: nn.Module, row: Tensor, most: int, ends: list[int]) -> Tensor:
    """Answer a prompt alone, without a cache; see :func:`greedy_generate`."""
    start = len(row)
    while len(row) < start + most:
        best = _read(model, inner, row).argmax(-1, keepdim=True)
        if int(best) in ends:
            break
        row = torch.cat([row, best])
    return row[start:].clone()


def _ends(inner: nn.Module, eos_token_id: int | list[int] | None) -> list[int]:
    """Return the tokens that end an answer: those given, and the model's own."""
    configured = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    return sorted({*_as_list(eos_token_id), *_as_list(configured)})


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
    config = text_config(getattr(_unwrap(model), "config", None))
    limit: int | None = getattr(config, "max_position_embeddings", None)
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
