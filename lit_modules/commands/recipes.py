"""``lit-modules recipes``: list what ``-c`` takes."""

import argparse

from lit_modules.recipes import list_recipes, recipes_folder


def main(args: list[str]) -> int:
    """Print the name and the first comment of each shipped recipe.

    Args:
        args: Only ``--help`` is known.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="lit-modules recipes", description="List the shipped recipes, for -c.")
    parser.parse_args(args)
    names = list_recipes()
    width = max(map(len, names))
    for name in names:
        first = (recipes_folder() / name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<{width}}  {first.removeprefix('#').strip()}")
    return 0
