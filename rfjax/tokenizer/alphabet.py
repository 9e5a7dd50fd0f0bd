"""How vocabularies spell spaces and bytes."""

from __future__ import annotations

import types

SPACE = "\u2581"  # sentencepiece's mark for a space


def _byte_alphabet() -> dict[int, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: byte for byte in printable} | {0x100 + i: byte for i, byte in enumerate(others)}


# GPT-2's spelling, code point to byte: printable bytes as themselves, the others from U+0100 on.
BYTE_ALPHABET = types.MappingProxyType(_byte_alphabet())
# Sentencepiece's spelling of byte tokens, in the order of the bytes.
BYTE_TEXTS = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Private text for what must be in a library's vocabulary and never match.
RESERVED = "\U0010fffd"


def is_text(text: str) -> bool:
    """Whether a token is text at all: files may hold stray bytes, read as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unmatchable(id_: int) -> str:
    """A name for a token that no text may produce."""
    return f"{RESERVED}{id_}{RESERVED}"
