"""The package ``callbacks`` under a name that a folder or file of the user's own cannot hide."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callbacks import *  # noqa: F403
else:
    from lit_modules.utils.aliases import load_beside

    load_beside(__name__)
