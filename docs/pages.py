"""Pages of the site whose source lies elsewhere: README, pages of methods, command line, API reference, navigation.

A hook of mkdocs. Each page of the site is made from one file of the repository, so links between these files work in
both places: a relative link is looked up in the repository and turned into one between pages. A link to a file that is
no page, such as a module, becomes plain text.
"""

import contextlib
import importlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "Unlearning": "ngdiff gradient_difference gradient_ascent npo simnpo kl_minimisation dpo altpo idk rmu loss_norm "
    "wga sat_imp undial ceu pdu task_vector compare metrics",
    "Adversarial training": "pgd trades mart free fast",
    "Synthia": "synthia",
    "CoDA": "coda coda_augmentation",
}
"""Folders of ``configs/`` by family; those without a README have no page."""
REFERENCE = {
    "Unlearning": "lit_modules.unlearning",
    "Adversarial training": "lit_modules.adversarial",
    "Attacks": "lit_modules.attacks",
    "Defences": "lit_modules.defenses",
    "Synthia": "lit_modules.synthia",
    "CoDA": "lit_modules.coda",
    "Metrics": "lit_modules.metrics",
    "Networks": "lit_modules.networks",
    "Data": "datamodules",
    "Variants of images": "datamodules.variants",
    "Drawn worlds": "datamodules.drawn",
    "Callbacks": "callbacks",
}
"""Packages of the API reference: a page for each, with its public names."""
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "extend.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def sources() -> dict[str, str]:
    """Return the page or file of the site, by the path in the repository, for all that do not lie in ``docs/``."""
    pages = dict(TOP)
    for folder in sorted((ROOT / "configs").iterdir()):
        for path in sorted(folder.glob("*.md")) + sorted(folder.glob("*.png")):
            name = f"methods/{folder.name}.md" if path.name == "README.md" else f"methods/{folder.name}-{path.name}"
            pages[path.relative_to(ROOT).as_posix()] = name
    for path in (ROOT / "lit_modules" / "demos" / "weights").glob("README.md"):
        pages[path.relative_to(ROOT).as_posix()] = "weights.md"
    return pages


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command and its help, as its parser prints it."""
    from lit_modules.cli import STAGES, main
    from lit_modules.cli.commands import COMMANDS

    os.environ["COLUMNS"] = "110"
    for command in (*STAGES, *COMMANDS):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([command, "--help"])
        yield command, text.getvalue()


def public_names(package: str) -> Iterator[str]:
    """Yield the import paths of the public names of a package where they are defined, functions and classes alone."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) or sorted(set(dir(module)))
    for name in names:
        value = getattr(module, name)
        home = getattr(value, "__module__", None)  # plain values have none
        if home is not None and hasattr(value, "__qualname__") and home.partition(".")[0] == package.partition(".")[0]:
            yield f"{home}.{value.__qualname__}"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in ``docs/``."""
    from mkdocs.structure.files import File

    for source, page in sources().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    shown: set[str] = set()
    for title, package in REFERENCE.items():
        paths = [path for path in public_names(package) if path not in shown]
        shown |= {*paths}
        blocks = "\n\n".join(f"::: {path}" for path in paths)
        content = f"# {title}\n\nPublic names of `{_shown(package)}`.\n\n{blocks}\n"
        files.append(File.generated(config, f"reference/{package}.md", content=content))
    helps = list(commands())
    for command, text in helps:
        content = f"# lit-modules {command}\n\n```text\n{text.rstrip()}\n```\n"
        files.append(File.generated(config, f"commands/{command}.md", content=content))
    return files


def on_config(config: Any) -> Any:
    """Complete the navigation by the pages that are made."""
    from lit_modules.cli import STAGES
    from lit_modules.cli.commands import COMMANDS

    pages = sources()
    methods = [
        {family: [page for name in names.split() if (page := pages.get(f"configs/{name}/README.md"))]}
        for family, names in METHODS.items()
    ]
    known = [name for names in METHODS.values() for name in names.split()]
    missing = [path for path in pages if path.endswith("/README.md") and path.split("/")[1] not in [*known, "demos"]]
    if missing:
        raise ValueError(f"METHODS in docs/pages.py names no family for {', '.join(missing)}.")
    config.nav += [
        {"Methods": methods},
        {"Attack your own model": "attack-your-own-model.md"},
        {"Claims": "claims.md"},
        {"Supported models": "supported.md"},
        {"Command line": [f"commands/{command}.md" for command in (*STAGES, *COMMANDS)]},
        {"API": [{title: f"reference/{package}.md"} for title, package in REFERENCE.items()]},
        {"Project": ["extend.md", "design.md", "changelog.md", "weights.md"]},
    ]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn relative links between files of the repository into links between pages."""
    here = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    if here is None or not here.is_relative_to(ROOT):
        return markdown
    pages = sources()
    folder = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        source = os.path.normpath(here.parent / path)
        found = Path(source).relative_to(ROOT).as_posix()
        found = f"{found}/README.md" if f"{found}/README.md" in pages else found
        if found in pages:
            return f"{image}[{text}]({posixpath.relpath(pages[found], folder or '.')}{mark}{anchor})"
        if found.startswith("docs/") and Path(source).is_file():
            return f"{image}[{text}]({posixpath.relpath(found.removeprefix('docs/'), folder or '.')}{mark}{anchor})"
        return str(text)

    return LINK.sub(turned, markdown)


def _shown(package: str) -> str:
    """Return the name that users import a package by."""
    return package if package.startswith("lit_modules") else f"lit_modules.{package}"
