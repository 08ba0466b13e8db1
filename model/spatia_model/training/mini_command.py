"""`spatia train mini` as the command line calls it: `training.cli` whose preset is said already."""

from __future__ import annotations

import argparse

from spatia_model.training import cli
from spatia_model.training.cli import run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_arguments(parser, preset=False)


__all__ = ["add_arguments", "run"]
