"""Tracing and lowering programs for less: a sixth of the suite's time, and most of its memory."""

import gc
import threading

import jax
from jax._src.interpreters import mlir

_USES = 10
"""As many programs share one MLIR context in JAX 0.12: more types and names pile up in it."""


def make_tracing_cheap() -> None:
    """For this process. Programs stay what they are.

    Python looks for garbage less often: tracing makes objects by the hundred thousand, hardly any
    of them garbage. And JAX before 0.12 makes an MLIR context of some milliseconds and of a
    megabyte for every program, which is used again here, as later releases do themselves.
    """
    gc.set_threshold(50_000, 20, 20)
    if jax.__version_info__ < (0, 12):
        mlir.make_ir_context = _Contexts(mlir.make_ir_context)


class _Contexts(threading.local):
    """What `make_ir_context` is: each thread gets its context several times."""

    def __init__(self, make):
        self._make, self._left = make, 0

    def __call__(self):
        if not self._left:
            self._context, self._left = self._make(), _USES
        self._left -= 1
        return self._context
