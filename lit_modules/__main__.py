"""``python -m lit_modules`` is the command ``lit-modules``."""

from lit_modules.cli import run

if __name__ == "__main__":
    run()
