from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from lit_modules.synthia import AffordanceDistance, Ontology, TextEncoder

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "coffee", "maker", "kettle"]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_bert_gives_the_mean_over_the_tokens_of_the_phrase(bert: Path) -> None:
    model: Any = BertModel.from_pretrained(bert)
    encoder = TextEncoder(str(bert), batch_size=2)
    vectors = encoder(["coffee maker", "kettle", "maker"])  # padded, and in two batches
    assert vectors.dtype == np.float64
    for vector, tokens in zip(vectors, ([1, 4, 5, 2], [1, 6, 2], [1, 5, 2]), strict=True):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden[1:-1].mean(0), atol=1e-6)
    assert np.isfinite(encoder([""])).all()
    household = Ontology.from_file("household")
    named, given = (AffordanceDistance(encoder=each)(household).matrix for each in (str(bert), encoder))
    np.testing.assert_array_equal(named, given)
    with pytest.raises(ValueError, match=r"The text model '.*' cannot be loaded: .* Give the name or folder of a mod"):
        TextEncoder(str(bert.parent / "none"))(["kettle"])


def test_clip_gives_its_text_features(tmp_path: Path) -> None:
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = CLIPTextConfig(
        vocab_size=len(WORDS), projection_dim=4, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
    )
    model: Any = CLIPTextModelWithProjection(config)
    model.eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    vectors = TextEncoder(str(tmp_path))(["coffee maker", "kettle"])
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[1, 4, 5, 2]])).text_embeds[0]
    np.testing.assert_allclose(vectors[0], wanted, atol=1e-6)
