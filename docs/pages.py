"""Pages of the site whose source lies elsewhere: README, pages of methods, command line, API reference, navigation.

A hook of mkdocs. Each page of the site is made from one file of the repository, so links between these files work in
both places: a relative link is looked up in the repository and turned into one between pages. A link to a file that is
no page, such as a module, becomes plain text.
"""

import contextlib
import importlib
import inspect
import io
import os
import posixpath
import re
import sys
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
NAMES = re.compile(r"^<!-- names: (\S+) -->$", re.MULTILINE)
STDERR = re.compile(
    r'<div[^>]*data-mime-type="application/vnd\.jupyter\.stderr"[^>]*>\s*<pre>.*?</pre>\s*</div>', re.DOTALL
)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`<]*?)`")


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

    os.environ["COLUMNS"] = "100"
    for command in (*STAGES, *COMMANDS):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([command, "--help"])
        yield command, text.getvalue().replace(" \b", "")  # jsonargparse writes a backspace before what is optional


def public_names(package: str) -> Iterator[str]:
    """Yield the import paths of the public names of a package where they are defined, functions and classes alone."""
    module = importlib.import_module(package)
    for name in sorted(getattr(module, "__all__", None) or dir(module), key=str.lower):
        value = getattr(module, name)
        # datamodules and callbacks may have been imported by their names within lit_modules
        home = re.sub(r"^lit_modules\.(?=(?:datamodules|callbacks)\b)", "", getattr(value, "__module__", None) or "")
        if hasattr(value, "__qualname__") and home.partition(".")[0] == package.partition(".")[0]:
            yield f"{home}.{value.__qualname__}"


def without_roles(text: str) -> str:
    """Return a docstring with names in code instead of roles of Sphinx."""
    return ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)


def shared_arguments(path: str) -> str:
    """Return a table of the arguments that a class takes for its bases; empty if it takes none."""
    from jsonargparse._parameter_resolvers import get_signature_parameters  # the ones that the command line shows

    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(kind) or not inspect.isfunction(kind.__init__):
        return ""
    own = inspect.signature(kind.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        return ""
    rows = []
    for parameter in get_signature_parameters(kind, None):
        if parameter.name not in own:
            text = " ".join(without_roles(parameter.doc or "").replace("``", "`").split())
            default = parameter.default
            shown = (
                "required" if default is inspect.Parameter.empty else f"`{getattr(default, '__name__', repr(default))}`"
            )
            rows.append(f"| `{parameter.name}` | {text} | {shown} |")
    head = ["**Inherited arguments:**", "", "| Name | Description | Default |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) if rows else ""


def names_table(package: str, page: str = "index.md") -> str:
    """Return a table of the public names of a package: each a link to its reference, and its first line."""
    home: dict[str, str] = {}
    for owner in REFERENCE.values():
        for path in public_names(owner):
            home.setdefault(path, owner)
    rows = ["| name | what it is |", "| --- | --- |"]
    for path in public_names(package):
        module, _, name = path.rpartition(".")
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        first = without_roles(text.split("\n\n")[0])
        first = " ".join(first.replace("``", "`").split())
        target = posixpath.relpath(f"reference/{home[path]}.md", posixpath.dirname(page) or ".")
        rows.append(f"| [`{name}`]({target}#{path}) | {first} |")
    return "\n".join(rows)


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

    sys.path.append(str(ROOT / "docs"))  # docstrings.py takes a function from here
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
        {"Methods": ["methods.md", *methods]},
        {"Parts": ["data.md", "attacks.md", "attack-your-own-model.md", "metrics.md", "callbacks.md"]},
        {"Claims": "claims.md"},
        {"Supported models": "supported.md"},
        {"Command line": [f"commands/{command}.md" for command in (*STAGES, *COMMANDS)]},
        {"API": [{title: f"reference/{package}.md"} for title, package in REFERENCE.items()]},
        {"Project": ["extend.md", "design.md", "changelog.md", "weights.md"]},
    ]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the tables of names, and turn relative links between files of the repository into links between pages."""
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

    markdown = LINK.sub(turned, markdown)
    return NAMES.sub(lambda mark: names_table(mark[1], page.file.src_uri), markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Leave out of a notebook what its libraries wrote to the standard error; an exception stops the build."""
    return STDERR.sub("", output)


def _shown(package: str) -> str:
    """Return the name that users import a package by."""
    return package if package.startswith("lit_modules") else f"lit_modules.{package}"
