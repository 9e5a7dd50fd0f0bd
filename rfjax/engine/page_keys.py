"""Names of full pages by what they hold: a hash chain. No JAX.

A page's keys and values depend on its own tokens and on all tokens before them, so its key hashes
its tokens together with the key of the page before it. Keys are 128-bit BLAKE2b digests: two
contents with the same key are beyond reach by chance and by intent.
"""

import functools
import hashlib
import struct
from collections.abc import Callable, Sequence

_KEY_BYTES = 16
TOKEN_BYTES = 4


def root_key(cache_salt: str = "") -> bytes:
    """What the first page's key is chained to; sequences of different salts share no pages."""
    return hashlib.blake2b(cache_salt.encode(), digest_size=_KEY_BYTES).digest()


def packed(token_ids: Sequence[int]) -> bytes:
    """Tokens as the keys hash them, four bytes each; ids are below 2**31."""
    return _packer(len(token_ids))(*token_ids)


def unpacked(data: bytes) -> tuple[int, ...]:
    """The tokens that were packed."""
    return struct.unpack(f"<{len(data) // TOKEN_BYTES}i", data)


def page_keys(parent: bytes, data: bytes, page_size: int) -> tuple[bytes, ...]:
    """Keys of the full pages that tokens fill; a rest that fills no page has none.

    Args:
        parent: key of the page before the first of these, or `root_key`.
        data: tokens from a page's first one on, packed.
        page_size: tokens of a page.
    """
    width, digest = page_size * TOKEN_BYTES, hashlib.blake2b
    keys = []
    for end in range(width, len(data) + 1, width):
        parent = digest(parent + data[end - width : end], digest_size=_KEY_BYTES).digest()
        keys.append(parent)
    return tuple(keys)


@functools.lru_cache(maxsize=64)
def _packer(n: int) -> Callable[..., bytes]:
    """Packs n tokens, in the same order of bytes on every machine."""
    return struct.Struct(f"<{n}i").pack
