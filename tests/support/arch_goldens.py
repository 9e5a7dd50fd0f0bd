"""Random models of every architecture whose llama.cpp logits are in `tests/models/goldens/arch`.

They have what the conformance files lack: grouped queries, odd sizes, other windows and patterns,
scaled RoPE, optional tensors. `python -m support.arch_goldens NAME...` (in `tests/`, with
`llama-cpp-python` 0.3.36 or a later one installed) makes the files of these models, or of all.
"""

import dataclasses
import pathlib
import sys
import tempfile
import zlib

import numpy as np
from support.golden_models import llama_cpp_logits
from support.random_gguf import FAMILIES, Family, Sizes, random_gguf, save_gguf
from support.random_model import random_tokens

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "goldens" / "arch"
LENGTH = 48
KEPT = slice(3, None, 4)
"""The positions whose logits are stored."""


@dataclasses.dataclass(frozen=True)
class ArchGolden:
    """A model by its family, sizes and extra metadata (keys without the architecture's prefix).

    `context`: the context size that llama.cpp is given; it chooses longrope's factors.
    """

    family: Family
    sizes: Sizes = Sizes()  # noqa: RUF009 (frozen)
    metadata: dict[str, object] = dataclasses.field(default_factory=dict)
    context: int = 256

    @property
    def seed(self) -> int:
        """Of weights and tokens: the architecture's."""
        return zlib.crc32(self.family.name.encode())

    def tokens(self) -> np.ndarray:
        """The token ids that the logits belong to, int32 [LENGTH]."""
        return random_tokens(self.seed, LENGTH, self.sizes.vocab)

    def checksum(self) -> int:
        """Of all weights and metadata: goldens belong to exactly these."""
        keys, tensors = random_gguf(self.family, self.sizes, seed=self.seed, metadata=self.metadata)
        total = zlib.crc32(repr(sorted(keys.items())).encode())
        for name in sorted(tensors):
            total = zlib.crc32(tensors[name].tobytes(), total)
        return total

    def write(self, path: pathlib.Path) -> pathlib.Path:
        """Writes the model's file."""
        return save_gguf(path, self.family, self.sizes, seed=self.seed, metadata=self.metadata)


_WIDE = Sizes(width=24, n_heads=4, n_kv_heads=1, head_dim=12, ffn=37, vocab=43)
"""Heads wider together than the model, one of keys; odd sizes elsewhere."""
_ODD = Sizes(width=36, n_heads=6, n_kv_heads=2, head_dim=6, ffn=29, vocab=41)
_EQUAL = Sizes(n_heads=4, n_kv_heads=4)
_SMALL = Sizes(width=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn=12, vocab=24)
_DEEP = dataclasses.replace(_SMALL, n_layers=5)
_FFN = dataclasses.replace(_WIDE, ffn=101)
"""Enough that no single rounding inside llama.cpp's GELU, which is to f16, shows in the logits."""
_MOE = Sizes(n_layers=3, expert_ffn=24, shared_ffn=24)
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
_LONG = {"rope.scaling.original_context_length": 512, "rope.scaling.attn_factor": 1.2}
_PARTIAL = dataclasses.replace(_ODD, head_dim=6, rotated=4)
_LATENT_YARN = _YARN | {"rope.scaling.yarn_log_multiplier": 0.0707}


def _layers(sizes: Sizes, count: int) -> Sizes:
    return dataclasses.replace(sizes, n_layers=count)


GOLDENS: dict[str, ArchGolden] = {
    "llama-fused": ArchGolden(FAMILIES["llama"].fused, _WIDE),
    "llama-moe": ArchGolden(
        FAMILIES["llama"].swap(
            "ffn_gate ffn_up ffn_down", "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
        ),
        _ODD,
    ),
    "mistral3": ArchGolden(FAMILIES["mistral3"].tied, _ODD, _YARN),
    "qwen": ArchGolden(FAMILIES["qwen"], _EQUAL, {"feed_forward_length": 96}),
    "qwen2-fused": ArchGolden(FAMILIES["qwen2"].fused, _ODD),
    "qwen2moe": ArchGolden(FAMILIES["qwen2moe"], _ODD),
    "qwen3-fused": ArchGolden(FAMILIES["qwen3"].fused, _WIDE),
    "qwen3moe": ArchGolden(FAMILIES["qwen3moe"], _WIDE),
    "gemma": ArchGolden(FAMILIES["gemma"], _FFN),
    "gemma2": ArchGolden(
        FAMILIES["gemma2"],
        _layers(_FFN, 3),
        {
            "attention.sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ArchGolden(
        FAMILIES["gemma3"],
        _layers(dataclasses.replace(_SMALL, ffn=96), 7),
        {
            "attention.sliding_window": 7,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "gemma3-no-window": ArchGolden(
        FAMILIES["gemma3"], _ODD, {"final_logit_softcapping": 4.0, "rope.freq_base": 500.0}
    ),
    "phi2": ArchGolden(FAMILIES["phi2"], _PARTIAL),
    "phi3-short": ArchGolden(
        FAMILIES["phi3"].swap("output", "output rope_factors_long rope_factors_short"), _ODD, _LONG
    ),
    "phi3-long": ArchGolden(
        FAMILIES["phi3"].swap("output", "output rope_factors_long rope_factors_short"),
        _ODD,
        _LONG,
        context=1024,
    ),
    "phi3-split": ArchGolden(
        FAMILIES["phi3"].swap("attn_qkv", "attn_q attn_k attn_v"),
        _PARTIAL,
        {"attention.sliding_window": 8},
    ),
    "phimoe": ArchGolden(
        FAMILIES["phimoe"].swap("output+", "output+ rope_factors_long rope_factors_short"),
        _ODD,
        _LONG,
    ),
    "glm4": ArchGolden(FAMILIES["glm4"], dataclasses.replace(_WIDE, rotated=6)),
    "glm4moe": ArchGolden(
        FAMILIES["glm4moe"],
        dataclasses.replace(_MOE, rotated=4),
        {"expert_weights_scale": 1.5, "expert_weights_norm": True},
    ),
    "glm4moe-plain": ArchGolden(
        FAMILIES["glm4moe"].swap("attn_q_norm attn_k_norm", ""),
        dataclasses.replace(_MOE, n_dense=2),
    ),
    "chatglm": ArchGolden(FAMILIES["chatglm"], _PARTIAL),
    "chatglm-split": ArchGolden(
        FAMILIES["chatglm"].swap("attn_qkv+", "attn_q+ attn_k+ attn_v+"), _ODD
    ),
    "gpt-oss": ArchGolden(
        FAMILIES["gpt-oss"],
        dataclasses.replace(_WIDE, n_layers=3, expert_ffn=20),
        _YARN | {"attention.sliding_window": 11},
    ),
    "deepseek2": ArchGolden(
        FAMILIES["deepseek2"],
        _MOE,
        {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5},
    ),
    "deepseek2-groups": ArchGolden(
        FAMILIES["deepseek2"],
        dataclasses.replace(_MOE, n_experts=8, n_used=3, shared_ffn=48),
        {"expert_gating_func": 2, "expert_group_count": 4, "expert_group_used_count": 2},
    ),
    "deepseek2-old": ArchGolden(
        FAMILIES["deepseek2"].swap("attn_k_b attn_v_b", "attn_kv_b").swap("exp_probs_b-", ""),
        dataclasses.replace(_MOE, n_heads=3, value_dim=7),
        _LATENT_YARN,
    ),
    "deepseek2-yarn": ArchGolden(
        FAMILIES["deepseek2"].swap("ffn_gate_exps ffn_up_exps", "ffn_gate_up_exps"),
        dataclasses.replace(_MOE, n_heads=3),
        _LATENT_YARN,
    ),
    "deepseek2-lite": ArchGolden(
        FAMILIES["deepseek2"].swap("attn_q_a attn_q_a_norm attn_q_b", "attn_q"),
        _MOE,
        {"attention.q_lora_rank": 0},
    ),
    "command-r": ArchGolden(FAMILIES["command-r"], _ODD, {"logit_scale": 0.25}),
    "command-r-64": ArchGolden(
        FAMILIES["command-r"].swap("attn_v", "attn_v attn_q_norm@each attn_k_norm@each"),
        _layers(_SMALL, 64),
    ),
    "cohere2": ArchGolden(
        FAMILIES["cohere2"], _DEEP, {"attention.sliding_window": 6, "logit_scale": 0.5}
    ),
    "granite": ArchGolden(
        FAMILIES["granite"].tied,
        _WIDE,
        {
            "logit_scale": 3.0,
            "residual_scale": 0.4,
            "embedding_scale": 1.7,
            "attention.scale": 0.15,
        },
    ),
    "granite-no-rope": ArchGolden(
        FAMILIES["granite"], _ODD, {"logit_scale": 2.0, "rope.scaling.finetuned": False}
    ),
    "granitemoe": ArchGolden(
        FAMILIES["granitemoe"], _WIDE, {"logit_scale": 0.5, "attention.scale": 0.4}
    ),
    "granitemoe-shared": ArchGolden(
        dataclasses.replace(
            FAMILIES["granitemoe"].swap(
                "ffn_down_exps", "ffn_down_exps ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
            ),
            keys="expert_shared_feed_forward_length",
        ),
        _ODD,
        {"logit_scale": 2.0, "embedding_scale": 1.5, "residual_scale": 0.7},
    ),
    "olmo": ArchGolden(FAMILIES["olmo"].tied, _ODD, {"attention.clamp_kqv": 1.1}),
    "olmo2": ArchGolden(FAMILIES["olmo2"], _ODD),
    "olmo2-window": ArchGolden(FAMILIES["olmo2"], _DEEP, _YARN | {"attention.sliding_window": 10}),
    "olmoe": ArchGolden(FAMILIES["olmoe"], _EQUAL),
    "exaone4": ArchGolden(FAMILIES["exaone4"], _ODD, {"attention.sliding_window": 5}),
    "exaone4-64": ArchGolden(
        FAMILIES["exaone4"].swap("output", "output rope_freqs"),
        _layers(_SMALL, 64),
        {"attention.sliding_window": 5},
    ),
    "internlm2": ArchGolden(
        FAMILIES["internlm2"], _ODD, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}
    ),
    "stablelm": ArchGolden(FAMILIES["stablelm"], _PARTIAL),
    "stablelm-parallel": ArchGolden(
        FAMILIES["stablelm"]
        .swap("attn_v+", "attn_v+ attn_q_norm@each attn_k_norm@each")
        .swap("ffn_norm+", ""),
        _ODD,
    ),
    "starcoder2": ArchGolden(FAMILIES["starcoder2"].tied, _ODD),
    "falcon": ArchGolden(
        FAMILIES["falcon"].swap("attn_norm_2+", ""), dataclasses.replace(_ODD, n_kv_heads=1)
    ),
    "falcon-40b": ArchGolden(FAMILIES["falcon"].tied, _ODD),
    "gptneox": ArchGolden(
        FAMILIES["gptneox"],
        dataclasses.replace(_EQUAL, rotated=4),
        {"use_parallel_residual": False},
    ),
    "gptneox-parallel": ArchGolden(
        FAMILIES["gptneox"],
        dataclasses.replace(_EQUAL, rotated=2),
        {"use_parallel_residual": True},
    ),
    "gpt2": ArchGolden(FAMILIES["gpt2"].tied, _EQUAL),
    "bloom": ArchGolden(
        FAMILIES["bloom"].tied, Sizes(width=30, n_heads=5, n_kv_heads=5, head_dim=6)
    ),
    "mpt": ArchGolden(
        FAMILIES["mpt"].tied,
        Sizes(width=36, n_heads=6, n_kv_heads=2, head_dim=6),
        {"attention.max_alibi_bias": 4.0},
    ),
    "mpt-positions": ArchGolden(
        FAMILIES["mpt"]
        .swap("attn_norm attn_qkv attn_output", "attn_norm+ attn_qkv+ attn_output+")
        .swap("ffn_norm ffn_up ffn_down", "ffn_norm+ ffn_up+ ffn_down+")
        .swap("token_embd output_norm", "token_embd position_embd output_norm+"),
        _EQUAL,
        {"attention.clamp_kqv": 0.8},
    ),
    "smollm3": ArchGolden(FAMILIES["smollm3"].tied, _DEEP),
    "seed_oss": ArchGolden(FAMILIES["seed_oss"], _WIDE),
    "ernie4_5": ArchGolden(FAMILIES["ernie4_5"].tied, _WIDE),
    "hunyuan-dense": ArchGolden(
        FAMILIES["hunyuan-dense"].tied, _WIDE, {"rope.scaling.alpha": 50.0}
    ),
    "minicpm": ArchGolden(FAMILIES["minicpm"], _WIDE),
    "minicpm-long": ArchGolden(
        FAMILIES["minicpm"].tied.swap(
            "output_norm", "output_norm rope_factors_long rope_factors_short"
        ),
        _ODD,
        _LONG
        | {
            "rope.scaling.type": "longrope",
            "embedding_scale": 2.0,
            "residual_scale": 0.5,
            "logit_scale": 1.5,
        },
        context=1024,
    ),
    "nemotron": ArchGolden(
        FAMILIES["nemotron"].swap("ffn_up ffn_down", "ffn_up+ ffn_down+"), _PARTIAL
    ),
    "llada": ArchGolden(FAMILIES["llada"], _ODD),
    "baichuan": ArchGolden(FAMILIES["baichuan"], _layers(_SMALL, 32)),
    "baichuan-40": ArchGolden(FAMILIES["baichuan"], _layers(_SMALL, 40)),
    "arcee": ArchGolden(FAMILIES["arcee"], _ODD, _YARN),
    "arcee-factors": ArchGolden(
        FAMILIES["arcee"].tied.swap("output_norm", "output_norm rope_freqs"), _WIDE
    ),
    "exaone": ArchGolden(FAMILIES["exaone"].swap("output", "output rope_freqs"), _WIDE),
    "exaone-tied": ArchGolden(
        FAMILIES["exaone"].tied, _ODD, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}
    ),
    "ernie4_5-moe": ArchGolden(
        FAMILIES["ernie4_5-moe"].tied,
        dataclasses.replace(_ODD, n_layers=3),
        {"interleave_moe_layer_step": 1},
    ),
    "ernie4_5-moe-plain": ArchGolden(
        FAMILIES["ernie4_5-moe"]
        .swap("exp_probs_b-", "")
        .swap("ffn_gate_shexp ffn_up_shexp ffn_down_shexp", ""),
        dataclasses.replace(_WIDE, n_layers=3, n_dense=2),
        {"interleave_moe_layer_step": 1, "expert_shared_feed_forward_length": 0},
    ),
}


def stored(name: str) -> dict[str, np.ndarray]:
    """Of a golden: `logits` f32 [12, V] at the kept positions, and the model's `checksum`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def main() -> None:
    """Makes the goldens of the models named after the program anew, or all of them."""
    FOLDER.mkdir(exist_ok=True, parents=True)
    for name in sys.argv[1:] or GOLDENS:
        golden = GOLDENS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = golden.write(pathlib.Path(folder) / "model.gguf")
            logits = llama_cpp_logits(path, golden.tokens(), golden.context)
        np.savez_compressed(
            FOLDER / f"{name}.npz", logits=logits[KEPT], checksum=np.uint32(golden.checksum())
        )


if __name__ == "__main__":
    main()
