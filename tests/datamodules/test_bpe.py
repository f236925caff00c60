import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.common.bpe import END, PAD, train_bpe


def test_special_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (END, PAD, None)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer) == 300
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("In the city.")["input_ids"] == tokenizer("In the city.")["input_ids"]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
def test_any_text_is_encoded_without_loss(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_vocabulary_must_hold_the_bytes() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 258 .*, got 257"):
        train_bpe(["a"], 257)
    assert len(train_bpe([""], 258)) == 258


@pytest.mark.slow
def test_training_gives_the_same_bytes_in_any_process(tmp_path: Path, lume_folder: Path, repository: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from datamodules.common.bpe import train_bpe\n"
        "train_bpe(Path(sys.argv[1]).read_text('utf-8').split('\\n'), 400).save_pretrained(sys.argv[2])"
    )
    file = str(lume_folder / "forget.jsonl")
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", script, file, str(tmp_path / name)], cwd=repository, check=True)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
