"""HTML pages that hold everything: templates whose values are escaped, and pictures as text."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any


def render_page(
    package: str, template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Return a page: a package's template with values, all of which are escaped.

    A value that is missing is an error and not an empty text.

    Args:
        package: Package that holds the template.
        template: File in it, such as ``"data/report.html.j2"``.
        values: Values by name.
        filters: Further filters of the template, by name.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    return environment.from_string(read_part(package, template)).render(values)


def read_part(package: str, name: str) -> str:
    """Return the text of a file in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def data_url(data: bytes, media_type: str) -> str:
    """Return bytes as a ``data:`` URL.

    Example:
        >>> data_url(b"abc", "image/png")
        'data:image/png;base64,YWJj'
    """
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def script_source(script: str) -> str:
    """Return what a Content Security Policy allows a script by: the hash of its text, so that no other one runs.

    Example:
        >>> script_source("")
        "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
