"""The table of supported architectures. Adding one is a file with a SPEC, and a row here."""

import difflib

from rfjax.errors import UnsupportedError
from rfjax.models.arch import ArchSpec
from rfjax.models.archs import (
    arcee,
    baichuan,
    bloom,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    ernie4_5,
    ernie4_5_moe,
    exaone,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4,
    glm4moe,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    granitemoe,
    hunyuan_dense,
    internlm2,
    llada,
    llama,
    minicpm,
    mistral3,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmoe,
    phi2,
    phi3,
    phimoe,
    qwen,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)

_MODULES = (
    arcee,
    baichuan,
    bloom,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    ernie4_5,
    ernie4_5_moe,
    exaone,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4,
    glm4moe,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    granitemoe,
    hunyuan_dense,
    internlm2,
    llada,
    llama,
    minicpm,
    mistral3,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmoe,
    phi2,
    phi3,
    phimoe,
    qwen,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)

ARCHITECTURES: dict[str, ArchSpec] = {module.SPEC.name: module.SPEC for module in _MODULES}


def find_architecture(name: str) -> ArchSpec:
    """The table's row of that name.

    Raises:
        UnsupportedError: no such row; the message names the nearest and all supported ones.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    hint = f" (the nearest name is {near[0]!r})" if near else ""
    raise UnsupportedError(
        f"architecture {name!r} is not supported{hint}; supported: {', '.join(ARCHITECTURES)}"
    )
