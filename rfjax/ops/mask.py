"""Which keys a query may attend to, as data."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from rfjax.errors import ConfigError
from rfjax.typing import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Mask:
    """A pattern over absolute positions; hashable, so that it can be static under jit.

    `causal`: keys at or before the query. `bidirectional`: every key. `window`: causal, and the
    last `size` positions only (the query's own included). `chunked`: causal, within the query's
    own chunk of `size` positions.
    """

    kind: Literal["causal", "bidirectional", "window", "chunked"] = "causal"
    size: int = 0

    def __post_init__(self):
        sized = self.kind in ("window", "chunked")
        if self.kind not in ("causal", "bidirectional", "window", "chunked"):
            raise ConfigError(
                f"mask kind: got {self.kind!r}, expected causal, bidirectional, window or chunked"
            )
        if sized and self.size < 1:
            raise ConfigError(f"a {self.kind} mask needs a size of at least 1, got {self.size}")
        if not sized and self.size:
            raise ConfigError(f"a {self.kind} mask takes no size, got {self.size}")


def allowed(
    mask: Mask, query_positions: Int[Array, "*L"], key_positions: Int[Array, "*S"]
) -> Bool[Array, "*LS"]:
    """True where a query may see a key; the two arguments broadcast against each other."""
    if mask.kind == "bidirectional":
        return jnp.broadcast_to(
            jnp.array(True), jnp.broadcast_shapes(query_positions.shape, key_positions.shape)
        )
    seen = key_positions <= query_positions
    if mask.kind == "window":
        seen &= query_positions - key_positions < mask.size
    elif mask.kind == "chunked":
        seen &= key_positions // mask.size == query_positions // mask.size
    return seen


def first_seen(mask: Mask, query_positions: Int[Array, "*L"]) -> Int[Array, "*L"]:
    """The first key position that a query may see."""
    if mask.kind == "window":
        return jnp.maximum(query_positions - (mask.size - 1), 0)
    if mask.kind == "chunked":
        return jnp.maximum(query_positions, 0) // mask.size * mask.size
    return jnp.zeros_like(query_positions)
