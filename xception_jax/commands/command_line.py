"""Configs from the command line, --config=configs/NAME.py --config.KEY=VALUE ...; mistakes in one line."""

import difflib
import inspect
import itertools
import pathlib
import runpy
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
    path, settings, unset = None, [], []
    for argument, following in itertools.pairwise([*argv, ""]):
        name, equals, value = argument.partition("=")
        if name == "--config":
            path = value if equals else following
        elif name.startswith(PREFIX):
            settings.append(argument)
            unset += [argument] * (value == "None")
    if path is not None:
        _check_names(load(path), settings)
    try:
        rest = flag_values([argument for argument in argv if argument not in unset])[1:]
    except flags.UnrecognizedFlagError as error:
        remedy = f"settings of the recipe are written {PREFIX}KEY=VALUE"
        raise UserError(f"--{error.flagname}: no such flag; {remedy}") from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    except Exception as error:  # what ml_collections raises for a value of another type
        raise UserError(str(error.args[0]) if error.args else type(error).__name__) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: settings are written {PREFIX}KEY=VALUE")
    for name in required:
        if not flag_values[name].present:
            raise UserError(f"--{name} is missing: {example}")
    if unset:
        config = flag_values["config"].value
        with config.ignore_type():
            config.update_from_flattened_dict({_name(argument): None for argument in unset})


def _name(argument: str) -> str:
    return argument.removeprefix(PREFIX).partition("=")[0]


def _check_names(config: ConfigDict, settings: Sequence[str]) -> None:
    for argument in settings:
        inside = config
        for name in _name(argument).split("."):
            known = list(inside) if isinstance(inside, ConfigDict) else []
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "docs/settings.md lists them"
                raise UserError(f"{argument}: no such setting; {hint}")
            inside = inside[name]


def load(path: str) -> ConfigDict:
    """The config of a file, "configs/NAME.py" or "configs/NAME.py:VARIANT".

    Raises:
      UserError: names the file and, where there is one, the line at fault.
    """
    name, _, variant = path.partition(":")
    if not pathlib.Path(name).is_file():
        raise UserError(f"--config={path}: no such file; recipes are in configs/")
    try:
        get_config = runpy.run_path(name)["get_config"]
        config = get_config(variant) if inspect.signature(get_config).parameters else get_config()
    except SyntaxError as error:
        raise UserError(f"--config={path}: {error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # config files are programs: they can raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"--config={path}: {last.filename}, line {last.lineno}: {error!r}") from None
    if not isinstance(config, ConfigDict):
        remedy = "return a ConfigDict, such as common.default()"
        raise UserError(f"--config={path}: get_config() returns {type(config).__name__}; {remedy}")
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
