"""The recipes that travel with the package: found from any folder."""

from difflib import get_close_matches
from pathlib import Path


def recipes_folder() -> Path:
    """Return the folder of the recipes: the wheel's copy, else ``configs/`` of the repository."""
    package = Path(__file__).resolve().parent
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
        FileNotFoundError: If there is neither; names the closest recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = list_recipes()
    wanted = path.as_posix().removeprefix("./").removeprefix("configs/")
    if wanted in names:
        return recipes_folder() / wanted
    close = get_close_matches(wanted, names, n=1) or get_close_matches(path.stem, [Path(n).stem for n in names], n=1)
    meant = next((n for n in names if close and close[0] in (n, Path(n).stem)), None)
    remedy = f"did you mean {meant}?" if meant else "`lit-modules recipes` lists those that are shipped."
    raise FileNotFoundError(f"There is no configuration file {str(name)!r}; {remedy}")
