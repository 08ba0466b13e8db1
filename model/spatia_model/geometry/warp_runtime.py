"""Starts Warp without its banner. Import this before defining kernels: `from spatia_model.geometry.warp_runtime import wp`."""

import os
import sys

import warp as wp


def _init_quietly() -> None:
    """Warp's native part warns on stderr where there is no NVIDIA driver, which is a normal machine to us."""
    wp.config.log_level = wp.LOG_ERROR
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        wp.init()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


_init_quietly()

__all__ = ["wp"]
