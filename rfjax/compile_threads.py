"""Threads that compile side by side: XLA holds no lock of Python's while it compiles. No JAX."""

import concurrent.futures
import os


def n_processors() -> int:
    """Processors that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def compiling_pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads to compile in.

    The interpreter waits for them when it ends. It need not wait for daemon threads, but aborts
    where one of those comes back from XLA in the meantime.
    """
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="rfjax-compile")
