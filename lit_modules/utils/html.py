"""HTML pages from templates of a package, with all values escaped, and images inside them."""

import base64
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any


def render_html(
    package: str, template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Render a template of a package, such as ``"data/report.html.j2"``; values are escaped and must be there."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def data_url(data: bytes, media_type: str) -> str:
    """Return bytes as a ``data:`` URL.

    Example:
        >>> data_url(b"abc", "image/png")
        'data:image/png;base64,YWJj'
    """
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
