"""JAX's persistent compilation cache, on unless the user has set one or turned it off."""

import pathlib

import jax


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is fast.

    Does nothing when JAX is already configured with a folder of its own (for example through
    its environment variable), or with `jax_enable_compilation_cache` off.
    """
    if jax.config.read("jax_compilation_cache_dir") is None:
        folder = pathlib.Path.home() / ".cache" / "rfjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
