"""From GGUF metadata to rotations, and what depends on them."""

from rfjax.errors import UnsupportedError
from rfjax.models.arch import ArchSpec
from rfjax.models.config import AttentionTemperature
from rfjax.models.hyperparameters import Hyperparameters
from rfjax.models.latent_scale import latent_scale
from rfjax.ops.rope import Rope

_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
_MAX_ALPHA = 1e6
_KINDS = ("none", "linear", "yarn", "longrope")


class RopeReader:
    """The keys `rope.*` of one file, read for one architecture."""

    def __init__(self, hyper: Hyperparameters, spec: ArchSpec, context_length: int):
        self.hyper = hyper
        self.spec = spec
        self.kind = hyper.gguf.get_str(hyper.key("rope.scaling.type"), "linear")
        if self.kind not in _KINDS:
            raise UnsupportedError(
                f"{hyper.gguf.path}: RoPE scaling {self.kind!r} is not supported for {spec.name}; "
                f"supported: {', '.join(_KINDS)}"
            )
        old = hyper.number("rope.scale_linear", default=0.0)
        self.factor = hyper.number("rope.scaling.factor", default=old) or 1.0
        if not self.factor > 0:
            hyper.refuse("rope.scaling.factor", repr(self.factor), "a positive number")
        self.original = hyper.size("rope.scaling.original_context_length", default=context_length)
        self.context_length = context_length
        self.attention_factor = hyper.number("rope.scaling.attn_factor", default=1.0)
        self.log_multiplier = hyper.optional("rope.scaling.yarn_log_multiplier", 0.0)

    def rope(self, head_dim: int, *, windowed: bool) -> Rope | None:
        """The rotation of a layer whose heads have `head_dim` elements."""
        hyper, spec = self.hyper, self.spec
        pairing = "half" if self.sections() else spec.pairing
        if pairing is None or not self.finetuned():
            return None
        dimension = hyper.size("rope.dimension_count", default=head_dim)
        if dimension > head_dim or dimension % 2:
            hyper.refuse("rope.dimension_count", str(dimension), f"an even number up to {head_dim}")
        base = self.base(head_dim, windowed)
        if windowed and spec.window is not None and not spec.window.extended:
            return Rope(pairing, dimension, base)
        if self.kind == "yarn":
            return self.yarn(pairing, dimension, base)
        scaling = "none" if self.kind == "none" or self.factor == 1.0 else "linear"
        factor = 1.0 if scaling == "none" else self.factor
        return Rope(
            pairing, dimension, base, scaling, factor, attention_factor=self.attention_factor
        )

    def yarn(self, pairing, dimension: int, base: float) -> Rope:
        hyper = self.hyper
        if not base > 1:
            hyper.refuse("rope.freq_base", repr(base), "a number above 1, which YaRN needs")
        multiplier = self.log_multiplier
        if self.spec.latent and multiplier:
            multiplier = 1.0  # rotations keep their length: the scores grow instead
        return Rope(
            pairing,
            dimension,
            base,
            "yarn",
            self.factor,
            original_context=self.original,
            attention_factor=self.attention_factor,
            beta_fast=hyper.positive_optional("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=hyper.positive_optional("rope.scaling.yarn_beta_slow", 1.0),
            log_multiplier=multiplier,
        )

    def latent_scale(self, key_dim: int) -> float:
        """What multiplies the scores of latent attention."""
        scaling = "linear" if self.kind == "longrope" else self.kind
        return latent_scale(
            key_dim,
            scaling=scaling,
            factor=self.factor,
            log_multiplier=self.log_multiplier,
            attention_factor=self.attention_factor,
        )

    def base(self, head_dim: int, windowed: bool) -> float:
        hyper, window = self.hyper, self.spec.window
        base = hyper.positive("rope.freq_base", default=10000.0)
        alpha = hyper.optional("rope.scaling.alpha", 0.0)
        if alpha > 0.0:  # NTK-aware extension: a larger base
            if head_dim <= 2 or not 1 / _MAX_ALPHA <= alpha <= _MAX_ALPHA:
                hyper.refuse(
                    "rope.scaling.alpha",
                    f"{alpha!r} and heads of {head_dim}",
                    f"{1 / _MAX_ALPHA:g} to {_MAX_ALPHA:g} and heads of more than 2 elements",
                )
            base *= alpha ** (head_dim / (head_dim - 2))
        if windowed and window is not None:
            default = base if window.base is None else window.base
            base = hyper.positive_optional("rope.freq_base_swa", default)
        return base

    def finetuned(self) -> bool:
        """Granite's files say so of models without rotation."""
        if "rope.scaling.finetuned" not in self.hyper.keys:
            return True
        return self.hyper.flag("rope.scaling.finetuned", True)

    def sections(self) -> bool:
        """Whether there are several position axes; those of text are equal."""
        if not self.spec.sections:
            return False
        key = self.hyper.key("rope.dimension_sections")
        values = self.hyper.gguf.get_array(key, int, None)
        if values is None or len(values) < 2 or min(values[:2]) <= 0:
            return False
        if len(values) > 3 and values[3]:
            self.hyper.refuse("rope.dimension_sections", str(values.tolist()), "a fourth of 0")
        return True

    def stored_factors(self) -> tuple[str, ...]:
        """Stems of the tensors of frequency factors that count."""
        spec = self.spec
        long = spec.long_factors == "always"
        if spec.long_factors == "scaling":
            long = self.kind == "longrope"
        wanted = (spec.rope_factors and not long, long, long)
        tensors = self.hyper.gguf.tensors
        return tuple(
            stem
            for stem, used in zip(_FACTORS, wanted, strict=True)
            if used and f"{stem}.weight" in tensors
        )

    def chosen_factors(self, stored: tuple[str, ...], context: int | None) -> str | None:
        """Of those the one to use: the long ones for contexts beyond the original."""
        if "rope_freqs" in stored:
            return "rope_freqs"
        tokens = self.context_length if context is None else context
        chosen = "rope_factors_long" if tokens > self.original else "rope_factors_short"
        return chosen if chosen in stored else None

    def temperature(self) -> AttentionTemperature | None:
        """How queries grow with their position."""
        hyper = self.hyper
        scale = hyper.optional("attention.temperature_scale", 0.0)
        if not scale:
            return None
        if "attention.temperature_length" in hyper.keys:
            return AttentionTemperature(scale, hyper.size("attention.temperature_length"))
        return AttentionTemperature(scale, self.original)
