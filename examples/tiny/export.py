"""Writing the trained model as a GGUF file."""

import os
import pathlib

import gguf
import numpy as np

from rfjax.errors import ConfigError
from rfjax.models.params import Params, named_leaves
from tiny.recipe import Recipe
from tiny.vocabulary import BOS, EOS, UNKNOWN, Vocabulary

_TYPES = {
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(
    path: pathlib.Path,
    params: Params,
    vocabulary: Vocabulary,
    recipe: Recipe,
    *,
    name: str,
    description: str,
    max_bytes: int,
) -> str:
    """Writes weights and vocabulary: matrices in F16, or in Q8_0 if that is too large; norms F32.

    A file at `path` is replaced once the new one is whole.

    Returns:
        The type of the matrices.

    Raises:
        ConfigError: more than `max_bytes` either way. Nothing is written then.
    """
    sizes = {}
    whole = path.with_suffix(".part")
    for type_name in _TYPES:
        _write(whole, type_name, params, vocabulary, recipe, name=name, description=description)
        sizes[type_name] = whole.stat().st_size
        if sizes[type_name] <= max_bytes:
            os.replace(whole, path)
            return type_name
    whole.unlink()
    raise ConfigError(
        f"{path}: the model takes {sizes} bytes, expected at most {max_bytes}; "
        "choose fewer layers, smaller widths or a smaller vocabulary"
    )


def _write(
    path: pathlib.Path,
    type_name: str,
    params: Params,
    vocabulary: Vocabulary,
    recipe: Recipe,
    *,
    name: str,
    description: str,
) -> None:
    config = recipe.model_config()
    tensors = {key: np.asarray(leaf, np.float32) for key, leaf in named_leaves(params).items()}
    count = sum(tensor.size for tensor in tensors.values())
    tensor_type, file_type = _TYPES[type_name]

    writer = gguf.GGUFWriter(path, config.architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation"])
    writer.add_size_label(f"{count / 1e6:.1f}M")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(len(config.layers))
    writer.add_feed_forward_length(recipe.ffn_width)
    writer.add_head_count(recipe.n_heads)
    writer.add_head_count_kv(recipe.n_kv_heads)
    writer.add_key_length(recipe.head_dim)
    writer.add_value_length(recipe.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(recipe.head_dim)
    writer.add_rope_freq_base(recipe.rope_base)

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.texts)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)

    for key, tensor in tensors.items():
        if tensor.ndim == 1:
            writer.add_tensor(key, tensor)
        else:
            packed = gguf.quants.quantize(tensor, tensor_type)
            writer.add_tensor(key, packed, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
