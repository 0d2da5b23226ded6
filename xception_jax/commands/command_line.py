"""Configs from the command line, --config=configs/NAME.py --config.KEY=VALUE ...; mistakes in one line."""

import difflib
import importlib.util
import inspect
import pathlib
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from xception_jax import recipe
from xception_jax.errors import UserError

PREFIX = "--config."


def parse(flag_values: flags.FlagValues, argv: Sequence[str], *, required: Sequence[str], example: str) -> None:
    """absl's parser, but every mistake is a UserError, and --config.KEY=None unsets a setting.

    Args:
      flag_values: where the flags, among them `config`, are declared.
      argv: the program's name and its arguments.
      required: names of the flags that must be given.
      example: a right command line, to be shown where one is missing.

    Raises:
      UserError: for an unknown flag, setting or value, a missing flag, a config file that is missing or faulty.
    """
    _check_config(argv)
    unset = [argument.removesuffix("=None") for argument in argv if _sets(argument, "None")]
    try:
        rest = flag_values([argument for argument in argv if not _sets(argument, "None")])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"--{error.flagname}: no such flag; settings of the recipe are written {PREFIX}KEY=VALUE"
        ) from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    except Exception as error:  # what ml_collections raises for a value of another type
        raise UserError(str(error.args[0]) if error.args else type(error).__name__) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: settings are written {PREFIX}KEY=VALUE")
    for name in required:
        if not flag_values[name].present:
            raise UserError(f"--{name} is missing: {example}")
    for key in unset:
        section, _, name = key.removeprefix(PREFIX).rpartition(".")
        with flag_values["config"].value.ignore_type():
            _find(flag_values["config"].value, section)[name] = None


def _sets(argument: str, value: str) -> bool:
    return argument.startswith(PREFIX) and argument.partition("=")[2] == value


def _find(config: ConfigDict, path: str) -> ConfigDict:
    """The section at a path such as "model" or ""."""
    for name in filter(None, path.split(".")):
        config = config[name]
    return config


def _check_config(argv: Sequence[str]) -> None:
    """Raises UserError if the config file cannot be used, or lacks a setting that an argument names."""
    path = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument.startswith("--config="):
            path = argument.partition("=")[2]
        elif argument == "--config":
            path = following
    if path is None:
        return
    config = load(path)
    for argument in argv:
        if argument.startswith(PREFIX):
            _check_key(config, argument)


def _check_key(config: ConfigDict, argument: str) -> None:
    inside = config
    for name in argument.removeprefix(PREFIX).partition("=")[0].split("."):
        if not isinstance(inside, ConfigDict) or name not in inside:
            near = difflib.get_close_matches(name, inside if isinstance(inside, ConfigDict) else (), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "docs/settings.md lists them"
            raise UserError(f"{argument}: no such setting; {hint}")
        inside = inside[name]


def load(path: str) -> ConfigDict:
    """The config of a file, "configs/NAME.py" or "configs/NAME.py:VARIANT".

    Raises:
      UserError: names the file and, where there is one, the line at fault.
    """
    name, _, variant = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        raise UserError(f"--config={path}: no such file; recipes are in configs/")
    try:
        spec = importlib.util.spec_from_file_location("config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = module.get_config
        config = get_config(variant) if inspect.signature(get_config).parameters else get_config()
    except SyntaxError as error:
        raise UserError(f"--config={path}: {error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # config files are programs: they can raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"--config={path}: {last.filename}, line {last.lineno}: {error!r}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {type(config).__name__}; return a ConfigDict, such as"
            " common.default()"
        )
    return config


def read_config(argv: Sequence[str], *, example: str) -> ConfigDict:
    """The config that arguments of the form --config=FILE --config.KEY=VALUE describe; see `parse`."""
    flag_values = flags.FlagValues()
    argv = ["", *argv]
    config_flags.DEFINE_config_file("config", None, "Recipe.", flag_values=flag_values, sys_argv=argv)
    parse(flag_values, argv, required=["config"], example=example)
    return flag_values["config"].value


def settings_help(model: str = "xception") -> str:
    """The settings of recipes for a model, one per line, for --help."""
    rows = recipe.settings_table(model)
    return "\n".join(
        f"  {PREFIX}{row.name}: {row.values}; default {row.default}\n      {row.meaning}" for row in rows
    )
