"""The two ways a run ends early by its own decision; both are shown as one line, without a traceback."""


class UserError(Exception):
    """A mistake in the command, the configuration or the files: names the argument, its value, the remedy."""


class TrainingError(Exception):
    """Training cannot go on: a non-finite loss, a full disk. Says what is kept and how to go on."""
