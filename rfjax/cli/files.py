"""Texts that a command is given as files."""

import sys
from pathlib import Path

from rfjax.errors import RequestError


def read_text(path: Path) -> str:
    """The text of a file, or of standard input for `-`, less one newline at its end.

    Raises:
        RequestError: the file cannot be read, or is not UTF-8.
    """
    if path == Path("-") and sys.stdin is None:
        raise RequestError("standard input is closed; give a text there, or name a file")
    try:
        data = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); expected a text file"
        ) from error
    return decode_text(data, str(path)).removesuffix("\n")


def decode_text(data: bytes, source: str) -> str:
    """Bytes as UTF-8.

    Raises:
        RequestError: they are not; the message names `source` and the place.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
