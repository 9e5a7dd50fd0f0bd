"""From GGUF metadata to a checked `ModelConfig`. No tensor data is read, nothing is allocated."""

import logging

from rfjax.errors import ModelFormatError, UnsupportedError
from rfjax.io.gguf import GGUFFile
from rfjax.models.arch import ArchSpec, Number, Sizes
from rfjax.models.architectures import ARCHITECTURES, find_architecture
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.configure_attention import AttentionReader, LayerHeads
from rfjax.models.configure_experts import mixtures
from rfjax.models.configure_rope import RopeReader
from rfjax.models.hyperparameters import Hyperparameters
from rfjax.models.nearest import find_nearest

logger = logging.getLogger(__name__)

_MAX_LAYERS = 4096
_TOP_STEMS = ("output", "output_norm", "token_embd_norm")


def configure(gguf: GGUFFile, *, dtype: str = "float32", context: int | None = None) -> ModelConfig:
    """The model's configuration, cross-checked within the metadata and the tensor table.

    Head and vocabulary sizes come from metadata or tensor shapes, never from a silent default.

    Args:
        gguf: the file.
        dtype: of the activations.
        context: most tokens of a sequence, by which some models choose their rotation; None is
            what the model was made for.

    Raises:
        ModelFormatError: a key is missing, of the wrong type, out of range or contradicts another.
        UnsupportedError: the architecture or a mechanism it asks for is not supported. Of an
            unknown one the message names the nearest, and which tensors do not fit that.
    """
    try:
        spec = find_architecture(gguf.architecture)
    except UnsupportedError as error:
        nearest = find_nearest(gguf, ARCHITECTURES.values(), configure_as)
        if nearest is None:
            raise UnsupportedError(f"{gguf.path}: {error}") from None
        raise UnsupportedError(
            f"{gguf.path}: architecture {gguf.architecture!r} is not supported; `rfjax archs` "
            f"lists those that are. {nearest}"
        ) from None
    return configure_as(gguf, spec, dtype=dtype, context=context)


def configure_as(
    gguf: GGUFFile, spec: ArchSpec, *, dtype: str = "float32", context: int | None = None
) -> ModelConfig:
    """The configuration of a file as if it were of that architecture; else as `configure`."""
    return _Reader(Hyperparameters(gguf, spec.keys), spec).config(dtype, context)


class _Reader:
    """One file's metadata, read for one architecture."""

    def __init__(self, hyper: Hyperparameters, spec: ArchSpec):
        self.hyper = hyper
        self.spec = spec
        self.tensors = hyper.gguf.tensors

    def config(self, dtype: str, context: int | None) -> ModelConfig:
        hyper, spec = self.hyper, self.spec
        for name in sorted(spec.required_keys):
            hyper.number(name)
        stored = hyper.size("block_count", most=_MAX_LAYERS)
        # Layers for predicting several tokens at a time stand behind the model's own.
        ahead = hyper.count("nextn_predict_layers", most=stored - 1)
        n_layers = stored - ahead
        d_model = hyper.size("embedding_length")
        context_length = hyper.size("context_length")
        eps_key = {
            "rms": "attention.layer_norm_rms_epsilon",
            "layer": "attention.layer_norm_epsilon",
        }[spec.norm]
        attention = AttentionReader(hyper, spec, n_layers, stored, d_model)
        heads = attention.heads()
        sizes = Sizes(n_layers, d_model, heads[0].n_heads, heads[0].head_dim)
        rope = RopeReader(hyper, spec, context_length)
        layers = self.layers(attention, heads, sizes, rope, stored)
        # Without a rotation nothing says how long they would be.
        factors = rope.stored_factors() if any(layer.rope for layer in layers) else ()
        positions = spec.positions == "always" or (
            spec.positions == "optional" and "position_embd.weight" in self.tensors
        )
        return ModelConfig(
            architecture=spec.name,
            vocab_size=self.vocab_size(),
            d_model=d_model,
            context_length=context_length,
            norm_eps=hyper.number(eps_key, least=0.0),
            layers=layers,
            tied_output=spec.tied_output or "output.weight" not in self.tensors,
            norm=spec.norm,
            norm_weights=spec.norm_weights,
            biases=frozenset(s for s in _TOP_STEMS if self.biased(s, s)),
            embedding_norm=spec.embedding_norm,
            embedding_scale=self.scale("embedding_scale", spec.embedding_scale, sizes),
            learned_positions=context_length if positions else 0,
            logit_scale=self.logit_scale(sizes),
            final_softcap=self.bound("final_logit_softcapping", spec.final_softcap),
            rope_factors=rope.chosen_factors(factors, context),
            stored_factors=factors,
            dtype=dtype,
        )

    def layers(
        self,
        attention: AttentionReader,
        heads: tuple[LayerHeads, ...],
        sizes: Sizes,
        rope: RopeReader,
        stored: int,
    ) -> tuple[LayerConfig, ...]:
        hyper, spec = self.hyper, self.spec
        experts = mixtures(hyper, spec, sizes.n_layers, stored)
        widths: tuple[int, ...] = (0,) * sizes.n_layers
        if None in experts:
            widths = self.widths(sizes.n_layers, stored)
        windows = attention.windows()
        clamp = self.bound("attention.clamp_kqv", 0.0)
        alibi = self.bound("attention.max_alibi_bias", _value(spec.alibi, sizes))
        residual = self.scale("residual_scale", spec.residual_scale, sizes)
        layers = []
        for i, (own, window, mixture) in enumerate(zip(heads, windows, experts, strict=True)):
            rotated = own.head_dim if own.latent is None else own.latent.rope_dim
            unrotated = alibi or not attention.rotates(i, windows)
            layers.append(
                LayerConfig(
                    n_heads=own.n_heads,
                    n_kv_heads=own.n_kv_heads,
                    head_dim=own.head_dim,
                    attention_scale=attention.scale(own.head_dim, sizes, rope),
                    mask=attention.mask(window),
                    rope=None if unrotated else rope.rope(rotated, windowed=window > 0),
                    activation=spec.activation,
                    ffn_dim=0 if mixture is not None else widths[i],
                    experts=mixture,
                    biases=self.layer_biases(i),
                    norms=self.norms(i),
                    qk_norm=attention.qk_norm(i),
                    gated=spec.gated,
                    parallel=self.parallel(i),
                    softcap=self.bound("attn_logit_softcapping", spec.softcap),
                    sinks=spec.sinks,
                    alibi=alibi,
                    clamp_qkv=clamp,
                    residual_scale=residual,
                    temperature=rope.temperature(),
                    latent=own.latent,
                )
            )
        return tuple(layers)

    def widths(self, n_layers: int, stored: int) -> tuple[int, ...]:
        """Of the dense network in every layer."""
        stated = self.hyper.per_layer("feed_forward_length", stored)[:n_layers]
        share = self.spec.ffn_share
        for width in stated:
            if width % share:
                self.hyper.refuse("feed_forward_length", str(width), f"a multiple of {share}")
        return tuple(width // share for width in stated)

    def norms(self, layer: int) -> frozenset[str]:
        found = {
            stem
            for stem in self.spec.optional_norms
            if f"blk.{layer}.{stem}.weight" in self.tensors
        }
        return self.spec.norms | found

    def parallel(self, layer: int) -> bool:
        how = self.spec.parallel
        if how == "by_key":
            return self.hyper.flag("use_parallel_residual")
        if how == "without_ffn_norm":
            return "ffn_norm" not in self.norms(layer)
        return how == "always"

    def layer_biases(self, layer: int) -> frozenset[str]:
        stems = (self.spec.biases | self.spec.optional_biases).difference(_TOP_STEMS)
        return frozenset(s for s in stems if self.biased(s, f"blk.{layer}.{s}"))

    def biased(self, stem: str, name: str) -> bool:
        """Whether a projection or norm has a bias: it must, or the file has one."""
        if stem in self.spec.biases:
            return True
        if stem not in self.spec.optional_biases:
            return False
        found = f"{name}.bias" in self.tensors
        if stem in ("attn_q", "attn_k", "attn_v"):
            found |= f"{name.removesuffix(stem)}attn_qkv.bias" in self.tensors
        return found

    def scale(self, name: str, value: Number, sizes: Sizes) -> float:
        """A factor from its key where the architecture reads one; 0 is none, as in llama.cpp."""
        return self.hyper.optional(name, _value(value, sizes)) or 1.0

    def logit_scale(self, sizes: Sizes) -> float:
        """What logits are multiplied by."""
        stated = self.hyper.optional("logit_scale", _value(self.spec.logit_scale, sizes))
        if not stated:
            return 1.0
        return 1.0 / stated if self.spec.logit_divisor else stated

    def bound(self, name: str, default: float) -> float:
        """A number that something is limited by, where the architecture reads one; 0 is none."""
        value = self.hyper.optional(name, default)
        if value < 0:
            self.hyper.refuse(name, repr(value), "a number of at least 0")
        return value

    def vocab_size(self) -> int:
        """From the tokenizer's table and the embedding's shape, which must agree.

        `vocab_size` in the metadata counts where there is no table; beside one, llama.cpp does not
        read it, and a contradiction is only logged.
        """
        gguf, key = self.hyper.gguf, self.hyper.key("vocab_size")
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        stated = gguf.get_int(key, None)
        embedding = self.tensors.get("token_embd.weight")
        if embedding is not None and len(embedding.shape) != 2:
            raise ModelFormatError(
                f"{gguf.path}: token_embd.weight has shape {embedding.shape}, expected "
                "(tokens, embedding length). Convert the model again"
            )
        found = {
            "tokenizer.ggml.tokens has": len(tokens) if isinstance(tokens, tuple) else None,
            f"{key} is": stated if tokens is None else None,
            "token_embd.weight has": embedding.shape[0] if embedding else None,
        }
        if stated is not None and isinstance(tokens, tuple) and stated != len(tokens):
            logger.warning(
                "%s: %s is %d, but the tokenizer has %d tokens, which is what counts",
                gguf.path,
                key,
                stated,
                len(tokens),
            )
        sizes = {what: size for what, size in found.items() if size is not None}
        if len(set(sizes.values())) > 1 or not sizes:
            listed = ", ".join(f"{what} {size}" for what, size in sizes.items()) or "no source"
            raise ModelFormatError(
                f"{gguf.path}: the vocabulary size is not clear: {listed}; "
                "expected one number of tokens everywhere. Convert the model again"
            )
        size = next(iter(sizes.values()))
        self.hyper.check_size("vocab_size", size)
        return size


def _value(number: Number, sizes: Sizes) -> float:
    return number(sizes) if callable(number) else number
