"""Files that rfjax keeps for the user between runs. Losing any of them costs time, nothing else."""

import os
import pathlib
import re
import secrets


def user_folder() -> pathlib.Path | None:
    """The user's folder for rfjax's files; None without a home directory, as in some containers."""
    try:
        return pathlib.Path.home() / ".cache" / "rfjax"
    except RuntimeError:
        return None


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file so that readers see the old or the new one, whole.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: its files are for their owner only, and this one may be a result to share.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def slug(name: str) -> str:
    """A device's name as part of a file name: "NVIDIA H200" is "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
