"""Sizes of the engine."""

import dataclasses

from rfjax.errors import ConfigError

KV_DTYPES = ("float32", "bfloat16", "float16", "int8")
"""What keys and values can be stored as."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How much is computed at a time, and what the cache of keys and values may take.

    Attributes:
        max_batch_size: most sequences under way at a time.
        max_context: most tokens of a sequence, prompt and output; None takes the model's.
        prefill_chunk: most prompt tokens of a sequence computed in one step; a power of two.
        burst: decode steps between two looks of the host, which streams and retires.
        mixed_burst: the same while prompts are computed, so that these need not wait long.
        token_budget: most tokens of one step: prompt tokens and one for each decoding sequence.
        page_size: tokens of a page of the cache; a power of two from 16 to 256.
        kv_dtype: "float32", "bfloat16", "float16" or "int8" (quantized per head and token) for
            keys and values; None takes the model's.
        cache_share: most of the memory that is free once the weights are loaded that cache, rows
            and a step's intermediate values take together; above 0, below 1. None takes 0.9, and
            0.25 on the CPU, whose memory is other programs' as well.
        prefix_caching: keep full pages for prompts that begin the same.
        max_queue: most requests that wait for their first admission; more are refused.
    """

    max_batch_size: int = 32
    max_context: int | None = None
    prefill_chunk: int = 512
    burst: int = 32
    mixed_burst: int = 4
    token_budget: int = 2048
    page_size: int = 32
    kv_dtype: str | None = None
    cache_share: float | None = None
    prefix_caching: bool = True
    max_queue: int = 1000

    def __post_init__(self):
        for name in (
            *("max_batch_size", "prefill_chunk", "burst", "mixed_burst", "token_budget"),
            *("page_size", "max_queue"),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
        for name, most in (("prefill_chunk", 65536), ("page_size", 256)):
            value = getattr(self, name)
            if value & (value - 1) or not 16 <= value <= most:
                raise ConfigError(f"{name}: got {value}, expected a power of two from 16 to {most}")
        context = self.max_context
        if context is not None and (type(context) is not int or context < 2):
            raise ConfigError(
                f"max_context: got {context!r}, expected an integer of at least 2, or None"
            )
        if self.token_budget <= self.max_batch_size:
            raise ConfigError(
                f"token_budget: got {self.token_budget}, expected more than max_batch_size, which "
                f"is {self.max_batch_size}, so that prompts go on while every sequence decodes"
            )
        if self.kv_dtype not in (None, *KV_DTYPES):
            raise ConfigError(
                f"kv_dtype: got {self.kv_dtype!r}, expected one of {', '.join(KV_DTYPES)}, or None"
            )
        share = self.cache_share
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if share is not None and not (number and 0 < share < 1):
            raise ConfigError(
                f"cache_share: got {share!r}, expected a number above 0 and below 1, or None"
            )
        if not isinstance(self.prefix_caching, bool):
            raise ConfigError(
                f"prefix_caching: got {self.prefix_caching!r}, expected True or False"
            )
