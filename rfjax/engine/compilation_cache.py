"""JAX's persistent compilation cache, on unless the user has set one or turned it off."""

import logging
import os
import pathlib

import jax

from rfjax.user_files import user_folder

logger = logging.getLogger(__name__)


def compilation_cache_folder() -> pathlib.Path | None:
    """The folder of compiled programs: the one JAX is configured with, or else the user's.

    None where the user has no home directory, as in some containers.
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if configured:
        return pathlib.Path(configured)
    home = user_folder()
    return None if home is None else home / "xla"


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is fast.

    Does nothing when JAX is already configured with a folder of its own (for example through
    its environment variable), or where the user's folder cannot be written: programs are then
    compiled anew.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = compilation_cache_folder()
    if folder is None or not _make_writable(folder):
        logger.info("no compilation cache: %s", folder or "no home directory")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def _make_writable(folder: pathlib.Path) -> bool:
    """Make a folder where it is missing; whether files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
