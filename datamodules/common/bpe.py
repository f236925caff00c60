"""Training a tokenizer on the data itself."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
PAD = "<|pad|>"
SMALLEST = 258  # the 256 bytes and two special tokens


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes any text without loss.

    It has an end of sequence and padding, and adds neither by itself.

    Args:
        texts: Texts to learn from.
        vocab_size: Largest number of tokens, at least 258; few texts give fewer.

    Raises:
        ValueError: If ``vocab_size`` is too small.

    Example:
        >>> tokenizer = train_bpe(["a lighthouse", "a light"], 300)
        >>> tokenizer.decode(tokenizer("a light")["input_ids"])
        'a light'
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size must be at least {SMALLEST} (256 bytes, end and padding), got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
