"""One file a command, each with `add_arguments(parser)`, `run(arguments) -> int` and a docstring that is its help."""
