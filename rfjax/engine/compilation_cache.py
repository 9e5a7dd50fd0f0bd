"""JAX's persistent compilation cache, on unless the user has set one or turned it off."""

import pathlib

import jax


def compilation_cache_folder() -> pathlib.Path:
    """The folder of compiled programs: the one JAX is configured with, or else the user's."""
    configured = jax.config.values["jax_compilation_cache_dir"]
    return pathlib.Path(configured or pathlib.Path.home() / ".cache" / "rfjax" / "xla")


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is fast.

    Does nothing when JAX is already configured with a folder of its own (for example through
    its environment variable), or with `jax_enable_compilation_cache` off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
