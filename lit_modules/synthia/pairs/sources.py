"""Steps, amounts and sources of a preparation of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lit_modules.metrics.concept_images import image_files, plain_name
from lit_modules.synthia.pairs.images import ImageMaker
from lit_modules.utils.endpoints import Endpoint

Step = Literal["curriculum", "captions", "images", "negatives", "filter"]
STEPS: tuple[Step, ...] = get_args(Step)
BUILT_ON: dict[Step, tuple[Step, ...]] = {
    "curriculum": ("captions", "images", "negatives", "filter"),
    "captions": ("images", "filter"),
    "images": ("filter",),
    "negatives": ("filter",),
    "filter": (),
}
"""Steps that are made from what a step makes."""


@dataclass(frozen=True)
class Amounts:
    """Amounts to make.

    Args:
        num_pairs: Training pairs.
        test_pairs: Test pairs; each gets one caption and one image.
        captions: Captions, and so images, for each training pair.
        keep: Images that are kept of these, the best ones.
        negatives: Images of each existing concept.
        seed: Seed of the curriculum, the template captions and the images.

    Raises:
        ValueError: If a number is out of its range.
    """

    num_pairs: int = 600
    test_pairs: int = 60
    captions: int = 10
    keep: int = 3
    negatives: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("num_pairs", 3), ("test_pairs", 0), ("captions", 1), ("keep", 1), ("negatives", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.keep > self.captions:
            raise ValueError(f"keep must be at most the {self.captions} captions of a pair, got {self.keep}.")


@dataclass(frozen=True)
class Sources:
    """Where the parts of the pairs come from.

    Args:
        caption_endpoint: Language model that writes captions; ``None`` takes the templates.
        image_maker: Makes the images.
        image_facts: What the images depend on: model, size and so on; the manifest remembers them.
        negative_images: Folder of images of existing concepts, a subfolder each; ``None`` lets ``image_maker`` make
            them.
        clip_model: Name or folder of the CLIP model that chooses images; ``None`` takes the first ones.
        device: Where CLIP computes, as torch names it.
    """

    caption_endpoint: Endpoint | None = None
    image_maker: ImageMaker | None = None
    image_facts: tuple[tuple[str, Any], ...] = ()
    negative_images: Path | None = None
    clip_model: str | None = None
    device: str = "cpu"


def concept_images(root: Path, concepts: Sequence[str], number: int) -> dict[str, list[Path]]:
    """Find the first images of each concept, in folders of their names; spaces and underscores are the same.

    Raises:
        FileNotFoundError: If there is no such folder, or concepts have no image; lists them.
        ValueError: If there is an image of a kind that is not read.
    """
    files = {plain_name(name): paths for name, paths in image_files(root).items()}
    images = {name: files.get(plain_name(name), [])[:number] for name in concepts}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise FileNotFoundError(
            f"{root} must hold a subfolder with images for each of {len(images)} concepts; {len(empty)} have none: "
            f"{', '.join(empty[:20])}{', ...' if len(empty) > 20 else ''}."
        )
    return images
