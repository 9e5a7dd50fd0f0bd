"""Which GGML type llama-quantize gives a tensor, for its usual mixes: "Q4_K_M" and the like.

A mix has one type for most matrices and others for those that suffer most: the output matrix, the
attention's values and the feed-forward network's second matrix, some of them in some layers only.
The rules are those of llama.cpp's `llama-quantize` without an importance matrix, of November 2026,
for the architectures that rfjax runs; a test holds types that it chose.
"""

import dataclasses
import difflib

from rfjax.errors import ConfigError
from rfjax.quant.formats import FORMATS
from rfjax.quant.types import BLOCK_SIZES, NATIVE_DTYPES, GGMLType

MIXES: dict[str, GGMLType] = {
    "f32": GGMLType.F32,
    "f16": GGMLType.F16,
    "bf16": GGMLType.BF16,
    "q4_0": GGMLType.Q4_0,
    "q4_1": GGMLType.Q4_1,
    "q5_0": GGMLType.Q5_0,
    "q5_1": GGMLType.Q5_1,
    "q8_0": GGMLType.Q8_0,
    "q2_k": GGMLType.Q2_K,
    "q3_k_s": GGMLType.Q3_K,
    "q3_k_m": GGMLType.Q3_K,
    "q3_k_l": GGMLType.Q3_K,
    "q4_k_s": GGMLType.Q4_K,
    "q4_k_m": GGMLType.Q4_K,
    "q5_k_s": GGMLType.Q5_K,
    "q5_k_m": GGMLType.Q5_K,
    "q6_k": GGMLType.Q6_K,
    "iq4_nl": GGMLType.IQ4_NL,
    "iq4_xs": GGMLType.IQ4_XS,
    "mxfp4_moe": GGMLType.MXFP4,
}
"""Name of every mix, and the type of most of its matrices."""

_PURE = "-pure"
"""Behind the name of a type: every matrix has it, as with llama-quantize's flag of that name."""

_NARROWER_BLOCKS = {
    GGMLType.Q2_K: GGMLType.Q4_0,
    GGMLType.Q3_K: GGMLType.Q4_0,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
    GGMLType.IQ4_XS: GGMLType.IQ4_NL,
}
"""What takes the place of a type with blocks of 256 where rows are not whole blocks."""

_LAYERS_OF_70B = 80
_EXPERTS_OF_MIXTRAL = 8


@dataclasses.dataclass(frozen=True)
class MixModel:
    """What a mix asks of a model.

    Attributes:
        n_layers: of the whole model.
        first_layer: place of layer 0 in it, where only some layers are there.
        kv_group: query heads per kv head.
        n_experts: 0 for a dense model.
        tied_output: the embedding table is the output matrix too.
    """

    n_layers: int
    first_layer: int = 0
    kv_group: int = 1
    n_experts: int = 0
    tied_output: bool = False


def check_mix(mix: str) -> str:
    """The name of a mix in lower case: one of `MIXES`, or a type's and `-pure` behind it.

    Raises:
        ConfigError: there is no such mix.
    """
    name = mix.lower()
    if name in MIXES or (name.endswith(_PURE) and _pure_type(name) in FORMATS):
        return name
    near = difflib.get_close_matches(name, MIXES, n=1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise ConfigError(
        f"no type mix is named {mix!r}; {hint}: {', '.join(MIXES)}, or a type with {_PURE!r} "
        "behind it for all matrices alike, such as iq3_s-pure"
    )


def _pure_type(name: str) -> GGMLType | None:
    return GGMLType.__members__.get(name.removesuffix(_PURE).upper())


def type_of(name: str, shape: tuple[int, ...], mix: str, model: MixModel) -> GGMLType:
    """The type of one tensor.

    Args:
        name: its GGUF name, such as `blk.3.ffn_down.weight`.
        shape: outermost first; the last size is a row's.
        mix: a name that `check_mix` knows.
        model: what else the choice depends on.

    Raises:
        ConfigError: there is no such mix.
    """
    mix = check_mix(mix)
    stem = name.removesuffix(".weight").rpartition(".")[2]
    if not name.endswith(".weight") or len(shape) < 2 or stem == "ffn_gate_inp":
        return GGMLType.F32  # norms, biases and routers
    pure = _pure_type(mix) if mix.endswith(_PURE) else None
    return _fitting(pure if pure is not None else _chosen(name, stem, shape, mix, model), shape[-1])


def _chosen(name: str, stem: str, shape: tuple[int, ...], mix: str, model: MixModel) -> GGMLType:
    """The type before it is known to fit the rows."""
    base = MIXES[mix]
    if base in NATIVE_DTYPES:
        return base
    if stem == "output" or (stem == "token_embd" and model.tied_output):
        if mix == "mxfp4_moe" or shape[-1] % BLOCK_SIZES[base][0]:
            return GGMLType.Q8_0
        return base if base == GGMLType.Q8_0 else GGMLType.Q6_K
    if mix == "mxfp4_moe":
        return base if len(shape) == 3 else GGMLType.Q8_0
    if not name.startswith("blk."):
        return base
    layer = int(name.split(".")[1]) + model.first_layer
    if stem == "attn_v":
        return _type_of_values(layer, mix, model)
    if stem == "attn_k" and model.n_experts == _EXPERTS_OF_MIXTRAL:
        return GGMLType.Q8_0
    if stem in ("ffn_down", "ffn_down_exps"):
        return _type_of_ffn_down(layer, mix, model)
    if stem == "attn_output":
        return _type_of_attn_output(mix, model)
    return base


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _type_of_values(layer: int, mix: str, model: MixModel) -> GGMLType:
    chosen = MIXES[mix]
    if mix == "q2_k":
        chosen = GGMLType.Q4_K if model.kv_group >= 4 else GGMLType.Q3_K
    elif mix == "q3_k_m":
        chosen = GGMLType.Q5_K if layer < 2 else GGMLType.Q4_K
    elif mix == "q3_k_l" or (mix in ("iq4_nl", "iq4_xs") and model.kv_group >= 4):
        chosen = GGMLType.Q5_K
    elif mix in ("q4_k_m", "q5_k_m") and _more_bits(layer, model.n_layers):
        chosen = GGMLType.Q6_K
    elif mix == "q4_k_s" and layer < 4:
        chosen = GGMLType.Q5_K
    if model.n_layers == _LAYERS_OF_70B and model.kv_group > 1:
        chosen = GGMLType.Q5_K if chosen in (GGMLType.Q3_K, GGMLType.Q4_K) else chosen
    return GGMLType.Q8_0 if model.n_experts == _EXPERTS_OF_MIXTRAL else chosen


def _type_of_ffn_down(layer: int, mix: str, model: MixModel) -> GGMLType:
    n_layers = model.n_layers
    if mix == "q2_k":
        return GGMLType.Q3_K
    if mix == "q3_k_m":
        return GGMLType.Q5_K if layer < n_layers // 16 else GGMLType.Q4_K
    if mix == "q3_k_l":
        return GGMLType.Q5_K
    if mix in ("q4_k_m", "q5_k_m"):
        return GGMLType.Q6_K if _more_bits(layer, n_layers) else MIXES[mix]
    if mix in ("q4_k_s", "iq4_nl", "iq4_xs") and layer < n_layers // 8:
        return GGMLType.Q5_K
    return MIXES[mix]


def _type_of_attn_output(mix: str, model: MixModel) -> GGMLType:
    if model.n_experts == _EXPERTS_OF_MIXTRAL:
        wider = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
        return GGMLType.Q5_K if mix in wider else MIXES[mix]
    larger = {"q2_k": GGMLType.Q3_K, "q3_k_m": GGMLType.Q4_K, "q3_k_l": GGMLType.Q5_K}
    return larger.get(mix, MIXES[mix])


def _fitting(chosen: GGMLType, row: int) -> GGMLType:
    """The type, or the one that stands in for it where a row is not whole blocks."""
    if row % BLOCK_SIZES[chosen][0]:
        chosen = _NARROWER_BLOCKS.get(chosen, chosen)
    return GGMLType.F16 if row % BLOCK_SIZES[chosen][0] else chosen
