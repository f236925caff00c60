"""LightningCLI as this project uses it: recipes by name, short errors, the configuration in every logger."""

import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.trainer.states import TrainerFn

from lit_modules.callbacks import LastCheckpoint, PredictionRecord
from lit_modules.cli.class_help import ClassHelpFormatter, group_options
from lit_modules.cli.errors import explain, unknown_key
from lit_modules.cli.messages import SETUP, silence_noise
from lit_modules.cli.recipes import find_recipe
from lit_modules.cli.run_checkpoints import find_checkpoint, loading, raised_as_interrupt
from lit_modules.cli.run_names import name_wandb_runs
from lit_modules.utils.arguments import argument_names, import_class
from lit_modules.utils.errors import UsageError
from lit_modules.utils.resuming import bring

MAX_SEED = 2**32 - 1
"""Largest seed that NumPy takes."""
CKPT_WORDS = ("last", "best")


class ProjectParser(LightningArgumentParser):
    """Parser that answers a mistake with one sentence, and takes no abbreviations."""

    stage: str | None = None
    """Command that was given to the parser of all commands."""
    words: Sequence[str] = ()
    """Arguments that were given to the parser of a command."""
    line: ClassVar[Sequence[str]] = ()
    """Arguments of the command line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong."""
        if not self.exit_on_error:
            super().error(message, ex)
        if isinstance(ex, UsageError):
            raise ex
        command = self.prog.replace(" [options]", "") + (f" {self.stage}" if self.stage else "")
        names = self.option_names() + self._nested_names(message)
        raise UsageError(explain(message, command, names)) from None

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        """Add the options of a class."""
        self._class, self._key = class_type, nested_key
        added: list[str] = super().add_class_arguments(class_type, nested_key, **kwargs)
        return added

    def print_help(self, *args: Any) -> None:
        """Print the help; in that of one class, as of ``--model.help CLASS``, its own options come first."""
        if getattr(self, "_inner_parser", False) and inspect.isclass(self._class) and self._key:
            self.formatter_class = ClassHelpFormatter
            group_options(self, self._class, self._key, self._typed_key(self._key))
        super().print_help(*args)

    def _typed_key(self, key: str) -> str:
        """Return the key as it was typed: that of a class inside another lacks the beginning here."""
        asked = [word.partition("=")[0] for word in self.line]
        typed = [word[2 : -len(".help")] for word in asked if word.startswith("--") and word.endswith(f".{key}.help")]
        return typed[0] if typed else key

    def option_names(self) -> list[str]:
        """Return the long options of this command; for the parser of all commands, those of the one given."""
        choices = next((action.choices for action in self._actions if isinstance(action.choices, dict)), {})
        parser = choices.get(self.stage or "fit", self)
        return [name for name in parser._option_string_actions if name.startswith("--")]

    def _nested_names(self, message: str) -> list[str]:
        """Return the options of the classes that were chosen, where a message says that there is no such option."""
        start = "unrecognized arguments: "
        if not message.startswith(start) or not self.words:
            return []
        unknown = message.removeprefix(start).split(" ")
        words = [word for word in self.words if word not in unknown and not word.startswith("--print_config")]
        self.words = ()  # what follows may fail likewise
        try:
            config = self.parse_args(words)
        except UsageError:
            return []
        keys = (key.replace(".init_args", "") for key in config.keys(branches=True) if not key.endswith("class_path"))
        return [f"--{key}" for key in keys]


class RecipeFile(ActionConfigFile):
    """Take a configuration file by its path or by the name of a shipped recipe, or the YAML or JSON text itself."""

    help = "Configuration file, name of a shipped recipe, or YAML or JSON text; a later one wins."

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Find the file, or take the text; check that it is a mapping of known keys, and read it."""
        known = [name.removeprefix("--") for name in parser.option_names()]
        text, name = str(values), "-c"
        if os.path.isfile(text) or not any(mark in text for mark in ("{", ": ", "\n")):
            try:
                path = find_recipe(text)
            except FileNotFoundError as error:
                raise UsageError(str(error)) from None
            values, name = str(path), str(path)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{path}: not valid YAML: {error}.") from None
        _check_text(text, name, known)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class SaveConfig(SaveConfigCallback):
    """Write the complete configuration beside the logs and the checkpoints, and hand it to every logger.

    Training writes ``config.yaml``; the other commands write ``config_test.yaml`` and so on, so that a test does not
    replace the configuration of the training whose folder it shares.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file into the log folder."""
        if stage != "fit":
            self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the configuration to every logger, under ``config``."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file beside the checkpoints, if their folder is not within that of the run."""
        log_dir = str(trainer.log_dir)  # which all processes have to ask for together
        if not trainer.is_global_zero:
            return
        for callback in trainer.checkpoint_callbacks:
            folder = getattr(callback, "dirpath", None)
            if folder is None or log_dir in (str(folder), os.path.dirname(folder)):
                continue
            if "://" not in str(folder):
                Path(folder).mkdir(parents=True, exist_ok=True)
            path = os.path.join(folder, self.config_filename)
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class SaySetupMessages(Callback):
    """Say what was held back while the run was set up."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it when data, weights and optimizers are ready."""
        SETUP.end()

    on_validation_start = on_test_start = on_predict_start = on_fit_start


class ProjectCLI(LightningCLI):
    """The commands fit, validate, test and predict, for any module, datamodule and callback."""

    @classmethod
    def start(cls, args: ArgsType) -> "ProjectCLI":
        """Parse the arguments and run the command that they name."""
        silence_noise()
        with SETUP:
            return cls(
                LightningModule,
                LightningDataModule,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                parser_class=ProjectParser,
                parser_kwargs={"prog": "lit-modules"},
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                args=args,
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build a parser whose ``-c`` knows the shipped recipes."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=RecipeFile, help=RecipeFile.help)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments."""
        if isinstance(args, list) and isinstance(parser, ProjectParser):
            ProjectParser.line = args
            parser.stage = next((word for word in args if word in self.subcommands()), None)
            if parser.stage is not None:
                commanded: Any = self._subcommand_parsers[parser.stage]  # a ProjectParser, declared as its base
                commanded.words = args[args.index(parser.stage) + 1 :]
        self.config = parser.parse_object(args) if isinstance(args, dict | Namespace) else parser.parse_args(args)
        seed = self.config[self.config["subcommand"]]["seed_everything"]
        if not isinstance(seed, bool) and not 0 <= seed <= MAX_SEED:
            raise UsageError(f"seed_everything must be from 0 to {MAX_SEED}, or false for none, got {seed}.")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint gives weights and state, and ``-c`` gives the arguments.

        Lightning would merge the checkpoint's arguments over those given here, and objects are not among them.
        """

    def instantiate_classes(self) -> None:
        """Build the classes; a mistake that a class of ours or of the user finds is raised as that class words it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise _as_raised(error) from None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the folder of the run whose checkpoint is meant."""
        parser.add_argument(
            "--run", type=str | None, help="Folder of the run that --ckpt_path last or best is of; else the newest."
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; it goes on exactly, keeps the last state and predictions, says what was held back."""
        try:
            trainer = super().instantiate_trainer(**self._with_last_checkpoint(kwargs))
        except MisconfigurationException as error:
            if "gpu backend" not in str(error):
                raise
            raise UsageError("PyTorch finds no GPU on this machine; add -c _trainer/cpu.yaml.") from None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.extend(bring(trainer))
        predicts = self.config["subcommand"] == "predict"
        if predicts and not any(isinstance(callback, PredictionRecord) for callback in callbacks):
            callbacks.append(PredictionRecord())
        # after the last that may fail, and before the summary of the model is printed
        saving = [number for number, callback in enumerate(callbacks) if isinstance(callback, SaveConfig)]
        callbacks.insert(saving[0] + 1 if saving else 0, SaySetupMessages())
        return trainer

    def _with_last_checkpoint(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Add what keeps the last state to the callbacks, unless the run has none or says which that is."""
        config = {**self._get(self.config_init, "trainer"), **arguments}
        if config["enable_checkpointing"] is False or config["barebones"]:
            return arguments
        configured = config["callbacks"] or []
        callbacks = list(configured) if isinstance(configured, list) else [configured]
        savers = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        if not any(isinstance(saver, LastCheckpoint) or saver.save_last is not None for saver in savers):
            callbacks.append(LastCheckpoint())
        return {**arguments, "callbacks": callbacks}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Give the command the checkpoint that is meant, and let it load tensors and plain values alone."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        name = arguments.get("ckpt_path")
        if name is not None:
            config = self.config[subcommand]
            arguments["ckpt_path"] = find_checkpoint(
                str(name), subcommand, self.trainer, config["model"]["class_path"], config["run"]
            )
            arguments["weights_only"] = True
        return arguments

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; Ctrl-C is raised as such, and a checkpoint that does not fit is named."""
        with raised_as_interrupt(), loading(self.trainer):
            super()._run_subcommand(subcommand)

    def before_instantiate_classes(self) -> None:
        """Keep no predictions; give the data the tokenizer of the model, if it takes one and none was given."""
        config = self.config[self.config["subcommand"]]
        _check_ckpt_path(config.get("ckpt_path"))
        name_wandb_runs(config, self.config["subcommand"])
        if self.config["subcommand"] == "predict" and config.get("return_predictions") is None:
            config["return_predictions"] = False  # they are written, and would fill the memory
        model, data = config.get("model"), config.get("data")
        if model is None or data is None:
            return
        name = (model.get("init_args") or {}).get("model")
        arguments = data.get("init_args")
        if not isinstance(name, str) or arguments is None or arguments.get("tokenizer") is not None:
            return
        if "tokenizer" in argument_names(import_class(data["class_path"])):
            arguments["tokenizer"] = name


def _check_ckpt_path(path: str | None) -> None:
    """Check that a checkpoint that is named by its path exists, before anything is built."""
    if path is None or path in (*CKPT_WORDS, "hpc") or re.match(r"\w+://|registry", path):
        return
    if not path or not os.path.exists(path):
        raise UsageError(f"There is no checkpoint {path!r} for ckpt_path; it takes a file or {', '.join(CKPT_WORDS)}.")


def _as_raised(error: BaseException) -> BaseException:
    """Return the exception that jsonargparse, which tries every type that an argument may have, wrapped in a list."""
    raised: BaseException | None = error
    while raised is not None:
        frame = raised.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None and frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "jsonargparse":
            return raised
        raised = raised.__cause__ or raised.__context__
    return error


def _check_text(text: str, source: str, keys: list[str]) -> None:
    """Check that a configuration is a YAML mapping whose outer keys, and those of the trainer, exist."""
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{source}{line}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{source}: a configuration must be a mapping of keys such as model, data and trainer.")
    names = [str(key) for key in content]
    trainer = content.get("trainer")
    names += [f"trainer.{key}" for key in trainer] if isinstance(trainer, dict) else []
    commands = set(ProjectCLI.subcommands())
    for key in (name.removesuffix("+") for name in names):
        known = [*keys, *commands]
        if not any(name == key or name.startswith(f"{key}.") for name in known):
            raise UsageError(f"{source}: {unknown_key(key, keys)}")
