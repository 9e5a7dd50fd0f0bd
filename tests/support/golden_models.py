"""The random models whose llama.cpp logits are kept in `tests/models/goldens`.

Between them they have every mechanism of every supported architecture. `python -m
support.golden_models` (in `tests/`, with `llama-cpp-python` 0.3.36 or a later one installed)
makes the files anew: f32 weights and cache, no flash attention, one batch.
"""

import ctypes
import dataclasses
import pathlib
import tempfile
import zlib

import numpy as np
from support.random_model import Shape, random_model, random_tokens, save

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "goldens"
LENGTH = 48


@dataclasses.dataclass(frozen=True)
class Golden:
    """A model by its sizes, seed and extra metadata (keys without the architecture's prefix)."""

    shape: Shape
    seed: int
    metadata: dict[str, object] = dataclasses.field(default_factory=dict)

    def tokens(self) -> np.ndarray:
        """The token ids that the logits belong to, int32 [LENGTH]."""
        return random_tokens(self.seed, LENGTH, self.shape.vocab_size)

    def checksum(self) -> int:
        """Of all weights: goldens belong to exactly these."""
        _, tensors = random_model(self.shape, seed=self.seed, metadata=self.metadata)
        total = 0
        for name in sorted(tensors):
            total = zlib.crc32(tensors[name].tobytes(), total)
        return total

    def write(self, path: pathlib.Path) -> pathlib.Path:
        """Writes the model's file."""
        return save(path, self.shape, seed=self.seed, metadata=self.metadata)


_ALL_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

GOLDENS = {
    "llama": Golden(
        Shape(rope_factors=True, biases=_ALL_BIASES, vocab_size=37, width=36, n_layers=3),
        seed=1,
        metadata={"rope.freq_base": 500000.0},
    ),
    "llama-yarn": Golden(
        Shape(n_heads=2, n_kv_heads=1, head_dim=32),
        seed=2,
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 0.9,
        },
    ),
    "llama-linear-tied": Golden(
        Shape(n_heads=3, n_kv_heads=3, head_dim=12, tied=True),
        seed=3,
        metadata={"rope.scale_linear": 2.5, "attention.layer_norm_rms_epsilon": 0.1},
    ),
    "mixtral": Golden(Shape(n_experts=8, n_used=2), seed=4),
    "qwen2": Golden(Shape("qwen2", n_heads=4, n_kv_heads=1, tied=True), seed=5),
    "qwen3": Golden(Shape("qwen3", n_heads=6, n_kv_heads=2, head_dim=16, width=24), seed=6),
    "qwen3moe": Golden(Shape("qwen3moe", n_experts=6, n_used=3), seed=7),
    "mistral3": Golden(
        Shape("mistral3", head_dim=32, n_heads=2, n_kv_heads=2),
        seed=8,
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 14,
            "rope.scaling.yarn_beta_fast": 4.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.5,
            "attention.temperature_scale": 0.3,
        },
    ),
}


def llama_cpp_logits(path: pathlib.Path, tokens: np.ndarray, context: int = 256) -> np.ndarray:
    """Logits f32 [T, V] of llama.cpp after every token, from an empty context of that size."""
    import llama_cpp.llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    f32, off = 0, 0  # of enums ggml_type and llama_flash_attn_type
    sizes = {"n_ctx": context, "n_batch": 256, "n_ubatch": 256}
    for field, value in (sizes | {"type_k": f32, "type_v": f32, "flash_attn_type": off}).items():
        setattr(settings, field, value)
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens.tolist()):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if lib.llama_decode(context, batch):
        raise RuntimeError(f"{path}: llama.cpp cannot decode it")
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    pointer = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (len(tokens), vocab)).copy()


def main() -> None:
    """Makes every golden anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, golden in GOLDENS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = golden.write(pathlib.Path(folder) / "model.gguf")
            logits = llama_cpp_logits(path, golden.tokens())
        np.savez_compressed(
            FOLDER / f"{name}.npz", logits=logits, checksum=np.uint32(golden.checksum())
        )


if __name__ == "__main__":
    main()
