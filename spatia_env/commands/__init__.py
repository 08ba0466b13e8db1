"""The subcommands of `spatia`, each with `add_arguments(parser)` and `run(args) -> int`."""
