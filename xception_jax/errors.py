"""The ways a run ends early by its own decision; each is shown as one line, without a traceback."""

from typing import Any


class UserError(Exception):
    """A mistake in the command, the configuration or the files: names the argument, its value, the remedy."""


class TrainingError(Exception):
    """Training cannot go on: a non-finite loss, a full disk. Says what is kept and how to go on."""


class SettingError(UserError, ValueError):
    """A setting whose value cannot be used.

    Attributes:
      setting: name of the setting, with the sections around it as far as they are known, such as "data.root".
      value: what it was set to.
      remedy: what is wrong with it, and what to do.

    >>> print(SettingError("root", "/nowhere", "no such folder; name another").within("config", "data"))
    config.data.root = '/nowhere': no such folder; name another
    >>> print(SettingError("short_side", 0, "must be at least 1 pixel").as_flag())
    --short-side=0: must be at least 1 pixel
    """

    def __init__(self, setting: str, value: Any, remedy: str):
        super().__init__(setting, value, remedy)  # the arguments that pickle calls the class with
        self.setting, self.value, self.remedy = setting, value, remedy

    def __str__(self) -> str:
        return f"{self.setting} = {self.value!r}: {self.remedy}"

    def within(self, *sections: str) -> "SettingError":
        """The same error, with the names of the sections that hold the setting in front of its name."""
        return SettingError(".".join([*sections, self.setting]), self.value, self.remedy)

    def as_flag(self) -> UserError:
        """The same error in the words of a command whose flag has the setting's name."""
        return UserError(f"--{self.setting.replace('_', '-')}={self.value}: {self.remedy}")
