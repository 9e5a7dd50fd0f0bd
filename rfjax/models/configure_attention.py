"""From GGUF metadata to heads, windows and scales of attention."""

from typing import NamedTuple

import numpy as np

from rfjax.errors import UnsupportedError
from rfjax.models.arch import ArchSpec, Sizes
from rfjax.models.config import Latent, QKNorm
from rfjax.models.configure_rope import RopeReader
from rfjax.models.hyperparameters import Hyperparameters
from rfjax.ops.mask import Mask


class LayerHeads(NamedTuple):
    """Heads of one layer; with `latent`, `head_dim` is that of queries and keys."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    latent: Latent | None


class AttentionReader:
    """The keys `attention.*` of one file, read for one architecture.

    Args:
        hyper: the file's metadata.
        spec: the architecture.
        n_layers: layers of the decoder.
        stored: layers that the file has, of which arrays have an element each.
        d_model: width of the residual stream.
    """

    def __init__(
        self, hyper: Hyperparameters, spec: ArchSpec, n_layers: int, stored: int, d_model: int
    ):
        self.hyper = hyper
        self.spec = spec
        self.n_layers = n_layers
        self.stored = stored
        self.d_model = d_model
        self.tensors = hyper.gguf.tensors

    def heads(self) -> tuple[LayerHeads, ...]:
        """Of every layer."""
        hyper = self.hyper
        heads = hyper.per_layer("attention.head_count", self.stored)
        kv_heads = hyper.per_layer("attention.head_count_kv", self.stored, default=heads)
        if self.spec.latent:
            return tuple(self.latent_heads(n, layer) for layer, n in enumerate(self.own(heads)))
        for layer, (n, n_kv) in enumerate(zip(heads, kv_heads, strict=True)):
            if n % n_kv:
                hyper.refuse(
                    "attention.head_count_kv",
                    f"{n_kv} in layer {layer}",
                    f"a divisor of the {n} query heads",
                )
        pairs = zip(self.own(heads), self.own(kv_heads), strict=True)
        return tuple(LayerHeads(n, n_kv, self.head_dim(n), None) for n, n_kv in pairs)

    def own(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the decoder's layers."""
        return values[: self.n_layers]

    def head_dim(self, n_heads: int) -> int:
        """Elements of a head, alike for keys and values."""
        hyper = self.hyper
        stated = hyper.gguf.get_int(hyper.key("attention.key_length"), None)
        if stated is None:
            if self.d_model % n_heads:
                hyper.refuse(
                    "attention.head_count",
                    f"{n_heads} heads over an embedding of {self.d_model}, and no "
                    "attention.key_length",
                    "a divisor of the embedding length, or an explicit key length",
                )
            stated = self.d_model // n_heads
        hyper.check_size("attention.key_length", stated)
        values = hyper.gguf.get_int(hyper.key("attention.value_length"), stated)
        if values != stated:
            raise UnsupportedError(
                f"{hyper.gguf.path}: keys of {stated} and values of {values} elements a head; "
                f"{self.spec.name} is supported with equal lengths"
            )
        return stated

    def latent_heads(self, n_heads: int, layer: int) -> LayerHeads:
        """Latent attention: one head of keys and values, compressed."""
        hyper = self.hyper
        split = hyper.has("attention.key_length_mla")
        suffix = "_mla" if split else ""
        key_dim = hyper.size(f"attention.key_length{suffix}")
        value_dim = hyper.size(f"attention.value_length{suffix}")
        rope_dim = hyper.size("rope.dimension_count")
        if rope_dim >= key_dim:
            hyper.refuse("rope.dimension_count", str(rope_dim), f"less than the {key_dim} of a key")
        # Lite models do not compress queries, whatever their metadata says.
        q_rank = 0
        if f"blk.{layer}.attn_q.weight" not in self.tensors:
            q_rank = hyper.size("attention.q_lora_rank")
        latent = Latent(
            q_rank=q_rank,
            kv_rank=hyper.size("attention.kv_lora_rank"),
            nope_dim=key_dim - rope_dim,
            rope_dim=rope_dim,
            value_dim=value_dim,
            split=split,
        )
        return LayerHeads(n_heads, 1, key_dim, latent)

    def windows(self) -> tuple[int, ...]:
        """How many tokens each layer sees, 0 for all."""
        window, hyper = self.spec.window, self.hyper
        none = (0,) * self.n_layers
        if window is None or (window.n_layers and window.n_layers != self.n_layers):
            return none
        if window.size is None:
            size = hyper.size("attention.sliding_window")
        elif hyper.has("attention.sliding_window"):
            size = hyper.count("attention.sliding_window")
        else:
            size = window.size
        if not size:
            return none
        return tuple(size if windowed else 0 for windowed in self.pattern(window.period))

    def pattern(self, period: int) -> tuple[bool, ...]:
        """Which layers have windows."""
        hyper, name = self.hyper, "attention.sliding_window_pattern"
        value = hyper.gguf.metadata.get(hyper.key(name), period)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
            if len(value) < self.n_layers:
                hyper.refuse(name, f"{len(value)} elements", f"one for each of {self.n_layers}")
            return tuple(bool(v) for v in value[: self.n_layers])
        if type(value) is not int or value < 0:
            hyper.refuse(name, repr(value), "an integer of at least 0, or an array")
        return tuple(value == 0 or i % value < value - 1 for i in range(self.n_layers))

    def mask(self, window: int) -> Mask:
        """Of a layer that sees so many tokens."""
        if not self.hyper.flag("attention.causal", True):
            return Mask("bidirectional")
        return Mask("window", window) if window else self.spec.mask

    def rotates(self, layer: int, windows: tuple[int, ...]) -> bool:
        """Whether a layer has a rotation."""
        period = self.spec.unrotated_period
        if period and (layer + 1) % period == 0:
            return False
        if self.spec.rotated == "windowed" and any(windows):
            return windows[layer] > 0
        return True

    def scale(self, head_dim: int, sizes: Sizes, rope: RopeReader) -> float:
        """What multiplies scores."""
        if self.spec.latent:
            return rope.latent_scale(head_dim)
        own = self.spec.attention_scale
        default = head_dim**-0.5 if own is None else own(sizes) if callable(own) else own
        stated = self.hyper.optional("attention.scale", 0.0)
        return stated or default

    def qk_norm(self, layer: int) -> QKNorm | None:
        """Of a layer's queries and keys."""
        spec = self.spec
        if self.n_layers < spec.qk_norm_from:
            return None
        if spec.qk_norm_optional and f"blk.{layer}.attn_q_norm.weight" not in self.tensors:
            return None
        return spec.qk_norm
