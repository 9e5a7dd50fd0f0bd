"""Sizes of a model without its weights, as the files in `configs/shapes` state them."""

import dataclasses
import difflib
import importlib.resources
import pathlib

from rfjax.config import from_toml
from rfjax.errors import ConfigError
from rfjax.models.arch import ArchSpec
from rfjax.models.architectures import find_architecture
from rfjax.models.config import Experts, LayerConfig, ModelConfig
from rfjax.models.type_mix import MixModel
from rfjax.ops.rope import Rope


@dataclasses.dataclass(frozen=True)
class ExpertsShape:
    """A sparse mixture: `n_used` of `n_experts` feed-forward networks of width `ffn_dim`."""

    n_experts: int
    n_used: int
    ffn_dim: int

    def __post_init__(self):
        _check_sizes(self, ("n_experts", "n_used", "ffn_dim"))
        if self.n_used > self.n_experts:
            raise ConfigError(
                f"n_used: got {self.n_used}, expected at most the {self.n_experts} experts"
            )


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Every size of a model.

    Attributes:
        architecture: a name of `rfjax.models.architectures.ARCHITECTURES`.
        label: what people call the size, such as "8B".
        vocab_size: tokens.
        d_model: width of the residual stream.
        n_layers: layers.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of `n_heads`.
        head_dim: elements of a head.
        ffn_dim: width of the dense feed-forward network; 0 where there are experts.
        experts: the sparse mixture, or None.
        context_length: tokens of context.
        norm_eps: of the RMS norms.
        rope_base: of the rotary embedding.
        rope_factors: there is a tensor of frequency factors.
        tied_output: the embedding table is the output matrix too.
        first_layer, whole_layers: where the layers stand in a whole model, of which these are a
            part; a type mix stores layers by their place. 0 layers: this is the whole model.
    """

    architecture: str
    label: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope_base: float
    tied_output: bool
    ffn_dim: int = 0
    experts: ExpertsShape | None = None
    rope_factors: bool = False
    first_layer: int = 0
    whole_layers: int = 0

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim")
        _check_sizes(self, (*sizes, "context_length"))
        find_architecture(self.architecture)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_kv_heads: got {self.n_kv_heads}, expected a divisor of the {self.n_heads} heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim: got {self.head_dim}, expected an even number")
        if (self.experts is None) == (self.ffn_dim < 1):
            raise ConfigError(
                f"ffn_dim: got {self.ffn_dim}, expected a width of at least 1 or a table experts, "
                "and not both"
            )
        for name in ("norm_eps", "rope_base"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a positive number")
        if self.first_layer < 0 or (
            self.whole_layers and self.first_layer + self.n_layers > self.whole_layers
        ):
            raise ConfigError(
                f"first_layer: got {self.first_layer}, and {self.n_layers} layers from there are "
                f"not within the {self.whole_layers} of the whole model"
            )

    def model_config(self, dtype: str) -> ModelConfig:
        """The configuration of a model of this shape, activations in `dtype`.

        Raises:
            ConfigError: the architecture has no mixtures, or nothing but them, or has
                mechanisms that a shape does not state.
        """
        spec = find_architecture(self.architecture)
        _check_plain(spec)
        needs = None if spec.mixture is None else spec.mixture.when
        if (needs == "always" and self.experts is None) or (needs is None and self.experts):
            what = "must have" if self.experts is None else "has no"
            raise ConfigError(f"experts: architecture {self.architecture!r} {what} experts")
        experts = None
        if self.experts is not None and spec.mixture is not None:
            experts = Experts(
                self.experts.n_experts,
                self.experts.n_used,
                self.experts.ffn_dim,
                normalize=bool(spec.mixture.normalize),
            )
        assert spec.pairing is not None
        layer = LayerConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            attention_scale=self.head_dim**-0.5,
            mask=spec.mask,
            rope=Rope(spec.pairing, self.head_dim, self.rope_base),
            activation=spec.activation,
            ffn_dim=self.ffn_dim,
            experts=experts,
            qk_norm=spec.qk_norm,
        )
        factors = ("rope_freqs",) if self.rope_factors else ()
        return ModelConfig(
            architecture=self.architecture,
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            context_length=self.context_length,
            norm_eps=self.norm_eps,
            layers=(layer,) * self.n_layers,
            tied_output=self.tied_output,
            rope_factors=factors[0] if factors else None,
            stored_factors=factors,
            dtype=dtype,
        )

    def mix_model(self) -> MixModel:
        """What a type mix asks of the model."""
        return MixModel(
            n_layers=self.whole_layers or self.n_layers,
            first_layer=self.first_layer,
            kv_group=self.n_heads // self.n_kv_heads,
            n_experts=0 if self.experts is None else self.experts.n_experts,
            tied_output=self.tied_output,
        )


def shape_names() -> tuple[str, ...]:
    """Names of the shapes that come with the package."""
    files = _folder().iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".toml")))


def load_shape(name: str) -> ModelShape:
    """A shape by its name, or from a TOML file of the same keys where `name` ends in `.toml`.

    Raises:
        ConfigError: no such shape or file, or its content makes no sense.
        UnsupportedError: the architecture is not supported.
    """
    if name.endswith(".toml"):
        return from_toml(ModelShape, pathlib.Path(name))
    names = shape_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? Known" if near else "known"
        raise ConfigError(
            f"no shape is named {name!r}; {hint}: {', '.join(names)}, or a file that ends in .toml"
        )
    with importlib.resources.as_file(_folder() / f"{name}.toml") as path:
        return from_toml(ModelShape, path)


def _folder():
    return importlib.resources.files("rfjax") / "configs" / "shapes"


def _check_plain(spec: ArchSpec) -> None:
    """Refuse architectures with more mechanisms than a shape states."""
    names = ("name", "pairing", "qk_norm", "mixture", "rope_factors")
    stated = {name: getattr(spec, name) for name in names}
    free = {name: getattr(spec, name) for name in ("biases", "optional_biases", "long_factors")}
    if spec != ArchSpec(**stated, **free) or spec.biases or spec.pairing is None:
        raise ConfigError(
            f"architecture: got {spec.name!r}, which has mechanisms that a shape does not state; "
            "expected one like llama or qwen3"
        )


def _check_sizes(shape: ExpertsShape | ModelShape, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(shape, name) < 1:
            raise ConfigError(f"{name}: got {getattr(shape, name)}, expected at least 1")
