"""Docstrings as the site shows them: doctests as code, roles such as ``:class:`` as names, arguments of bases.

An extension of griffe, which reads the docstrings for mkdocstrings.
"""

import re
from typing import Any

import griffe
from pages import shared_arguments, without_roles


class PlainDocstrings(griffe.Extension):
    """Extension that rewrites every docstring once it is read."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Name the section of doctests as griffe does, turn roles into code, and add the arguments of bases."""
        if obj.is_alias or obj.docstring is None:
            return
        text = without_roles(re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE))
        obj.docstring.value = f"{text}\n\n{shared_arguments(obj.path)}" if obj.is_class else text
