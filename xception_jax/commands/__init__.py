"""Commands of `python -m xception_jax`, a file each: `add_arguments(parser)` and `run(arguments)`."""
