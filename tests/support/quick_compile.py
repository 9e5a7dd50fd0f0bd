"""Programs that compile in half the time and run slower, for tests whose subject is not XLA's code.

Users' programs are optimized. Whatever is claimed to the last bit, or of the compiled program
itself, is therefore tested without this.
"""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def quick_compile() -> Iterator[None]:
    """What is compiled inside is hardly optimized; what was compiled before is used as it is."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)
