"""Programs that compile in half the time or less, for tests whose subject is not XLA's code.

Users' programs are optimized. Whatever is claimed to the last bit, or of the compiled program
itself, is therefore tested without this.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
from jax._src import compiler

_OPTIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
"""XLA's older code generator, which takes half the time, where there still is one."""


@contextlib.contextmanager
def quick_compile() -> Iterator[None]:
    """What is compiled inside is hardly optimized; what was compiled before is used as it is."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        with mock.patch.object(compiler, "get_compile_options", _quick_options):
            yield
    finally:
        jax.config.update(name, before)


_usual_options = compiler.get_compile_options


def _quick_options(*args, env_options_overrides=None, **kwargs):
    """JAX has a setting for no single option of all programs, but asks this for each."""
    options = _OPTIONS | (env_options_overrides or {})
    return _usual_options(*args, env_options_overrides=options, **kwargs)
