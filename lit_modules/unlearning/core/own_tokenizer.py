"""Whether a tokenizer is the one that a model was trained with."""

from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Check that a tokenizer numbers its tokens as the one beside a model's weights does.

    Tokens that only one of them has may be: special tokens get added and renamed. Nothing is checked if no tokenizer
    lies beside the weights.

    Args:
        tokenizer: Tokenizer.
        model: Name or folder of the model.

    Raises:
        ValueError: If a token has two numbers; the message names one.
    """
    own = _vocabulary(model)
    given = tokenizer.get_vocab()
    other = [token for token, number in given.items() if own.get(token, number) != number]
    if other:
        token = min(other, key=given.__getitem__)
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} numbers {len(other)} tokens otherwise than the one of the model "
            f"{model!r}: {token!r} is {given[token]}, and {own[token]} there. Give the tokenizer that belongs to the "
            "model, by its name or folder."
        )


@lru_cache(maxsize=4)
def _vocabulary(model: str) -> dict[str, int]:
    """Return the numbers of the tokens of the tokenizer beside a model's weights; none if there is no tokenizer."""
    try:
        own: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError):
        return {}
    found: dict[str, int] = own.get_vocab()
    return found
