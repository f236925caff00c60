"""TOFU."""

from .tofu import TOFU as TOFU
