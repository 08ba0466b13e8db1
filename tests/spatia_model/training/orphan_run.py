"""`spatia train mini` as a shell's background job: deaf to Ctrl-C; its stage says who it is and waits."""

import argparse
import os
import signal
import sys
import time

from spatia_model.training import cli


def wait(name: str, args: argparse.Namespace) -> None:
    (args.out / str(os.getpid())).touch()
    time.sleep(120)


cli._stage = wait  # processes import this file, too

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    sys.exit(cli.run(parser.parse_args(["mini", "--out", sys.argv[1], "--stage", "vae", "--processes", "2"])))
