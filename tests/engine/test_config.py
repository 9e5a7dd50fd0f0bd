"""Engine sizes are checked on construction."""

import pytest

from rfjax.engine.config import EngineConfig
from rfjax.errors import ConfigError


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_batch_size", 0),
        ("max_batch_size", True),
        ("burst", 0),
        ("prefill_chunk", 100),
        ("prefill_chunk", 8),
        ("max_context", 1),
        ("max_context", 20.5),
        ("mixed_burst", 0),
        ("max_queue", 0),
        ("token_budget", 32),
        ("page_size", 24),
        ("page_size", 2048),
        ("kv_dtype", "'int4'"),
        ("cache_share", 1),
        ("cache_share", True),
        ("prefix_caching", 1),
    ],
)
def test_a_size_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field}: got {value}, expected"):
        EngineConfig(**{field: value.strip("'") if isinstance(value, str) else value})
