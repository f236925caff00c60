import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lit_modules.coda import CoDA
from lit_modules.coda.core.model_parts import adapted_layers, find_parts
from lit_modules.metrics.few_shot import PairAccuracy
from tests.coda.families import FAMILIES, text
from tests.coda.test_updating import Data, rows, trainer


class LaterConfig(PreTrainedConfig):
    """Configuration of a family that transformers does not have."""

    model_type = "later"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, text_config: dict[str, Any] | None = None, image_token_id: int = 0, **rest: Any) -> None:
        self.text_config = LlamaConfig(**text_config or {})
        self.image_token_id = image_token_id
        super().__init__(**rest)


class Later(PreTrainedModel, GenerationMixin):
    """Model whose parts have names of their own."""

    config_class = LaterConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.eyes = nn.Sequential(nn.Conv2d(3, 16, 14, stride=14), nn.Flatten(2))
        self.bridge = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 32))
        self.mouth = LlamaModel(config.text_config)
        self.last = nn.Linear(32, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.mouth.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.last

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, logits_to_keep: int = 0, **rest: Any
    ) -> CausalLMOutputWithPast:
        embedded = self.mouth.embed_tokens(input_ids)
        seen = input_ids == self.config.image_token_id
        if pixel_values is not None and bool(seen.any()):
            features = self.bridge(self.eyes(pixel_values).mT).flatten(0, 1).to(embedded.dtype)
            embedded = embedded.masked_scatter(seen[..., None], features)
        output = self.mouth(inputs_embeds=embedded, **rest)
        logits = self.last(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


def later() -> tuple[Any, Any]:
    _, processor = FAMILIES["LLaVA-1.5"]()
    words = processor.tokenizer
    config = LaterConfig(text(words), image_token_id=words.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    return Later(config), processor


def test_a_family_of_later_is_taken_apart_without_a_table_of_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = later()
    module = CoDA(
        model,
        processor=processor,
        rank=2,
        dtype="float32",
        learning_rate=1e-2,
        projector_learning_rate=1e-2,
        max_new_tokens=4,
        metric=PairAccuracy(resamples=0),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path).fit(module, Data())
    assert module.parts.of("eyes.0.weight") == "vision tower"
    assert module.parts.projector == ("bridge",)
    assert "The language model is mouth, the vision tower eyes, the projector bridge" in caplog.text
    numbers = module.trainable_parts()
    assert numbers["projector"] == 16 * 24 + 24 + 24 * 32 + 32
    assert numbers["language model"] > 0 == numbers["vision tower"]
    after = module.model.get_base_model().state_dict()
    assert torch.equal(after["eyes.0.weight"], before["eyes.0.weight"])
    assert len(module.answer(rows()["image"], rows()["prompt"])) == 4


@pytest.mark.parametrize(
    ("family", "tower", "projector"),
    [
        ("LLaVA-1.5", "model.vision_tower", ["model.multi_modal_projector"]),
        ("Idefics3", "model.vision_model", ["model.connector"]),
        ("Qwen2.5-VL", "model.visual", ["model.visual.merger"]),
        (
            "Qwen3-VL",
            "model.visual",
            [f"model.visual.{n}" for n in ("merger", *(f"deepstack_merger_list.{i}" for i in (0, 1)))],
        ),
    ],
)
def test_the_parts_of_known_families(family: str, tower: str, projector: list[str]) -> None:
    model, _ = FAMILIES[family]()
    parts = find_parts(model)
    assert (parts.vision_tower, list(parts.projector)) == (tower, projector)
    layers = re.compile(adapted_layers(model, parts))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = {name for name in linear if layers.fullmatch(name)}
    assert {name for name in linear if parts.of(name) == "language model"} - adapted == {"lm_head"}


def test_a_router_of_experts_gets_no_adapter() -> None:
    model, _ = later()
    model.mouth.layers[0].gate = nn.Linear(32, 5)
    model.config.text_config.num_experts = 5
    assert "|gate|" not in adapted_layers(model, find_parts(model))


def test_a_model_of_text_has_no_vision_tower() -> None:
    with pytest.raises(ValueError, match="LlamaModel has no vision tower; give an image-text model"):
        find_parts(LlamaModel(LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=9)))
