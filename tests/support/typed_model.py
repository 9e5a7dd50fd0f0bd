"""Random models whose matrices are stored as given GGML types."""

import pathlib
from collections.abc import Sequence

import numpy as np
from support.gguf_files import RawTensor, Tensors, write_gguf
from support.random_model import Shape, random_model

from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.types import BLOCK_SIZES, GGMLType

SHAPES = {
    "dense": Shape(n_layers=1, width=256, n_heads=4, head_dim=64, ffn_width=512, vocab_size=96),
    "tied": Shape(n_layers=1, width=256, n_heads=4, head_dim=64, ffn_width=256, tied=True),
    "experts": Shape(
        "qwen3moe", n_layers=1, width=256, head_dim=64, expert_width=256, n_experts=4, n_used=2
    ),
}
"""Rows of whole blocks, whatever the type."""


def blocks(type: GGMLType, shape: tuple[int, ...], seed: int = 0) -> RawTensor:
    """Random blocks of a type, with scales of ordinary size where a wild one gives NaN."""
    elements, nbytes = BLOCK_SIZES[type]
    rng = np.random.default_rng([seed, int(type)])
    count = int(np.prod(shape)) // elements
    raw = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    for _ in range(50):
        bad = ~(np.abs(dequantize_numpy(raw, type, (count, elements))) < 100).all(axis=1)
        if not bad.any():
            break
        # Bits of a scale's exponent are somewhere in the block: clear more of it each time.
        raw[bad] &= rng.integers(0, 256, (int(bad.sum()), nbytes), dtype=np.uint8)
    return RawTensor(type, shape, raw.tobytes())


def save_typed(
    path: pathlib.Path, shape: Shape, types: Sequence[GGMLType], seed: int = 0
) -> pathlib.Path:
    """Writes a random model whose matrices take turns with `types` and returns its path."""
    metadata, tensors = random_model(shape, seed=seed)
    matrices = [name for name, t in tensors.items() if t.ndim > 1 and "gate_inp" not in name]
    typed: Tensors = dict(tensors)
    for i, name in enumerate(matrices):
        type = types[i % len(types)]
        if type == GGMLType.F16:
            typed[name] = tensors[name].astype(np.float16)
        elif type == GGMLType.BF16:
            upper = tensors[name].view(np.uint32) >> 16
            raw = upper.astype(np.uint16).tobytes()
            typed[name] = RawTensor(type, tensors[name].shape, raw)
        elif type != GGMLType.F32:
            typed[name] = blocks(type, tensors[name].shape, seed)
    return write_gguf(path, metadata, typed)
