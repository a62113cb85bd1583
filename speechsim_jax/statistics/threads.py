"""LAPACK on several matrices at once."""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import threadpoolctl

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in order, one thread a core, each with a single-threaded BLAS.

    The decompositions of one matrix hardly gain from a second core, and a threaded BLAS loses an
    order of magnitude when another thread holds that core.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(cores) as pool,
    ):
        yield from pool.map(function, items)
