"""A random llama model of a few hundred kilobytes with a real vocabulary, for tests without data.

Its text is noise, but everything works: it loads, generates, chats and is scored.
"""

import pathlib
import string

import numpy as np
from support.gguf_files import RawTensor, write_gguf

from rfjax.quant.types import GGMLType

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

_PAIRS = ("▁t", "he", "▁a", "in", "er", "on", "▁s", "ou", "▁w", "it")


def vocabulary() -> tuple[list[str], np.ndarray, np.ndarray]:
    """A sentencepiece vocabulary: texts, scores f32 [V] and GGUF token types int32 [V].

    Three special tokens, all bytes, the printable ASCII characters, and a few pairs of letters.
    """
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation, "\n"]
    texts = [*special, *bytes_, *_PAIRS, *characters]
    kinds = [2, 3, 3] + [6] * len(bytes_) + [1] * (len(_PAIRS) + len(characters))
    scores = np.zeros(len(texts), np.float32)
    merged = len(special) + len(bytes_)
    scores[merged:] = -np.arange(len(texts) - merged, dtype=np.float32)
    return texts, scores, np.asarray(kinds, np.int32)


def tiny_llama(
    path: pathlib.Path,
    *,
    seed: int = 0,
    n_layers: int = 2,
    width: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    ffn_width: int = 96,
    context_length: int = 256,
    quantized: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
) -> pathlib.Path:
    """Writes a llama model with random weights and returns its path.

    Args:
        path: the file to write.
        seed: of the weights; the same seed and sizes give the same file.
        n_layers: number of layers.
        width: of the embedding; a multiple of `n_heads`, and of 32 if `quantized`.
        n_heads: query heads.
        n_kv_heads: key and value heads, a divisor of `n_heads`.
        ffn_width: of the feed-forward network.
        context_length: tokens of context that the file claims.
        quantized: store the attention projections as Q8_0 instead of F32.
        chat_template: Jinja source; None for a file without one.
    """
    rng = np.random.default_rng(seed)
    texts, scores, kinds = vocabulary()
    head_dim = width // n_heads
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "tiny random llama",
        "llama.block_count": n_layers,
        "llama.context_length": context_length,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ffn_width,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head_dim,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(width)).astype(np.float32)

    tensors: dict[str, np.ndarray | RawTensor] = {
        "token_embd.weight": matrix(len(texts), width) * width**0.5,
        "output_norm.weight": norm(),
        "output.weight": matrix(len(texts), width),
    }
    for i in range(n_layers):
        projections = {
            "attn_q": matrix(width, width),
            "attn_k": matrix(n_kv_heads * head_dim, width),
            "attn_v": matrix(n_kv_heads * head_dim, width),
            "attn_output": matrix(width, width),
        }
        for stem, weight in projections.items():
            tensors[f"blk.{i}.{stem}.weight"] = q8_0(weight) if quantized else weight
        tensors[f"blk.{i}.ffn_gate.weight"] = matrix(ffn_width, width)
        tensors[f"blk.{i}.ffn_up.weight"] = matrix(ffn_width, width)
        tensors[f"blk.{i}.ffn_down.weight"] = matrix(width, ffn_width)
        tensors[f"blk.{i}.attn_norm.weight"] = norm()
        tensors[f"blk.{i}.ffn_norm.weight"] = norm()
    return write_gguf(path, metadata, tensors)


def q8_0(weight: np.ndarray) -> RawTensor:
    """A matrix as Q8_0: blocks of 32 with an f16 scale and 32 signed bytes."""
    blocks = weight.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / scale.astype(np.float32)).astype(np.int8)
    data = np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1)
    return RawTensor(GGMLType.Q8_0, weight.shape, data.tobytes())
