"""Recipes from the command line, --config=configs/NAME.py --config.KEY=VALUE ...; mistakes in one line."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from xception_jax.errors import UserError


def explain(error: Exception, argv: Sequence[str]) -> str:
    """What absl and ml_collections say over many lines of the arguments `argv`, in one."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0]) if error.args else type(error).__name__
    key = re.match(r"'(\w+)'", text)
    wrong = [arg for arg in argv if key and re.match(rf"--config\.([\w.]+\.)?{key[1]}\b", arg)]
    if wrong:  # an unknown key, perhaps with a second line: Did you mean "..." instead of "..."?
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"{wrong[0]}: no such setting; " + (
            f"did you mean {near[1]!r}?" if near else "see configs/common.py"
        )
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"--{error.flagname}: no such flag; settings of the recipe are written --config.KEY=VALUE"
    if "Traceback" in text:  # the config file itself raised
        return f"{text.split(':')[0]}: {text.strip().splitlines()[-1]}"
    return text


def parse(flag_values: flags.FlagValues, argv: Sequence[str], *, required: Sequence[str], example: str) -> None:
    """absl's parser, but every mistake is a UserError.

    Args:
      flag_values: where the flags, among them `config`, are declared.
      argv: the program's name and its arguments.
      required: names of the flags that must be given.
      example: a right command line, to be shown where one is missing.

    Raises:
      UserError: for an unknown flag, setting or value, a missing flag, a config file that is missing or faulty.
    """
    try:
        rest = flag_values(list(argv))[1:]
    except Exception as error:  # config files are programs: they can raise anything
        raise UserError(explain(error, argv)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: settings are written --config.KEY=VALUE")
    for name in required:
        if not flag_values[name].present:
            raise UserError(f"--{name} is missing: {example}")
    try:
        flag_values["config"].value.to_dict()  # reports only now that the file could not be read
    except OSError as error:
        path = error.args[0].splitlines()[-1].split(": ")[-1]
        raise UserError(f"--config={path}: no such file; recipes are in configs/") from None


def read_config(argv: Sequence[str], *, example: str) -> ConfigDict:
    """The recipe that arguments of the form --config=FILE --config.KEY=VALUE describe; see `parse`."""
    flag_values = flags.FlagValues()
    argv = ["", *argv]
    config_flags.DEFINE_config_file("config", None, "Recipe.", flag_values=flag_values, sys_argv=argv)
    parse(flag_values, argv, required=["config"], example=example)
    return flag_values["config"].value
