"""Sizes of the engine."""

import dataclasses

from rfjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How much is computed at a time.

    Attributes:
        max_batch_size: most sequences decoded together.
        max_context: most tokens of a sequence, prompt and output; None takes the model's.
        prefill_chunk: most prompt tokens of a sequence computed in one step; a power of two.
        burst: decode steps between two looks of the host, which streams and retires.
    """

    max_batch_size: int = 32
    max_context: int | None = None
    prefill_chunk: int = 512
    burst: int = 32

    def __post_init__(self):
        for name in ("max_batch_size", "prefill_chunk", "burst"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
        chunk = self.prefill_chunk
        if chunk & (chunk - 1) or not 16 <= chunk <= 65536:
            raise ConfigError(
                f"prefill_chunk: got {chunk}, expected a power of two from 16 to 65536"
            )
        context = self.max_context
        if context is not None and (type(context) is not int or context < 2):
            raise ConfigError(
                f"max_context: got {context!r}, expected an integer of at least 2, or None"
            )
