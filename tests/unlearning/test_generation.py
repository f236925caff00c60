"""Batched greedy generation gives the ids of one row at a time."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BartConfig,
    BartForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from lit_modules.unlearning.core.generation import _reads_padded, greedy_generate

VOCAB, PAD, MAX = 97, 0, 24
ENDS = [5, 11, 17, 23, 29]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
        "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SIZES)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
            )
        ),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
        "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)),
    }
    small = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    bart = {**small, "vocab_size": VOCAB, "max_position_embeddings": 64, "is_decoder": True, "eos_token_id": None}
    gemma = {**SIZES, "hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32}
    rwkv = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    mamba = {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "eos_token_id": None}
    models |= {
        "bart": lambda: BartForCausalLM(BartConfig(**bart, add_cross_attention=False)),
        "roberta": lambda: RobertaForCausalLM(RobertaConfig(**{**SIZES, "pad_token_id": 1}, is_decoder=True)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=64,
                word_embed_proj_dim=32,
                max_position_embeddings=64,
                eos_token_id=None,
            )
        ),
        "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**gemma, attention_window_size=16)),
        "rwkv": lambda: RwkvForCausalLM(RwkvConfig(**rwkv, intermediate_size=64, eos_token_id=None)),
        "mamba2": lambda: Mamba2ForCausalLM(
            Mamba2Config(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, **mamba)
        ),
    }
    model: PreTrainedModel = models[name]()
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


def one_by_one(model: PreTrainedModel, rows: list[Tensor], ends: list[int]) -> list[list[int]]:
    model.eval()
    answers = []
    for row in rows:
        whole: Any = model.generate(  # type: ignore[operator]
            row[None],
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            max_new_tokens=MAX,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=PAD,
        )
        answer = whole[0, len(row) :].tolist()
        answers.append(answer[:-1] if answer[-1] in ends else answer)
    return answers


@pytest.mark.parametrize("name", ["llama", "olmo", "gpt2", "gpt_neox", "phi", "mistral"])
def test_ids_equal_one_row_at_a_time(name: str) -> None:
    model, rows = build(name), prompts([3, 17, 1, 9, 9, 30, 2, 24])
    free = greedy_generate(model, *pad(rows), MAX, VOCAB + 1, PAD)
    ends = sorted({int(answer[3 * row]) for row, answer in enumerate(free[:5])})  # so that rows end at different steps
    expected = one_by_one(model, rows, ends)
    assert len({len(answer) for answer in expected}) > 2
    answers = greedy_generate(model, *pad(rows), MAX, ends, PAD)
    assert [answer.tolist() for answer in answers] == expected


@pytest.mark.parametrize(
    ("name", "padded"),
    [
        ("bart", False),  # positions that count the padding
        ("roberta", False),  # positions that begin elsewhere
        ("rwkv", False),  # a state and no cache
        ("recurrent_gemma", True),  # a state within the network
        ("mamba2", True),
        ("opt", True),
        ("gpt2", True),
    ],
)
def test_an_unusual_model_answers_as_one_row_at_a_time(name: str, padded: bool) -> None:
    """The reference reads each row anew for each token."""
    model, rows = build(name).eval(), prompts([3, 9, 1, 6, 6])

    def reread(row: Tensor, ends: list[int]) -> list[int]:
        found = row
        with torch.no_grad():
            while len(found) < len(row) + 8:
                best = model(input_ids=found[None], attention_mask=torch.ones_like(found[None])).logits[0, -1].argmax()
                if int(best) in ends:
                    break
                found = torch.cat([found, best[None]])
        return found[len(row) :].tolist()

    ends = [reread(rows[0], [])[2], reread(rows[1], [])[5]]  # so that rows end at different steps
    expected = [reread(row, ends) for row in rows]
    assert len({len(answer) for answer in expected}) > 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = greedy_generate(model, *pad(rows), 8, ends, PAD)
        greedy_generate(model, *pad(rows), 1, ends, PAD)
    assert [answer.tolist() for answer in answers] == expected
    said = [str(warning.message) for warning in caught if "answered one by one" in str(warning.message)]
    assert len(said) == (not padded)
    assert _reads_padded(model, model, PAD) == padded


def test_padding_and_its_filler_change_nothing() -> None:
    model, rows = build("gpt2"), prompts([3, 8, 5])
    ids, mask = pad(rows, filler=50)
    wider = torch.nn.functional.pad(ids, (7, 0), value=3), torch.nn.functional.pad(mask, (7, 0))
    for first, second in zip(
        greedy_generate(model, ids, mask, MAX, ENDS, PAD), greedy_generate(model, *wider, MAX, ENDS, PAD), strict=True
    ):
        assert first.tolist() == second.tolist()
    assert ids[0, 0] == 50


def test_one_end_as_an_integer_and_none_reached() -> None:
    model, rows = build("llama"), prompts([4, 6])
    free = greedy_generate(model, *pad(rows), 6, VOCAB + 1, PAD)
    assert [len(answer) for answer in free] == [6, 6]
    first = int(free[0][0])
    cut = greedy_generate(model, *pad(rows), 6, first, PAD)
    assert len(cut[0]) == 0
    assert cut[0].dtype == torch.int64
    assert first not in cut[1].tolist()


def test_ends_of_the_generation_config_count_too() -> None:
    model, rows = build("llama"), prompts([4, 6])
    free = greedy_generate(model, *pad(rows), MAX, None, PAD)
    assert [len(answer) for answer in free] == [MAX, MAX]
    ends = [int(free[0][5]), int(free[1][1])]
    expected = [answer.tolist() for answer in greedy_generate(model, *pad(rows), MAX, ends, PAD)]
    assert [len(answer) for answer in expected] == [5, 1]
    for configured, given in ((ends, None), (ends[0], ends[1]), (ends[1:], ends[0])):
        model.generation_config.eos_token_id = configured  # type: ignore[union-attr]
        assert [answer.tolist() for answer in greedy_generate(model, *pad(rows), MAX, given, PAD)] == expected


def test_adapters_and_compiled_models_answer() -> None:
    rows = prompts([4, 11, 7])
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    expected = [answer.tolist() for answer in greedy_generate(model.merge_and_unload(), *pad(rows), 6, ENDS, PAD)]
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    compiled: Any = torch.compile(model, backend="eager")
    for network in (model, compiled):
        answers = greedy_generate(network, *pad(rows), 6, ENDS, PAD)
        assert [answer.tolist() for answer in answers] == expected


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
    model, rows = build("llama"), prompts([4, 11, 7])
    expected = [answer.tolist() for answer in greedy_generate(model, *pad(rows), MAX, ENDS, PAD)]
    settings: Any = model.generation_config
    settings.update(repetition_penalty=3.0, do_sample=True, num_beams=2, min_new_tokens=9, suppress_tokens=[7])
    before, state = settings.to_dict(), torch.get_rng_state()
    answers = greedy_generate(model, *pad(rows), MAX, ENDS, PAD)
    assert [answer.tolist() for answer in answers] == expected
    assert model.generation_config is settings
    assert settings.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_each_part_gets_its_mode_back() -> None:
    model = build("llama").train()
    model.model.embed_tokens.eval()
    before = {name: module.training for name, module in model.named_modules()}
    greedy_generate(model, *pad(prompts([3])), 2, ENDS, PAD)
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(IndexError):
        greedy_generate(model, torch.tensor([[VOCAB + 3]]), torch.ones(1, 1, dtype=torch.int64), 2, ENDS, PAD)
    assert {name: module.training for name, module in model.named_modules()} == before
    (model(input_ids=torch.ones(1, 4, dtype=torch.int64)).logits.sum()).backward()  # training goes on


def test_no_prompt_gives_no_answer() -> None:
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert greedy_generate(build("llama"), empty, empty, 4, ENDS, PAD) == []


def test_prompts_beyond_the_positions_are_refused() -> None:
    model, rows = build("gpt2"), prompts([3, 50])
    answers = greedy_generate(model, *pad(rows), 20, VOCAB + 1, PAD)
    assert [len(answer) for answer in answers] == [20, 15]  # the last token needs no position
    for row, answer in zip(rows, answers, strict=True):
        alone = greedy_generate(model, *pad([row]), 20, VOCAB + 1, PAD)[0]
        assert alone.tolist() == answer.tolist()
    with pytest.raises(ValueError, match="has 64 positions, and the prompt of row 1 has 65 tokens"):
        greedy_generate(model, *pad(prompts([3, 65])), 1, ENDS, PAD)


@pytest.mark.parametrize(
    ("mask", "rows"), [([[1, 1], [1, 0]], r"\[1\]"), ([[0, 0], [0, 1]], r"\[0\]"), ([[1, 0], [0, 0]], r"\[0, 1\]")]
)
def test_right_padding_and_empty_prompts_are_refused(mask: list[list[int]], rows: str) -> None:
    with pytest.raises(ValueError, match=f"padded on the left only; rows {rows} are not"):
        greedy_generate(build("llama"), torch.ones(2, 2, dtype=torch.int64), torch.tensor(mask), 4, ENDS, PAD)


def test_bad_arguments_are_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        greedy_generate(build("llama"), ids, ids, 0, ENDS, PAD)
    with pytest.raises(ValueError, match=r"same shape \(batch, tokens\), got \(2, 3\) and \(2, 2\)"):
        greedy_generate(build("llama"), ids, ids[:, 1:], 4, ENDS, PAD)
