"""Shipped recipes, found from any folder, and ``lit-modules recipes``, which lists them."""

import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path


def recipes_folder() -> Path:
    """Return the folder of the recipes: the wheel's copy, else ``configs/`` of the repository."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, such as ``ngdiff/lume.yaml``, the fragments ``_.../...`` last.

    Example:
        >>> "ngdiff/lume.yaml" in list_recipes()
        True
    """
    folder = recipes_folder()
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*.yaml")]
    return sorted(names, key=lambda name: (name.startswith("_"), name))


def find_recipe(name: str | Path) -> Path:
    """Find a configuration file.

    Args:
        name: A file, relative to the working folder, or the name of a shipped recipe; these may begin with
            ``configs/``, as they do in the repository.

    Returns:
        The file of the working folder if there is one, else the shipped one.

    Raises:
        FileNotFoundError: If there is neither; names the closest recipes.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = list_recipes()
    wanted = path.as_posix().removeprefix("./").removeprefix("configs/")
    if wanted in names:
        return recipes_folder() / wanted
    close = [recipe for recipe in names if wanted in (recipe.partition("/")[0], recipe.partition("/")[2])]
    close = close or get_close_matches(wanted, names, 1, 0.8)
    if not close:
        stems = get_close_matches(path.stem, {Path(recipe).stem for recipe in names}, 1, 0.8)
        close = [recipe for recipe in names if Path(recipe).stem in stems]
    listing = "`lit-modules recipes` lists those that are shipped."
    meant = f"did you mean {' or '.join(close[:3])}?" if close else ""
    remedy = " ".join(filter(None, (meant, listing if len(close) > 3 or not close else "")))
    raise FileNotFoundError(f"There is no configuration file {str(name)!r}; {remedy}")


def main(args: list[str]) -> int:
    """Print the name of each shipped recipe and what it is."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="lit-modules recipes", description="List the shipped recipes, for -c.")
    parser.parse_args(args)
    names = list_recipes()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {_title((recipes_folder() / name).read_text(encoding='utf-8'))}")
    return 0


def _title(text: str) -> str:
    """Return the sentences that end in the first line of a file's comment, or else its first sentence."""
    lines = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
    comment = " ".join(lines)
    ends = [match.end() for match in re.finditer(r"\.(?=\s+[A-Z`]|$)", comment)]
    in_first = [end for end in ends if end <= len(lines[0])]
    return comment[: in_first[-1] if in_first else ends[0]]
