"""Files that rfjax keeps for the user between runs. Losing any of them costs time, nothing else."""

import errno
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

    Links are followed; what is there and no regular file, as a device or a pipe, is written to.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = replaceable(path)
    # Not tempfile's: its files are for their owner only, and this one may be a result to share.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replaceable(path: pathlib.Path) -> pathlib.Path:
    """The regular file, there or not, that a path leads to: what another may be renamed to.

    Raises:
        OSError: something else is there, which a rename would do away with.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return pathlib.Path(os.path.realpath(path))


def slug(name: str) -> str:
    """A device's name as part of a file name: "NVIDIA H200" is "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
