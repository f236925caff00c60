"""Batched greedy generation gives the ids of one row at a time."""

import warnings
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_modules.unlearning.core.generation import _reads_padded, greedy_generate

VOCAB, PAD, MAX = 97, 0, 24
ENDS = [5, 11, 17, 23, 29]
LAYERS: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": None}
SIZES = LAYERS | {"intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": None, "pad_token_id": PAD}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "is_decoder": True}
GEMMA = {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16}
OPT = {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": SIZES | {"num_key_value_heads": 2},
    "Olmo": SIZES,
    "GPT2": {"vocab_size": VOCAB, "eos_token_id": None} | GPT2,
    "GPTNeoX": SIZES,
    "Phi": SIZES,
    "Mistral": SIZES | {"num_key_value_heads": 2, "sliding_window": 8},
    "Bart": {"vocab_size": VOCAB, "max_position_embeddings": 64, "eos_token_id": None, "add_cross_attention": False}
    | BART,
    "Roberta": SIZES | {"pad_token_id": 1, "is_decoder": True},
    "OPT": LAYERS | OPT,
    "RecurrentGemma": SIZES | GEMMA,
    "Rwkv": LAYERS | {"attention_hidden_size": 32, "intermediate_size": 64},
    "Mamba2": LAYERS | {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1},
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODELS[name])
    heads = {"GPT2": "GPT2LMHeadModel"}
    model: PreTrainedModel = getattr(transformers, heads.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)  # answers that wander, so that rows end at different steps
    return model


def prompts(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def pad(rows: list[Tensor], filler: int = PAD) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, (row_ids, row_mask) in zip(rows, zip(ids, mask, strict=True), strict=True):
        row_ids[width - len(row) :] = row
        row_mask[width - len(row) :] = 1
    return ids, mask


def answers(model: Any, rows: list[Tensor], ends: Any = ENDS, most: int = MAX) -> list[list[int]]:
    return [answer.tolist() for answer in greedy_generate(model, *pad(rows), most, ends, PAD)]


@torch.no_grad()
def reread(model: PreTrainedModel, row: Tensor, ends: list[int], most: int = MAX) -> list[int]:
    """Answer a prompt alone, read anew for each token."""
    ids = row
    while len(ids) < len(row) + most:
        best = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0, -1].argmax()
        if int(best) in ends:
            break
        ids = torch.cat([ids, best[None]])
    return ids[len(row) :].tolist()


NOT_PADDED = {"Bart", "Roberta", "Rwkv"}
"""Positions that count the padding, positions that begin elsewhere, a state and no cache."""


@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_one_row_at_a_time(name: str) -> None:
    model, rows = build(name).eval(), prompts([3, 17, 1, 9, 9, 2, 24])
    ends = sorted({reread(model, row, [], 13)[step] for row, step in zip(rows[:5], (0, 3, 6, 9, 12), strict=True)})
    expected = [reread(model, row, ends) for row in rows]
    assert len({len(answer) for answer in expected}) > 1  # rows end at different steps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert answers(model, rows, ends) == expected
        answers(model, rows, ends, 1)
    padded = _reads_padded(model, model, PAD)
    assert sum("answered one by one" in str(warning.message) for warning in caught) == (not padded)
    # transformers 5.17 reads a padded row of Mamba2 otherwise than the row alone, 5.24 does not
    if name != "Mamba2" or Version(transformers.__version__) >= Version("5.24"):
        assert padded == (name not in NOT_PADDED)


def test_padding_and_its_filler_change_nothing() -> None:
    model, rows = build("GPT2"), prompts([3, 8, 5])
    ids, mask = pad(rows, filler=50)
    wider = torch.nn.functional.pad(ids, (7, 0), value=3), torch.nn.functional.pad(mask, (7, 0))
    for padded in ((ids, mask), wider):
        assert [a.tolist() for a in greedy_generate(model, *padded, MAX, ENDS, PAD)] == answers(model, rows)
    assert ids[0, 0] == 50


def test_ends_are_those_given_and_those_of_the_generation_config() -> None:
    model, rows = build("Llama"), prompts([4, 6])
    free = answers(model, rows, None)
    assert [len(answer) for answer in free] == [MAX, MAX]
    assert answers(model, rows, free[0][0])[0] == []
    ends = [free[0][5], free[1][1]]
    expected = answers(model, rows, ends)
    assert [len(answer) for answer in expected] == [5, 1]
    for configured, given in ((ends, None), (ends[0], ends[1]), (ends[1:], ends[0])):
        model.generation_config.eos_token_id = configured  # type: ignore[union-attr]
        assert answers(model, rows, given) == expected


def test_adapters_and_compiled_models_answer() -> None:
    def adapted() -> Any:
        return get_peft_model(build("Llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))

    rows = prompts([4, 11, 7])
    expected = answers(adapted().merge_and_unload(), rows)
    for network in (adapted(), torch.compile(adapted(), backend="eager")):
        assert answers(network, rows) == expected


class LastLogits(LlamaForCausalLM):
    """Remembers the shape of its logits and whether gradients were on."""

    def forward(self, *args: Any, logits_to_keep: int | Tensor = 0, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        self.seen = [*getattr(self, "seen", []), tuple(output.logits.shape)]
        assert not torch.is_grad_enabled()
        assert not self.training
        return output


def test_only_last_logits_are_computed() -> None:
    torch.manual_seed(0)
    model, rows = LastLogits(LlamaConfig(**SIZES)), prompts([3, 17, 1, 9])
    lengths = [len(answer) for answer in greedy_generate(model, *pad(rows), MAX, ENDS, PAD)]
    assert model.seen[-min(max(lengths) + 1, MAX) :] == [(4, 1, VOCAB)] * min(max(lengths) + 1, MAX)


def test_settings_of_the_model_are_set_aside_and_kept() -> None:
    model, rows = build("Llama"), prompts([4, 11, 7])
    expected = answers(model, rows)
    settings: Any = model.generation_config
    settings.update(repetition_penalty=3.0, do_sample=True, num_beams=2, min_new_tokens=9, suppress_tokens=[7])
    before, state = settings.to_dict(), torch.get_rng_state()
    assert answers(model, rows) == expected
    assert model.generation_config is settings
    assert settings.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_each_part_gets_its_mode_back() -> None:
    model = build("Llama").train()
    model.model.embed_tokens.eval()
    before = {name: module.training for name, module in model.named_modules()}
    answers(model, prompts([3]))
    with pytest.raises(IndexError):
        answers(model, [torch.tensor([VOCAB + 3])])
    assert {name: module.training for name, module in model.named_modules()} == before
    (model(input_ids=torch.ones(1, 4, dtype=torch.int64)).logits.sum()).backward()  # training goes on


def test_an_answer_ends_where_the_positions_end() -> None:
    model, rows = build("GPT2"), prompts([3, 50])
    found = answers(model, rows, VOCAB + 1, 20)
    assert [len(answer) for answer in found] == [20, 15]  # the last token needs no position
    assert [answers(model, [row], VOCAB + 1, 20)[0] for row in rows] == found
    with pytest.raises(ValueError, match="has 64 positions, and the prompt of row 1 has 65 tokens"):
        answers(model, prompts([3, 65]))


@pytest.mark.parametrize(
    ("ids", "mask", "most", "message"),
    [
        ((2, 2), [[1, 1], [1, 0]], 4, r"padded on the left only; rows \[1\] are not"),
        ((2, 2), [[1, 0], [0, 0]], 4, r"padded on the left only; rows \[0, 1\] are not"),
        ((2, 2), [[1, 1], [1, 1]], 0, "max_new_tokens must be at least 1, got 0"),
        ((2, 3), [[1, 1], [1, 1]], 4, r"same shape \(batch, tokens\), got \(2, 3\) and \(2, 2\)"),
    ],
)
def test_bad_input_is_refused(ids: tuple[int, int], mask: list[list[int]], most: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        greedy_generate(build("Llama"), torch.ones(ids, dtype=torch.int64), torch.tensor(mask), most, ENDS, PAD)
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert greedy_generate(build("Llama"), empty, empty, 4, ENDS, PAD) == []
