"""Shared type names for annotations (shapes in the notation of jaxtyping).

Axis letters: T query tokens, S key tokens, B sequences, L tokens of one row, D model, F ffn,
N query heads, K kv heads, G = N/K, H head dim, V vocab, E experts.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, UInt8, UInt16, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "UInt8", "UInt16", "UInt32"]
