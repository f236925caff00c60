"""Small networks: those that papers name, and the models of the offline recipes."""

from lit_modules.networks.small_llama import small_llama

__all__ = ["small_llama"]
