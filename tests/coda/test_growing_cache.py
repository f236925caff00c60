"""The cache with room for the tokens to come."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from lit_modules.coda.core.growing_cache import make_room


def states(rows: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))
    return keys, values


def caches() -> tuple[DynamicCache, DynamicCache]:
    found = DynamicCache(), DynamicCache()
    for cache in found:
        for layer in range(2):
            cache.update(*states(3, 5, layer), layer)
    return found


def test_it_holds_what_the_cache_of_transformers_holds() -> None:
    plain, roomy = caches()
    chosen = torch.tensor([2, 0, 0, 1])
    plain.batch_select_indices(chosen)
    assert make_room(roomy, chosen, room=4)
    for step, (tokens, kept) in enumerate([(2, [0, 1, 2, 3]), (1, [3, 1]), (1, [1])]):
        for layer in range(2):
            new = states(len(plain.layers[0].keys), tokens, 10 * step + layer)  # type: ignore[arg-type]
            for one, other in zip(plain.update(*new, layer), roomy.update(*new, layer), strict=True):
                assert torch.equal(one, other)
        for cache in (plain, roomy):
            cache.batch_select_indices(torch.tensor(kept))
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)
    with pytest.raises(IndexError, match="room for 9 tokens, got 10"):
        roomy.update(*states(1, 1, 0), 0)


def test_a_step_writes_where_there_is_room() -> None:
    _, roomy = caches()
    make_room(roomy, torch.arange(3), room=2)
    places = set()
    for step in range(2):
        keys, _ = roomy.update(*states(3, 1, step), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1


def test_other_layers_are_left_as_they_are() -> None:
    cache = caches()[0]
    cache.layers[1] = DynamicSlidingWindowLayer(4)
    before = list(cache.layers)
    assert not make_room(cache, torch.arange(3), room=2)
    assert cache.layers == before
    assert not make_room(object(), torch.arange(3), room=2)
