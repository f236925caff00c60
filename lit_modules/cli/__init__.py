"""The command line of the project: ``lit-modules`` and ``python -m lit_modules``."""

import os
import sys
import time
from typing import TYPE_CHECKING

import lit_modules
from lit_modules.cli.commands import COMMANDS, run_command
from lit_modules.cli.errors import is_for_user
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

    from lit_modules.cli.lightning_cli import ProjectCLI

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
UNREAD = 141
"""Exit code if the output is read no further, that of SIGPIPE."""
STAGES = {
    "fit": "Train.",
    "validate": "Score the validation data.",
    "test": "Compute the benchmark's numbers.",
    "predict": "Answer the prediction data, and write the answers.",
}
TRACEBACK = "LIT_MODULES_TRACEBACK"


def main(args: "ArgsType" = None) -> "ProjectCLI | int":
    """Run the command line."""
    if args is None:
        args = sys.argv[1:]
    if isinstance(args, list):
        first = args[0] if args else "--help"
        if first in ("-h", "--help", "help"):
            print(help_text())
            return 0
        if first == "--version":
            print(f"lit-modules {lit_modules.__version__}")
            return 0
        if first in COMMANDS:
            return run_command(first, args[1:])
        commands = [*STAGES, *COMMANDS]
        if first.startswith("-") and not set(STAGES) & set(args):
            raise UsageError(f"A command must come first: one of {', '.join(commands)}; got {first!r}.")
        if not first.startswith("-") and first not in STAGES:
            raise UsageError(f"There is no command {first!r}{did_you_mean(first, commands)}")
    import torch  # noqa: F401 - sets the log handlers that are silenced before further libraries are imported

    from lit_modules.cli.messages import silence_noise

    silence_noise()
    from lit_modules.cli.lightning_cli import ProjectCLI
    from lit_modules.cli.public import know_public

    know_public()

    return ProjectCLI.start(args)


def run() -> None:
    """Run the command line of this process; say what is wrong in one sentence, without a traceback.

    A command of Lightning ends with a summary (:mod:`lit_modules.cli.summary`). An error that is no such sentence
    (:func:`~lit_modules.cli.errors.is_for_user`) keeps its traceback. Classes are
    found in the working folder first, as ``python -m`` finds them, unless Python is told to leave it out
    (``PYTHONSAFEPATH``).
    """
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path[:1]):
        sys.path.insert(0, os.getcwd())  # a console script has its own folder there
    began = time.time()
    os.environ.setdefault("TQDM_DELAY", "2")  # a bar that lives shorter, such as that of a small model, is not drawn
    try:
        result = main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes at its end
        sys.exit(UNREAD)
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not is_for_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, UsageError):
            sys.exit(2)
        print(f"{TRACEBACK}=1 shows where this was raised.", file=sys.stderr)
        sys.exit(1)
    if isinstance(result, int):
        sys.exit(result)
    from lit_modules.cli.summary import print_summary

    command = str(result.subcommand)
    print_summary(result.trainer, command, sys.argv[sys.argv.index(command) + 1 :], began)
    sys.exit(0)


def help_text() -> str:
    """Return the text of ``lit-modules --help``."""
    lines = ["usage: lit-modules COMMAND [options]", "", (lit_modules.__doc__ or "").partition(":")[0] + ".", ""]
    lines += ["commands:"]
    lines += [f"  {name:<10}{line}" for name, line in (STAGES | COMMANDS).items()]
    lines += [
        "",
        "options:",
        "  --help    Show this text; `lit-modules fit --help` shows the options of a command.",
        "  --version Show the version.",
        "",
        "examples:",
        "  lit-modules demo ngdiff",
        "  lit-modules fit -c ngdiff/lume.yaml --model.model FOLDER --data.root FOLDER",
        "  lit-modules fit --model.help NGDiff",
    ]
    return "\n".join(lines)
