"""WMDP."""

from .wmdp import WMDP as WMDP
