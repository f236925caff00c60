"""The package ``datamodules`` under a name that a folder or file of the user's own cannot hide."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules import *  # noqa: F403
    from datamodules import bpe as bpe
    from datamodules import drawn_sets as drawn_sets
    from datamodules import drawn_species_files as drawn_species_files
    from datamodules import drawn_species_renderer as drawn_species_renderer
    from datamodules import few_shot_layouts as few_shot_layouts
    from datamodules import few_shot_pairs as few_shot_pairs
    from datamodules import few_shot_sets as few_shot_sets
    from datamodules import variants as variants
else:
    from lit_modules.utils.aliases import load_beside

    load_beside(__name__)
