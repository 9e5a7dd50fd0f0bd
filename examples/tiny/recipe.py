"""What to train and how: sizes of the model, and settings of the training."""

import dataclasses
from dataclasses import field
from typing import Any

from rfjax.errors import ConfigError
from rfjax.models.archs.llama import SPEC
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.ops.rope import Rope


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of one training run; every field is a flag of `train_tiny.py`."""

    vocab_size: int = _setting(1024, "tokens, the 256 bytes included")
    n_layers: int = _setting(4, "transformer layers")
    width: int = _setting(256, "of the embedding; a multiple of 256 suits every quantization")
    ffn_width: int = _setting(768, "of the feed-forward network; a multiple of 256 likewise")
    n_heads: int = _setting(4, "query heads")
    n_kv_heads: int = _setting(2, "key-value heads")
    context: int = _setting(512, "tokens of a training row, and the model's context length")
    rope_base: float = _setting(10000.0, "base of the rotary frequencies")
    batch: int = _setting(32, "rows of a step")
    steps: int = _setting(5000, "training steps")
    warmup: int = _setting(100, "steps until the learning rate is reached")
    learning_rate: float = _setting(2e-3, "peak; falls to a twentieth along a cosine")
    weight_decay: float = _setting(0.1, "AdamW's, on matrices only")
    ema: float = _setting(0.995, "decay of the running average of weights that is kept")
    dropout: float = _setting(0.2, "share of each layer's inner and outgoing features dropped")
    groups: int = _setting(8, "groups of rows that share a dropout mask; divides the batch")
    token_noise: float = _setting(0.05, "share of input tokens replaced by random ones")
    segmentations: int = _setting(8, "random segmentations of the text beside the usual one")
    segmentation_noise: float = _setting(0.05, "share of merges left out in those")
    eval_every: int = _setting(100, "steps between two measurements; divides the steps")
    patience: int = _setting(8, "measurements without improvement that end the training")
    seed: int = _setting(0, "of the weights and of everything random")

    def __post_init__(self):
        for name in ("batch", "groups", "steps", "warmup", "eval_every", "patience", "n_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("dropout", "token_noise", "segmentation_noise", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        for whole, part in (
            ("batch", "groups"),
            ("steps", "eval_every"),
            ("width", "n_heads"),
            ("n_heads", "n_kv_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{part}: got {getattr(self, part)}, expected a divisor of {whole} "
                    f"({getattr(self, whole)})"
                )

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.width // self.n_heads

    def model_config(self) -> ModelConfig:
        """The model, in f32, as `rfjax.load` will read it from the written file."""
        layer = LayerConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            attention_scale=self.head_dim**-0.5,
            mask=SPEC.mask,
            rope=Rope("interleaved", self.head_dim, self.rope_base),
            qk_norm=SPEC.qk_norm,
            activation=SPEC.activation,
            ffn_dim=self.ffn_width,
            experts=None,
        )
        return ModelConfig(
            architecture=SPEC.name,
            vocab_size=self.vocab_size,
            d_model=self.width,
            context_length=self.context,
            norm_eps=2.0**-17,  # near the usual 1e-5, and exact in the file's f32
            layers=(layer,) * self.n_layers,
            tied_output=True,
        )
