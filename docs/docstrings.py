"""Docstrings as the site shows them: doctests as code, and roles such as ``:class:`` as names.

An extension of griffe, which reads the docstrings for mkdocstrings.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`<]*?)`")


class PlainDocstrings(griffe.Extension):
    """Extension that rewrites every docstring once it is read."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Name the section of doctests as griffe does, and turn roles into code."""
        if obj.is_alias or obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        obj.docstring.value = ROLE.sub(_named, text)


def _named(role: re.Match[str]) -> str:
    short, path = role.groups()
    return f"`{path.rpartition('.')[2] if short else path}`"
