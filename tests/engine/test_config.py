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
    ],
)
def test_a_size_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field}: got {value}, expected"):
        EngineConfig(**{field: value})
