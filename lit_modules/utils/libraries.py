"""Libraries that may be missing: one sentence that names what to install."""

from importlib.util import find_spec

_DISTRIBUTIONS = {
    "PIL": "pillow",
    "lm_eval": "lm-eval",
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Names under which pip knows libraries, where these are others."""


class MissingLibrary(ImportError):
    """A library that something needs is not installed; ``name`` is its module.

    Args:
        user: Class or function that needs it.
        library: Name of its module.
    """

    def __init__(self, user: str, library: str) -> None:
        distribution = _DISTRIBUTIONS.get(library, library)
        super().__init__(f"{user} needs {library}, which is not installed: pip install {distribution}.", name=library)


def require(library: str, user: str) -> None:
    """Raise a :class:`MissingLibrary` unless a library is installed; nothing is imported.

    Example:
        >>> require("torch", "an attack")
        >>> require("no_such_library", "Synthia")
        Traceback (most recent call last):
        ...
        lit_modules.utils.libraries.MissingLibrary: Synthia needs no_such_library, which is not installed: pip install \
no_such_library.
    """
    if find_spec(library) is None:
        raise MissingLibrary(user, library)
