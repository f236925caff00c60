"""The package ``datamodules`` under a name that a folder or file of the user's own cannot hide."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules import *  # noqa: F403
    from datamodules import common as common
    from datamodules import drawn as drawn
    from datamodules import few_shot as few_shot
    from datamodules import lume as lume
    from datamodules import variants as variants
else:
    from lit_modules.utils.aliases import load_beside

    load_beside(__name__)
