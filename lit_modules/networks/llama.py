"""The language model of the offline recipes."""

from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(
    vocab_size: int,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 4,
    max_tokens: int = 512,
    bos_token_id: int | None = None,
    eos_token_id: int | None = 0,
    pad_token_id: int | None = None,
) -> LlamaForCausalLM:
    """Build a Llama with random weights from its configuration.

    Input and output embeddings are shared, and the feed-forward layers are four times as wide as the model.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width; a multiple of twice ``num_heads``.
        num_layers: Number of blocks.
        num_heads: Attention heads.
        max_tokens: Longest sequence.
        bos_token_id: Token that begins a sequence.
        eos_token_id: Token that ends an answer.
        pad_token_id: Token of padding.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If a size is not positive, or ``hidden_size`` is no multiple of twice ``num_heads``.

    Example:
        >>> small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2).num_parameters()
        5168
    """
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
    for name, size in {**sizes, "max_tokens": max_tokens}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    if hidden_size % (2 * num_heads):
        raise ValueError(f"hidden_size must be a multiple of 2 * num_heads = {2 * num_heads}, got {hidden_size}.")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    return LlamaForCausalLM(config)
