"""Commands of `python -m xception_jax`, a file each: `add_arguments(parser)` and `run(arguments)`.

`run` raises UserError for a mistake in the flags or in what they name, and TrainingError if the work fails.
"""
