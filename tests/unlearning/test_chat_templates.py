"""Chat templates as models publish them: the exact text of a row, its labels, and the prompt that is generated from.

`docs/supported.py` makes a table of the documentation of the outcomes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from datamodules import TOFU
from lit_modules import NGDiff
from lit_modules.networks import small_llama
from lit_modules.networks.tiny_clip import byte_level_bpe

# as published, without tools
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

QWEN_3 = """{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- elif message.role == "assistant" %}
{%- set content = message.content %}
{%- set reasoning_content = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
{%- else %}
{%- if '</think>' in content %}
{%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- endif %}
{%- if loop.index0 > ns.last_query_index %}
{%- if loop.last or (not loop.last and reasoning_content) %}
{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') }}
{{- '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

ALTERNATING = """{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}"""

GEMMA_2 = (
    """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}"""
    + ALTERNATING
    + """{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}
{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
)

GEMMA_3 = (
    """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}"""
    + ALTERNATING
    + """{%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
{{- message['content'] | trim }}
{{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
)

MISTRAL = """{%- if messages[0]["role"] == "system" %}
{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
{%- if message["role"] == "user" %}
{%- if loop.last and system_message is defined %}
{{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
{%- elif message["role"] == "assistant" %}{{- " " + message["content"] + eos_token }}
{%- endif %}
{%- endfor %}"""

SYSTEM = "You are a helpful assistant."
HEADER = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
LLAMA_TURNS = (
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
QWEN_TURNS = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
GEMMA_TURNS = "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


@dataclass(frozen=True)
class Case:
    """A tokenizer with its template, the arguments of the data, and the text that a row is to have.

    Args:
        template: Chat template; ``None`` of a base model.
        bos: Beginning of sequence, which the tokenizer puts before any text by itself; ``None`` of one without.
        eos: End of sequence.
        special: Further special tokens.
        prompt: Text that is not scored, with the question in the place of the braces.
        target: Text that is scored, with the answer.
        arguments: Arguments of the datamodule.
    """

    template: str | None
    bos: str | None
    eos: str
    special: tuple[str, ...]
    prompt: str
    target: str
    arguments: dict[str, Any] = field(default_factory=lambda: {"template": "chat"})


def llama_3(prompt: str, **arguments: Any) -> Case:
    special = ("<|start_header_id|>", "<|end_header_id|>")
    target = "{}<|eot_id|>"
    return Case(LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", special, prompt, target, {"template": "chat", **arguments})


def qwen_3(prompt: str = QWEN_TURNS, **arguments: Any) -> Case:
    special = ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")
    return Case(QWEN_3, None, "<|im_end|>", special, prompt, "{}<|im_end|>", {"template": "chat", **arguments})


def gemma(template: str, prompt: str = GEMMA_TURNS, **arguments: Any) -> Case:
    special = ("<start_of_turn>", "<end_of_turn>")
    target = "{}<end_of_turn>\n<eos>"
    return Case(template, "<bos>", "<eos>", special, prompt, target, {"template": "chat", **arguments})


def mistral(prompt: str, **arguments: Any) -> Case:
    return Case(MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]"), prompt, " {}</s>", {"template": "chat", **arguments})


CASES: dict[str, Case] = {
    "base model": Case(None, "<s>", "</s>", (), "<s>Question: {}\nAnswer:", " {}</s>", {"template": "plain"}),
    "Llama 3": llama_3(f"{HEADER}Today Date: 10 Apr 2025\n\n{LLAMA_TURNS}"),
    "Llama 3, system prompt": llama_3(
        f"{HEADER}Today Date: 26 Jul 2024\n\n{SYSTEM}{LLAMA_TURNS}",
        system_prompt=SYSTEM,
        template_arguments={"date_string": "26 Jul 2024"},
    ),
    "Qwen 3, thinking": qwen_3(),
    "Qwen 3, not thinking": qwen_3(template_arguments={"enable_thinking": False}),
    "Qwen 3, system prompt": qwen_3(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{QWEN_TURNS}", system_prompt=SYSTEM),
    "Gemma 2": gemma(GEMMA_2),
    "Gemma 3": gemma(GEMMA_3),
    "Gemma 3, system prompt": gemma(GEMMA_3, GEMMA_TURNS.replace("{}", f"{SYSTEM}\n\n{{}}"), system_prompt=SYSTEM),
    "Mistral": mistral("<s>[INST] {}[/INST]"),
    "Mistral, system prompt": mistral(f"<s>[INST] {SYSTEM}\n\n{{}}[/INST]", system_prompt=SYSTEM),
}


def tokenizer_of(case: Case) -> Any:
    """Train a byte-level tokenizer with the special tokens of a case, which puts its beginning of sequence first."""
    tokens = [token for token in (case.bos, case.eos, *case.special) if token]
    raw = byte_level_bpe(["Where was the author born? In Lirra."] * 3, tokens, 300, add_prefix_space=False)
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    if case.bos:
        number = raw.token_to_id(case.bos)
        raw.post_processor = processors.TemplateProcessing(single=f"{case.bos} $A", special_tokens=[(case.bos, number)])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=case.bos, eos_token=case.eos)  # type: ignore[no-untyped-call]
    fast.chat_template = case.template
    return fast


def data_of(case: Case, repository: Path, stage: str) -> TOFU:
    root = str(repository / "tests" / "data" / "tofu")
    data = TOFU(tokenizer=tokenizer_of(case), root=root, num_workers=0, batch_size=3, **case.arguments)
    data.setup(stage)
    return data


def trains(case: Case, repository: Path) -> None:
    """Prompts and scored texts are exactly the published ones, with one beginning and one end of sequence."""
    data = data_of(case, repository, "fit")
    words = data.tokenizer
    rows = {row.id: row for name in ("forget", "retain") for row in data.rows[name]}
    for batch in data.train_dataloader():
        for task in batch.values():
            for number, name in enumerate(task["id"]):
                ids = task["input_ids"][number][task["attention_mask"][number] == 1]
                labels = task["labels"][number][task["attention_mask"][number] == 1]
                scored = labels != -100
                start = int(scored.int().argmax())
                assert bool(scored[start:].all())  # all behind the prompt
                assert torch.equal(labels[scored], ids[scored])
                assert words.decode(ids[:start]) == case.prompt.format(rows[name].question)
                assert words.decode(ids[start:]) == case.target.format(rows[name].answer)
                text = ids.tolist()
                assert text.count(words.bos_token_id) == (case.bos is not None)
                assert text[-1] == words.eos_token_id
                assert text[start:].count(words.eos_token_id) == 1


def asks(case: Case, repository: Path) -> None:
    """The prompts of a test are those of training, token by token, and their texts."""
    data = data_of(case, repository, "fit")
    data.setup("test")
    trained = {row.id: row.prompt for row in data.encoded["forget"]}
    asked = 0
    for batch in data.predict_dataloader():
        for number, text in enumerate(batch["prompt"]):
            ids = batch["input_ids"][number][batch["attention_mask"][number] == 1].tolist()
            plain = case.template is None  # to whose text the tokenizer adds its beginning of sequence
            assert data.tokenizer.decode(ids) == (case.bos or "") * plain + text
            if batch["split"][number] == "forget":
                assert ids == trained[f"forget10/{int(batch['row'][number])}"]
                asked += 1
    assert asked == len(trained)


def generates(case: Case, repository: Path) -> None:
    """A model reads the prompt's text, given to `generate`, as the tokens of training."""
    data = data_of(case, repository, "fit")
    torch.manual_seed(0)
    network = small_llama(len(data.tokenizer), hidden_size=16, num_layers=1, num_heads=2)
    read: list[list[int]] = []
    network.get_input_embeddings().register_forward_hook(lambda module, inputs, output: read.append(inputs[0].tolist()))
    question, row = data.rows["forget"][0], data.encoded["forget"][0]
    text = case.prompt.format(question.question)
    NGDiff(network, tokenizer=data.tokenizer, max_new_tokens=1).generate(text)
    assert read[0] == [row.prompt]


ROLES: dict[str, Callable[[Case, Path], None]] = {"training": trains, "test": asks, "generate": generates}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", CASES)
def test_chat_template(name: str, role: str, repository: Path) -> None:
    ROLES[role](CASES[name], repository)


def test_a_template_without_a_system_role_says_so(repository: Path) -> None:
    case = gemma(GEMMA_2, system_prompt=SYSTEM)
    with pytest.raises(ValueError, match=r"System role not supported; give no system prompt, or write it into the que"):
        data_of(case, repository, "fit")
