"""Names of full pages by what they hold: a hash chain. No JAX.

A page's keys and values depend on its own tokens and on all tokens before them, so its key hashes
its tokens together with the key of the page before it. Keys are 128-bit BLAKE2b digests: two
contents with the same key are beyond reach by chance and by intent.
"""

import hashlib
from array import array
from collections.abc import Sequence

_KEY_BYTES = 16


def root_key(cache_salt: str = "") -> bytes:
    """What the first page's key is chained to; sequences of different salts share no pages."""
    return hashlib.blake2b(cache_salt.encode(), digest_size=_KEY_BYTES).digest()


def page_keys(parent: bytes, token_ids: Sequence[int], page_size: int) -> tuple[bytes, ...]:
    """Keys of the full pages that tokens fill; a rest that fills no page has none.

    Args:
        parent: key of the page before the first of these, or `root_key`.
        token_ids: from a page's first token on, each below 2**31.
        page_size: tokens of a page.
    """
    data = array("i", token_ids).tobytes()
    width = page_size * array("i").itemsize
    digest = hashlib.blake2b
    keys = []
    for end in range(width, len(data) + 1, width):
        parent = digest(parent + data[end - width : end], digest_size=_KEY_BYTES).digest()
        keys.append(parent)
    return tuple(keys)
