"""Images of existing concepts, from a folder or from memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lit_modules.utils.images import FORMATS, NOT_READ, read_picture_file
from lit_modules.utils.ontology_files import normalise
from lit_modules.utils.suggestions import did_you_mean

ConceptImages = Mapping[str, Tensor | Sequence[Tensor]]
"""Images by the name of their concept: floats in [0, 1] or uint8, ``(n, 3, height, width)`` or a list of them."""


def read_concept_images(images: str | ConceptImages, concepts: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return the images of existing concepts by name.

    Args:
        images: Folder in which the images of a concept lie in a folder of its name, at any depth, as
            ``furniture/sofa/1.png``; or the images by name. Spaces and underscores are the same.
        concepts: Names of the concepts that there are.

    Returns:
        The images of each concept that has some, in the order of ``concepts``, each ``(3, height, width)``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no image, one of a concept that is not among ``concepts``, or one that is not accepted,
            see :func:`lit_modules.utils.images.read_picture`.
    """
    known = {plain_name(name): name for name in concepts}
    by_concept: dict[str, list[Tensor]] = {name: [] for name in known.values()}
    by_folder = _read(Path(images)) if isinstance(images, str) else images
    for name, pictures in by_folder.items():
        if plain_name(name) not in known:
            raise ValueError(f"There is no concept {name!r} in the ontology{did_you_mean(name, list(known.values()))}")
        by_concept[known[plain_name(name)]] += list(pictures)
    by_concept = {name: pictures for name, pictures in by_concept.items() if pictures}
    if not by_concept:
        raise ValueError(f"There must be at least one image of an existing concept, got none in {images!r}.")
    return by_concept


def read_folder(folder: Path) -> list[Tensor]:
    """Return the images of a folder and of those in it, uint8, in the order of their paths.

    See :func:`lit_modules.utils.images.read_picture` for those that are accepted.
    """
    return [image for images in _read(folder).values() for image in images]


def image_files(folder: Path) -> dict[str, list[Path]]:
    """Return the images in a folder and below it by the name of the folder that they lie in, in the order of paths.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is an image of a kind that is not read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of images.")
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*FORMATS, *NOT_READ)):
        if path.suffix.lower() in NOT_READ:
            raise ValueError(f"{path} has a suffix that is not read; {', '.join(FORMATS)} are.")
        files.setdefault(path.parent.name, []).append(path)
    return files


def plain_name(name: str) -> str:
    """Return the name of a concept in lower case, with spaces for underscores."""
    return normalise(name.replace("_", " "))


def _read(folder: Path) -> dict[str, list[Tensor]]:
    from torchvision.transforms.functional import pil_to_tensor

    files = image_files(folder).items()
    return {name: [pil_to_tensor(read_picture_file(path)) for path in paths] for name, paths in files}
