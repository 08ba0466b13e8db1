"""Threads for several worlds on one CPU: each computes alone, so that worlds are dealt out whole."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@functools.lru_cache(maxsize=4)
def workers_for(count: int) -> ThreadPoolExecutor:
    """Threads that each compute without helpers of their own."""
    from spatia_model.geometry import splat_kernels
    from spatia_model.geometry.warp_runtime import wp
    from spatia_model.memory import consolidate_kernels, fuse_kernels

    for module in (splat_kernels, fuse_kernels, consolidate_kernels):
        wp.load_module(module, device="cpu")  # not by several threads at once
    before, ready = torch.get_num_threads(), threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "world", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(count):  # each waits for the others: so many threads there are
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # setting it in a thread also sets what threads started later begin with
    return pool


os.register_at_fork(after_in_child=workers_for.cache_clear)  # a forked process has none of the threads


def each(workers: ThreadPoolExecutor | None, work: Callable[..., Result], *items: Sequence[Any]) -> list[Result]:
    """`work` of every row of items, side by side where there are workers."""
    if workers is None:
        return [work(*row) for row in zip(*items, strict=True)]
    return [job.result() for job in [workers.submit(work, *row) for row in zip(*items, strict=True)]]
