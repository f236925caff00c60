"""Put the recipes of ``configs/`` into the wheel, as data of ``lit_modules``; the rest stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copy ``configs/**/*.yaml`` to ``lit_modules/configs``; an editable install reads the repository's."""

    def run(self) -> None:
        """Build as usual, then add the recipes."""
        super().run()
        if self.editable_mode:
            return
        for source in Path("configs").glob("**/*.yaml"):
            target = Path(self.build_lib, "lit_modules", source)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(source), str(target), preserve_mode=False)


setup(cmdclass={"build_py": BuildWithRecipes})
