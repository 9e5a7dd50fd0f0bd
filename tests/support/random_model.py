"""Random models of every supported architecture, in any size, for tests without data.

`random_model` gives metadata and tensors as plain dicts, so that a test can spoil any of them
before it writes the file; `save` writes it. The weights follow from the seed by integer
arithmetic alone: the same everywhere and for good, so that logits can be stored beside the tests.
"""

import dataclasses
import pathlib
import zlib

import numpy as np
from support.gguf_files import Tensors, write_gguf

_BIASED = {"qwen2": ("attn_q", "attn_k", "attn_v")}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a random model; `n_experts` of 0 means dense."""

    architecture: str = "llama"
    n_layers: int = 2
    width: int = 32
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 8
    ffn_width: int = 48
    vocab_size: int = 40
    n_experts: int = 0
    n_used: int = 0
    expert_width: int = 24
    tied: bool = False
    biases: tuple[str, ...] | None = None  # None: those that the architecture's files have
    rope_factors: bool = False
    context_length: int = 128


def uniform(seed: int, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Values of a flat distribution with that standard deviation, f32, representable in f16.

    PCG64's raw stream and SeedSequence are what NumPy promises never to change.
    """
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    unit = ((bits >> np.uint64(53)).astype(np.float64) + 0.5) / 2**11 - 0.5
    values = (unit * (scale * 12**0.5)).astype(np.float16)
    return values.astype(np.float32).reshape(shape)


def random_model(
    shape: Shape, *, seed: int = 0, metadata: dict[str, object] | None = None
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Metadata and f32 tensors of a model; `metadata` adds keys, without their prefix."""
    arch, width, dim = shape.architecture, shape.width, shape.head_dim
    values: dict[str, object] = {
        "block_count": shape.n_layers,
        "context_length": shape.context_length,
        "embedding_length": width,
        "feed_forward_length": shape.ffn_width,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": dim,
        "rope.freq_base": 10000.0,
        "vocab_size": shape.vocab_size,
    }
    if shape.n_experts:
        values |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_used}
        if arch == "qwen3moe":
            values["expert_feed_forward_length"] = shape.expert_width
        else:
            values["feed_forward_length"] = shape.expert_width
    values |= metadata or {}
    keys: dict[str, object] = {
        "general.architecture": arch,
        "tokenizer.ggml.model": "no_vocab",
    }
    keys |= {f"{arch}.{key}": value for key, value in values.items()}

    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, *sizes: int, gain: float = 1.0) -> None:
        tensors[name] = uniform(seed, name, sizes, gain * sizes[-1] ** -0.5)

    def norm(name: str, size: int) -> None:
        tensors[name] = np.float32(1.0) + uniform(seed, name, (size,), 0.25)

    matrix("token_embd.weight", shape.vocab_size, width, gain=width**0.5)
    norm("output_norm.weight", width)
    if not shape.tied:
        matrix("output.weight", shape.vocab_size, width)
    if shape.rope_factors:
        factors = 1.0 + np.arange(dim // 2, dtype=np.float32)
        tensors["rope_freqs.weight"] = factors
    biases = _BIASED.get(arch, ()) if shape.biases is None else shape.biases
    for i in range(shape.n_layers):
        at = f"blk.{i}"
        norm(f"{at}.attn_norm.weight", width)
        norm(f"{at}.ffn_norm.weight", width)
        # Gains above 1: attention must not be close to uniform, or no test would see its changes.
        matrix(f"{at}.attn_q.weight", shape.n_heads * dim, width, gain=1.5)
        matrix(f"{at}.attn_k.weight", shape.n_kv_heads * dim, width, gain=1.5)
        matrix(f"{at}.attn_v.weight", shape.n_kv_heads * dim, width)
        matrix(f"{at}.attn_output.weight", width, shape.n_heads * dim, gain=2.0)
        if arch in ("qwen3", "qwen3moe"):
            norm(f"{at}.attn_q_norm.weight", dim)
            norm(f"{at}.attn_k_norm.weight", dim)
        if shape.n_experts:
            experts, ffn = shape.n_experts, shape.expert_width
            matrix(f"{at}.ffn_gate_inp.weight", experts, width, gain=2.0)
            matrix(f"{at}.ffn_gate_exps.weight", experts, ffn, width)
            matrix(f"{at}.ffn_up_exps.weight", experts, ffn, width)
            matrix(f"{at}.ffn_down_exps.weight", experts, width, ffn, gain=2.0)
        else:
            matrix(f"{at}.ffn_gate.weight", shape.ffn_width, width)
            matrix(f"{at}.ffn_up.weight", shape.ffn_width, width)
            matrix(f"{at}.ffn_down.weight", width, shape.ffn_width, gain=2.0)
        for stem in biases:
            name = f"{at}.{stem}.bias"
            rows = tensors[f"{at}.{stem}.weight"].shape[0]
            tensors[name] = uniform(seed, name, (rows,), 0.3)
    return keys, tensors


def random_tokens(seed: int, length: int, vocab_size: int) -> np.ndarray:
    """Token ids int32 [length], as stable as the weights."""
    bits = np.random.PCG64([seed, length]).random_raw(length)
    return (bits % np.uint64(vocab_size)).astype(np.int32)


def save(
    path: pathlib.Path,
    shape: Shape,
    *,
    seed: int = 0,
    metadata: dict[str, object] | None = None,
) -> pathlib.Path:
    """Writes a random model with f32 weights and returns its path."""
    keys, tensors = random_model(shape, seed=seed, metadata=metadata)
    typed: Tensors = dict(tensors)
    return write_gguf(path, keys, typed)
