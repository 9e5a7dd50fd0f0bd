"""What multiplies the scores of DeepSeek's latent attention, where YaRN extends the context."""

import math


def latent_scale(
    key_dim: int,
    *,
    scaling: str,
    factor: float,
    log_multiplier: float,
    attention_factor: float = 1.0,
) -> float:
    """`m^2 / sqrt(key_dim)`, with the m by which an extended context lets queries and keys grow.

    DeepSeek's own code has `m = 1 + 0.1 mscale_all_dim ln(factor)`; its cosines and sines keep the
    magnitude 1 (`log_multiplier` 1 of a `Rope`), since its `mscale` and `mscale_all_dim` are equal.
    GGUF stores `log_multiplier = 0.1 mscale_all_dim`. Where that is missing llama.cpp takes
    `m = 1 + 0.1 ln(factor)`, and YaRN's usual magnitude of cosines and sines besides; so it does
    with linear scaling, on top of what the multiplier gives.

    Args:
        key_dim: elements of a head's key, rotated ones included.
        scaling: "none", "linear" or "yarn" (`rope.scaling.type`).
        factor: of the context's extension (`rope.scaling.factor`).
        log_multiplier: `rope.scaling.yarn_log_multiplier`, 0 where the file has none.
        attention_factor: `rope.scaling.attn_factor`; multiplies m.
    """
    growth = 0.0 if scaling == "none" else max(0.0, math.log(factor))
    m = attention_factor * (1.0 + log_multiplier * growth)
    if scaling == "linear" or not log_multiplier:
        m *= 1.0 + 0.1 * growth
    return m * m / math.sqrt(key_dim)
