"""From GGUF metadata to a checked `ModelConfig`. No tensor data is read, nothing is allocated."""

import logging
from collections.abc import Iterable
from typing import NoReturn

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.io.gguf import GGUFFile
from rfjax.models.arch import ArchSpec
from rfjax.models.architectures import find_architecture
from rfjax.models.config import AttentionTemperature, Experts, LayerConfig, ModelConfig
from rfjax.ops.rope import Rope

logger = logging.getLogger(__name__)

_MAX_LAYERS = 4096
_MAX_SIZE = 1 << 31
_MAX_EXPERTS = 4096


def configure(gguf: GGUFFile, *, dtype: str = "float32") -> ModelConfig:
    """The model's configuration, cross-checked within the metadata and the tensor table.

    Head and vocabulary sizes come from metadata or tensor shapes, never from a silent default.

    Raises:
        ModelFormatError: a key is missing, of the wrong type, out of range or contradicts another.
        UnsupportedError: the architecture or a mechanism it asks for is not supported.
    """
    try:
        spec = find_architecture(gguf.architecture)
    except UnsupportedError as error:
        raise UnsupportedError(f"{gguf.path}: {error}") from None
    return _Reader(gguf, spec).config(dtype)


class _Reader:
    """One file's metadata under its architecture's prefix, with range checks."""

    def __init__(self, gguf: GGUFFile, spec: ArchSpec):
        self.gguf = gguf
        self.spec = spec

    def config(self, dtype: str) -> ModelConfig:
        n_layers = self.size("block_count", most=_MAX_LAYERS)
        d_model = self.size("embedding_length")
        eps = self.number("attention.layer_norm_rms_epsilon", least=0.0)
        return ModelConfig(
            architecture=self.spec.name,
            vocab_size=self.vocab_size(),
            d_model=d_model,
            context_length=self.size("context_length"),
            norm_eps=eps,
            layers=self.layers(n_layers, d_model),
            tied_output="output.weight" not in self.gguf.tensors,
            output_bias=self.spec.output_bias and "output.bias" in self.gguf.tensors,
            rope_factors=self.spec.rope_factors and "rope_freqs.weight" in self.gguf.tensors,
            dtype=dtype,
        )

    def layers(self, n_layers: int, d_model: int) -> tuple[LayerConfig, ...]:
        heads = self.per_layer("attention.head_count", n_layers)
        kv_heads = self.per_layer("attention.head_count_kv", n_layers, default=heads)
        experts = self.experts(n_layers)
        widths: tuple[int, ...] = (0,) * n_layers
        if experts is None:
            widths = self.per_layer("feed_forward_length", n_layers)
        head_dims = tuple(self.head_dim(d_model, n) for n in heads)
        ropes = {dim: self.rope(dim) for dim in set(head_dims)}
        temperature = self.temperature()
        layers = []
        for i in range(n_layers):
            if heads[i] % kv_heads[i]:
                self.refuse(
                    "attention.head_count_kv",
                    f"{kv_heads[i]} in layer {i}",
                    f"a divisor of the {heads[i]} query heads",
                )
            layers.append(
                LayerConfig(
                    n_heads=heads[i],
                    n_kv_heads=kv_heads[i],
                    head_dim=head_dims[i],
                    attention_scale=head_dims[i] ** -0.5,
                    mask=self.spec.mask,
                    rope=ropes[head_dims[i]],
                    qk_norm=self.spec.qk_norm,
                    activation=self.spec.activation,
                    ffn_dim=widths[i],
                    experts=None if experts is None else experts[i],
                    biases=self.biases(i),
                    temperature=temperature,
                )
            )
        return tuple(layers)

    def vocab_size(self) -> int:
        """From the tokenizer's table and the embedding's shape, which must agree.

        `vocab_size` in the metadata counts where there is no table; beside one, llama.cpp does not
        read it, and a contradiction is only logged.
        """
        tokens = self.gguf.metadata.get("tokenizer.ggml.tokens")
        stated = self.gguf.get_int(self.key("vocab_size"), None)
        embedding = self.gguf.tensors.get("token_embd.weight")
        if embedding is not None and len(embedding.shape) != 2:
            raise ModelFormatError(
                f"{self.gguf.path}: token_embd.weight has shape {embedding.shape}, expected "
                "(tokens, embedding length). Convert the model again"
            )
        found = {
            "tokenizer.ggml.tokens has": len(tokens) if isinstance(tokens, tuple) else None,
            f"{self.key('vocab_size')} is": stated if tokens is None else None,
            "token_embd.weight has": embedding.shape[0] if embedding else None,
        }
        if stated is not None and isinstance(tokens, tuple) and stated != len(tokens):
            logger.warning(
                "%s: %s is %d, but the tokenizer has %d tokens, which is what counts",
                self.gguf.path,
                self.key("vocab_size"),
                stated,
                len(tokens),
            )
        sizes = {what: size for what, size in found.items() if size is not None}
        if len(set(sizes.values())) > 1 or not sizes:
            listed = ", ".join(f"{what} {size}" for what, size in sizes.items()) or "no source"
            raise ModelFormatError(
                f"{self.gguf.path}: the vocabulary size is not clear: {listed}; "
                "expected one number of tokens everywhere. Convert the model again"
            )
        size = next(iter(sizes.values()))
        self.check_size("vocab_size", size)
        return size

    def head_dim(self, d_model: int, n_heads: int) -> int:
        stated = self.gguf.get_int(self.key("attention.key_length"), None)
        if stated is None:
            if d_model % n_heads:
                self.refuse(
                    "attention.head_count",
                    f"{n_heads} heads over an embedding of {d_model}, and no attention.key_length",
                    "a divisor of the embedding length, or an explicit key length",
                )
            stated = d_model // n_heads
        self.check_size("attention.key_length", stated)
        values = self.gguf.get_int(self.key("attention.value_length"), stated)
        if values != stated:
            raise UnsupportedError(
                f"{self.gguf.path}: keys of {stated} and values of {values} elements a head; "
                f"{self.spec.name} is supported with equal lengths"
            )
        return stated

    def rope(self, head_dim: int) -> Rope:
        dimension = self.size("rope.dimension_count", default=head_dim)
        if dimension > head_dim or dimension % 2:
            self.refuse("rope.dimension_count", str(dimension), f"an even number up to {head_dim}")
        base = self.positive("rope.freq_base", default=10000.0)
        kind = self.gguf.get_str(self.key("rope.scaling.type"), "linear")
        if kind not in ("none", "linear", "yarn"):
            raise UnsupportedError(
                f"{self.gguf.path}: RoPE scaling {kind!r} is not supported for {self.spec.name}; "
                "supported: none, linear, yarn"
            )
        old = self.number("rope.scale_linear", default=0.0)
        factor = self.number("rope.scaling.factor", default=old) or 1.0
        if not factor > 0:
            self.refuse("rope.scaling.factor", repr(factor), "a positive number")
        attention_factor = self.number("rope.scaling.attn_factor", default=1.0)
        if kind == "yarn":
            original = self.size(
                "rope.scaling.original_context_length", default=self.size("context_length")
            )
            if not base > 1:
                self.refuse("rope.freq_base", repr(base), "a number above 1, which YaRN needs")
            return Rope(
                self.spec.pairing,
                dimension,
                base,
                "yarn",
                factor,
                original_context=original,
                attention_factor=attention_factor,
                beta_fast=self.positive_optional("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=self.positive_optional("rope.scaling.yarn_beta_slow", 1.0),
                log_multiplier=self.optional("rope.scaling.yarn_log_multiplier", 0.0),
            )
        if kind == "none" or factor == 1.0:
            return Rope(self.spec.pairing, dimension, base, attention_factor=attention_factor)
        return Rope(
            self.spec.pairing, dimension, base, "linear", factor, attention_factor=attention_factor
        )

    def experts(self, n_layers: int) -> tuple[Experts, ...] | None:
        """The mixture of every layer, or None for a dense model."""
        n_experts = self.gguf.get_int(self.key("expert_count"), 0)
        if self.spec.experts == "never" or (self.spec.experts == "optional" and n_experts == 0):
            return None
        self.check_size("expert_count", n_experts, _MAX_EXPERTS)
        n_used = self.size("expert_used_count")
        if n_used > n_experts:
            self.refuse("expert_used_count", str(n_used), f"at most the {n_experts} experts")
        widths = self.gguf.get_ints(self.key("expert_feed_forward_length"), n_layers, (0,))
        if any(widths):
            widths = self.per_layer("expert_feed_forward_length", n_layers)
        else:
            widths = self.per_layer("feed_forward_length", n_layers)
            if not self.spec.dense_width_is_expert_width:
                widths = tuple(width // n_used for width in widths)
        return tuple(
            Experts(n_experts, n_used, width, normalize=self.spec.normalize_experts)
            for width in widths
        )

    def temperature(self) -> AttentionTemperature | None:
        scale = self.optional("attention.temperature_scale", 0.0)
        if not scale:
            return None
        length = self.size(
            "rope.scaling.original_context_length", default=self.size("context_length")
        )
        return AttentionTemperature(scale, length)

    def biases(self, layer: int) -> frozenset[str]:
        present = {
            stem
            for stem in self.spec.optional_biases
            if f"blk.{layer}.{stem}.bias" in self.gguf.tensors
        }
        return frozenset(present)

    def key(self, name: str) -> str:
        return f"{self.spec.name}.{name}"

    def size(self, name: str, *, default: int | None = None, most: int = _MAX_SIZE) -> int:
        """A count or length: at least 1. Without a default the key must be there."""
        if default is None:
            value = self.gguf.get_int(self.key(name))
        else:
            value = self.gguf.get_int(self.key(name), default)
        self.check_size(name, value, most)
        return value

    def check_size(self, name: str, value: int, most: int = _MAX_SIZE) -> None:
        if not 1 <= value <= most:
            self.refuse(name, str(value), f"1 to {most}")

    def per_layer(
        self, name: str, n_layers: int, default: Iterable[int] | None = None
    ) -> tuple[int, ...]:
        """One value for every layer: a number for all, or an array of one each."""
        if default is None:
            values = self.gguf.get_ints(self.key(name), n_layers)
        else:
            values = self.gguf.get_ints(self.key(name), n_layers, tuple(default))
        for value in values:
            self.check_size(name, value)
        return values

    def number(
        self, name: str, *, default: float | None = None, least: float = float("-inf")
    ) -> float:
        """A finite float. Without a default the key must be there."""
        if default is None:
            value = self.gguf.get_float(self.key(name))
        else:
            value = self.gguf.get_float(self.key(name), default)
        if not (least <= value < float("inf")):
            bound = "" if least == float("-inf") else f" of at least {least:g}"
            self.refuse(name, repr(value), f"a finite number{bound}")
        return value

    def positive(self, name: str, *, default: float) -> float:
        """A finite float above 0."""
        value = self.number(name, default=default)
        if not value > 0:
            self.refuse(name, repr(value), "a positive number")
        return value

    def optional(self, name: str, default: float) -> float:
        """A finite float of a mechanism that only some architectures have."""
        if name not in self.spec.optional_keys:
            return default
        return self.number(name, default=default)

    def positive_optional(self, name: str, default: float) -> float:
        """The same, above 0."""
        return self.positive(name, default=default) if name in self.spec.optional_keys else default

    def refuse(self, name: str, got: str, expected: str) -> NoReturn:
        raise ModelFormatError(
            f"{self.gguf.path}: metadata key {self.key(name)!r}: got {got}, expected {expected}. "
            "Convert the model again"
        )
