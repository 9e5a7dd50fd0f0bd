"""Random models of every architecture, described by the tensors that their files hold.

A `Family` lists the tensors of a block and of the whole model in words such as `attn_q+`; sizes
are chosen freely. The weights follow from the seed alone (see `support.random_model.uniform`), so
that llama.cpp's logits of them can be stored beside the tests. Scales are such that each
mechanism matters: attention logits of order one, residuals no larger than what is added to them.
"""

import dataclasses
import pathlib

import numpy as np
from support.gguf_files import Tensors, write_gguf
from support.random_model import uniform


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a model; those of mechanisms that its family lacks do not matter.

    `n_dense`: layers before the first mixture of experts. `q_rank`, `kv_rank`, `nope_dim`,
    `rope_dim` and `value_dim` are those of latent attention. `rotated`: elements of a head that
    RoPE turns, 0 for all.
    """

    n_layers: int = 2
    width: int = 32
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 8
    rotated: int = 0
    ffn: int = 48
    vocab: int = 40
    n_experts: int = 6
    n_used: int = 2
    expert_ffn: int = 24
    shared_ffn: int = 20
    n_dense: int = 1
    q_rank: int = 14
    kv_rank: int = 12
    nope_dim: int = 10
    rope_dim: int = 6
    value_dim: int = 8


@dataclasses.dataclass(frozen=True)
class Family:
    """What the files of an architecture hold.

    Attributes:
        name: `general.architecture`.
        block: tensors of a layer. `attn_q` is `attn_q.weight`, `attn_q+` has a bias as well,
            `attn_q-` is a bias alone; `@each` and `@all` say that a norm of queries or keys has
            weights of its own for every head, or is one norm over all heads; `@fused` that the
            tensor holds gate and up.
        top: tensors of the whole model.
        dense: the blocks before the first one with experts, where those differ.
        layer_norm: norms subtract the mean.
        keys: metadata keys whose values are sizes (see `_size_keys`).
    """

    name: str
    block: str
    top: str = "token_embd output_norm output"
    dense: str = ""
    layer_norm: bool = False
    keys: str = ""

    def swap(self, old: str, new: str) -> "Family":
        """The family with other tensors in its blocks and at its top."""
        parts = {part: getattr(self, part).split() for part in ("block", "dense", "top")}
        changed = {}
        for part, words in parts.items():
            if set(old.split()) <= set(words):
                at = words.index(old.split()[0])
                kept = [word for word in words if word not in old.split()]
                changed[part] = " ".join(kept[:at] + new.split() + kept[at:])
        assert changed, f"{self.name} has no {old!r}"
        return dataclasses.replace(self, **changed)

    @property
    def tied(self) -> "Family":
        """The family with the embedding table as output projection."""
        return self.swap("output", "")

    @property
    def fused(self) -> "Family":
        """The family with queries, keys and values in one tensor."""
        plus = "+" if "attn_q+" in self.block.split() else ""
        return self.swap(f"attn_q{plus} attn_k{plus} attn_v{plus}", f"attn_qkv{plus}")


_QKV = "attn_q attn_k attn_v"
_QKV_BIASED = "attn_q+ attn_k+ attn_v+"
_FFN = "ffn_gate ffn_up ffn_down"
_EXPERTS = "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
_SHARED = "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
_QK_NORMS = "attn_q_norm attn_k_norm"
_LLAMA = f"attn_norm {_QKV} attn_output ffn_norm {_FFN}"
_GPT = "attn_norm+ attn_qkv+ attn_output+ ffn_norm+ ffn_up+ ffn_down+"
_LATENT = "attn_norm attn_q_a attn_q_a_norm attn_q_b attn_kv_a_mqa attn_kv_a_norm"
_LATENT += " attn_k_b attn_v_b attn_output ffn_norm"
_GLM_MOE = f"attn_norm {_QKV_BIASED} {_QK_NORMS} attn_output post_attention_norm"
_NORMED = "token_embd output_norm+ output"
_TIED = "token_embd output_norm"

FAMILIES = {
    family.name: family
    for family in (
        Family("llama", _LLAMA),
        Family("mistral3", _LLAMA),
        Family("qwen", f"attn_norm attn_qkv+ attn_output ffn_norm {_FFN}"),
        Family("qwen2", f"attn_norm {_QKV_BIASED} attn_output ffn_norm {_FFN}"),
        Family(
            "qwen2moe",
            f"attn_norm {_QKV_BIASED} attn_output ffn_norm {_EXPERTS} ffn_gate_inp_shexp {_SHARED}",
            keys="expert_feed_forward_length expert_shared_feed_forward_length",
        ),
        Family("qwen3", f"attn_norm {_QKV} {_QK_NORMS} attn_output ffn_norm {_FFN}"),
        Family(
            "qwen3moe",
            f"attn_norm {_QKV} {_QK_NORMS} attn_output ffn_norm {_EXPERTS}",
            keys="expert_feed_forward_length",
        ),
        Family("gemma", _LLAMA, _TIED),
        Family(
            "gemma2",
            f"attn_norm {_QKV} attn_output post_attention_norm ffn_norm {_FFN} post_ffw_norm",
            _TIED,
        ),
        Family(
            "gemma3",
            f"attn_norm {_QKV} {_QK_NORMS} attn_output post_attention_norm ffn_norm {_FFN}"
            " post_ffw_norm",
            _TIED,
        ),
        Family(
            "phi2",
            f"attn_norm+ {_QKV_BIASED} attn_output+ ffn_up+ ffn_down+",
            "token_embd output_norm+ output+",
            layer_norm=True,
        ),
        Family("phi3", "attn_norm attn_qkv attn_output ffn_norm ffn_up@fused ffn_down"),
        Family(
            "phimoe",
            f"attn_norm+ {_QKV_BIASED} attn_output+ ffn_norm+ {_EXPERTS}",
            "token_embd output_norm+ output+",
        ),
        Family(
            "glm4",
            f"attn_norm {_QKV_BIASED} attn_output post_attention_norm ffn_norm ffn_up@fused"
            " ffn_down post_ffw_norm",
        ),
        Family(
            "glm4moe",
            f"{_GLM_MOE} {_EXPERTS} exp_probs_b- {_SHARED}",
            dense=f"{_GLM_MOE} {_FFN}",
            keys="expert_feed_forward_length expert_shared_count leading_dense_block_count",
        ),
        Family("chatglm", "attn_norm attn_qkv+ attn_output ffn_norm ffn_up@fused ffn_down"),
        Family(
            "gpt-oss",
            f"attn_norm {_QKV_BIASED} attn_output+ attn_sinks post_attention_norm"
            " ffn_gate_inp+ ffn_gate_exps+ ffn_up_exps+ ffn_down_exps+",
            keys="expert_feed_forward_length",
        ),
        Family(
            "deepseek2",
            f"{_LATENT} {_EXPERTS} exp_probs_b- {_SHARED}",
            dense=f"{_LATENT} {_FFN}",
            keys="expert_feed_forward_length expert_shared_count leading_dense_block_count",
        ),
        Family("command-r", f"attn_norm {_QKV} attn_output {_FFN}", _TIED, layer_norm=True),
        Family("cohere2", f"attn_norm {_QKV} attn_output {_FFN}", _TIED, layer_norm=True),
        Family("granite", _LLAMA),
        Family("granitemoe", f"attn_norm {_QKV} attn_output ffn_norm {_EXPERTS}"),
        Family("olmo", f"{_QKV} attn_output {_FFN}", "token_embd output", layer_norm=True),
        Family(
            "olmo2",
            f"{_QKV} attn_q_norm@all attn_k_norm@all attn_output post_attention_norm {_FFN}"
            " post_ffw_norm",
        ),
        Family(
            "olmoe",
            f"attn_norm {_QKV} attn_q_norm@all attn_k_norm@all attn_output ffn_norm {_EXPERTS}",
        ),
        Family(
            "exaone4",
            f"{_QKV} {_QK_NORMS} attn_output post_attention_norm {_FFN} post_ffw_norm",
        ),
        Family("internlm2", _LLAMA),
        Family(
            "stablelm",
            f"attn_norm+ {_QKV_BIASED} attn_output ffn_norm+ {_FFN}",
            _NORMED,
            layer_norm=True,
        ),
        Family(
            "starcoder2",
            f"attn_norm+ {_QKV_BIASED} attn_output+ ffn_norm+ ffn_up+ ffn_down+",
            _NORMED,
            layer_norm=True,
        ),
        Family(
            "falcon",
            "attn_norm+ attn_norm_2+ attn_qkv attn_output ffn_up ffn_down",
            _NORMED,
            layer_norm=True,
        ),
        Family("gptneox", _GPT, _NORMED, layer_norm=True),
        Family("gpt2", _GPT, f"position_embd {_NORMED}", layer_norm=True),
        Family("bloom", _GPT, f"token_embd_norm+ {_NORMED}", layer_norm=True),
        Family("mpt", "attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down", layer_norm=True),
        Family("smollm3", _LLAMA),
        Family(
            "seed_oss",
            f"attn_norm {_QKV_BIASED} attn_output post_attention_norm {_FFN}",
        ),
        Family("ernie4_5", _LLAMA),
        Family("hunyuan-dense", f"attn_norm {_QKV} {_QK_NORMS} attn_output ffn_norm {_FFN}"),
        Family("minicpm", _LLAMA),
        Family(
            "nemotron",
            f"attn_norm+ {_QKV} attn_output ffn_norm+ ffn_up ffn_down",
            _NORMED,
            layer_norm=True,
        ),
        Family("llada", _LLAMA),
        Family("baichuan", _LLAMA),
        Family("arcee", f"attn_norm {_QKV} attn_output ffn_norm ffn_up ffn_down"),
        Family("exaone", _LLAMA),
        Family(
            "ernie4_5-moe",
            f"attn_norm {_QKV} attn_output ffn_norm {_EXPERTS} exp_probs_b- {_SHARED}",
            dense=_LLAMA,
            keys="expert_feed_forward_length expert_shared_feed_forward_length"
            " leading_dense_block_count",
        ),
    )
}
"""What real files of every architecture hold; variants are made by `swap`, `tied` and `fused`."""


def random_gguf(
    family: Family, sizes: Sizes, *, seed: int, metadata: dict[str, object] | None = None
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Metadata and f32 tensors of a model; `metadata` changes keys, without their prefix."""
    values = _metadata(family, sizes) | (metadata or {})
    keys: dict[str, object] = {
        "general.architecture": family.name,
        "tokenizer.ggml.model": "no_vocab",
    }
    keys |= {f"{family.name}.{key}": value for key, value in values.items() if value is not None}
    shapes = _shapes(family, sizes)
    tensors: dict[str, np.ndarray] = {}
    tied = "output" not in family.top.replace("+", "").split()
    for word in family.top.split():
        _draw(tensors, "", word, shapes, seed, tied=tied)
    for layer in range(sizes.n_layers):
        dense = family.dense and layer < sizes.n_dense
        for word in (family.dense if dense else family.block).split():
            _draw(tensors, f"blk.{layer}.", word, shapes, seed)
    return keys, tensors


def save_gguf(
    path: pathlib.Path,
    family: Family,
    sizes: Sizes,
    *,
    seed: int,
    metadata: dict[str, object] | None = None,
) -> pathlib.Path:
    """Writes a random model with f32 weights and returns its path."""
    keys, tensors = random_gguf(family, sizes, seed=seed, metadata=metadata)
    typed: Tensors = dict(tensors)
    return write_gguf(path, keys, typed)


def _size_keys(sizes: Sizes) -> dict[str, object]:
    return {
        "expert_feed_forward_length": sizes.expert_ffn,
        "expert_shared_feed_forward_length": sizes.shared_ffn,
        "expert_shared_count": sizes.shared_ffn // sizes.expert_ffn,
        "leading_dense_block_count": sizes.n_dense,
    }


def _metadata(family: Family, sizes: Sizes) -> dict[str, object]:
    """Keys that every file has, those of experts and latent attention, and the family's own."""
    norm = "layer_norm_epsilon" if family.layer_norm else "layer_norm_rms_epsilon"
    values: dict[str, object] = {
        "block_count": sizes.n_layers,
        "context_length": 256,
        "embedding_length": sizes.width,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.n_heads,
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        f"attention.{norm}": 1e-5,
        "rope.dimension_count": sizes.rotated or sizes.head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": sizes.vocab,
    }
    words = family.block.split()
    if "ffn_gate_inp" in {word.rstrip("+") for word in words}:
        values |= {"expert_count": sizes.n_experts, "expert_used_count": sizes.n_used}
    if "attn_kv_a_mqa" in words:
        values |= {
            "attention.kv_lora_rank": sizes.kv_rank,
            "attention.key_length": sizes.nope_dim + sizes.rope_dim,
            "attention.value_length": sizes.value_dim,
            "attention.head_count_kv": sizes.n_heads,
            "rope.dimension_count": sizes.rope_dim,
        }
        if "attn_q_b" in words:
            values["attention.q_lora_rank"] = sizes.q_rank
        if "attn_k_b" in words:
            values |= {
                "attention.key_length_mla": values["attention.key_length"],
                "attention.value_length_mla": values["attention.value_length"],
                "attention.key_length": sizes.kv_rank + sizes.rope_dim,
                "attention.value_length": sizes.kv_rank,
                "attention.head_count_kv": 1,
            }
    of_sizes = _size_keys(sizes)
    return values | {key: of_sizes[key] for key in family.keys.split()}


def _shapes(family: Family, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a file may hold, in NumPy's order."""
    width, head, ffn, ranks = sizes.width, sizes.head_dim, sizes.ffn, sizes
    q, kv, rows = sizes.n_heads * head, sizes.n_kv_heads * head, sizes.n_experts
    expert = sizes.expert_ffn if "expert_feed_forward_length" in family.keys else ffn
    latent = "attn_kv_a_mqa" in family.block.split()
    key = sizes.nope_dim + sizes.rope_dim
    rotated = sizes.rope_dim if latent else sizes.rotated or head
    norms = ("attn_norm", "attn_norm_2", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    norms += ("output_norm", "token_embd_norm", "ffn_gate_inp_shexp")
    factors = ("rope_freqs", "rope_factors_long", "rope_factors_short")
    return {
        **dict.fromkeys(norms, (width,)),
        **dict.fromkeys(factors, (rotated // 2,)),
        "token_embd": (sizes.vocab, width),
        "position_embd": (256, width),
        "output": (sizes.vocab, width),
        "attn_q": (sizes.n_heads * key if latent else q, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_qkv": (q + 2 * kv, width),
        "attn_output": (width, sizes.n_heads * sizes.value_dim if latent else q),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
        "attn_q_norm@each": (sizes.n_heads, head),
        "attn_k_norm@each": (sizes.n_kv_heads, head),
        "attn_q_norm@all": (q,),
        "attn_k_norm@all": (kv,),
        "attn_sinks": (sizes.n_heads,),
        "attn_q_a": (ranks.q_rank, width),
        "attn_q_a_norm": (ranks.q_rank,),
        "attn_q_b": (sizes.n_heads * key, ranks.q_rank),
        "attn_kv_a_mqa": (ranks.kv_rank + sizes.rope_dim, width),
        "attn_kv_a_norm": (ranks.kv_rank,),
        "attn_k_b": (sizes.n_heads, ranks.kv_rank, sizes.nope_dim),
        "attn_v_b": (sizes.n_heads, sizes.value_dim, ranks.kv_rank),
        "attn_kv_b": (sizes.n_heads * (sizes.nope_dim + sizes.value_dim), ranks.kv_rank),
        "ffn_gate": (ffn, width),
        "ffn_up": (ffn, width),
        "ffn_up@fused": (2 * ffn, width),
        "ffn_down": (width, ffn),
        "ffn_gate_inp": (rows, width),
        "ffn_gate_exps": (rows, expert, width),
        "ffn_up_exps": (rows, expert, width),
        "ffn_gate_up_exps": (rows, 2 * expert, width),
        "ffn_down_exps": (rows, width, expert),
        "exp_probs_b": (rows, 1),  # a bias alone; its length is that of a weight without columns
        "ffn_gate_shexp": (sizes.shared_ffn, width),
        "ffn_up_shexp": (sizes.shared_ffn, width),
        "ffn_down_shexp": (width, sizes.shared_ffn),
    }


_GAINS = {
    "attn_q": 1.5,
    "attn_k": 1.5,
    "attn_qkv": 1.5,
    "attn_q_b": 1.5,
    "attn_k_b": 1.5,
    "attn_output": 2.0,
    "ffn_down": 2.0,
    "ffn_down_exps": 2.0,
    "ffn_gate_inp": 2.0,
}
"""Deviation of a matrix times the square root of its columns, where that is not 1."""


def _draw(
    tensors: dict[str, np.ndarray],
    prefix: str,
    word: str,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    *,
    tied: bool = False,
) -> None:
    """Adds the tensors of one word of a family."""
    shape = shapes[word.rstrip("+-")]
    stem = word.rstrip("+-").split("@")[0]
    weight, bias = f"{prefix}{stem}.weight", f"{prefix}{stem}.bias"
    if not word.endswith("-"):
        if stem.startswith("rope_f"):
            steps = {"rope_freqs": 1.0, "rope_factors_long": 0.75, "rope_factors_short": 0.25}
            tensors[weight] = 1.0 + np.arange(shape[0], dtype=np.float32) * np.float32(steps[stem])
        elif stem.endswith(("_norm", "_norm_2")):
            tensors[weight] = np.float32(1.0) + uniform(seed, weight, shape, 0.25)
        elif stem in ("token_embd", "position_embd", "attn_sinks"):
            # As output projection, larger values would repeat the token that was read.
            tensors[weight] = uniform(seed, weight, shape, 0.3 if tied else 1.0)
        else:
            tensors[weight] = uniform(
                seed, weight, shape, _GAINS.get(stem, 1.0) * shape[-1] ** -0.5
            )
    if word.endswith(("+", "-")):
        rows = shape if len(shape) == 1 else shape[:-1]
        tensors[bias] = uniform(seed, bias, rows, 0.3)
