"""A device that runs out of memory while it serves requests."""

import functools

from rfjax.io.memory import exhaustion_as_capacity_error

device_memory = functools.partial(
    exhaustion_as_capacity_error,
    "generating",
    "Lower max_batch_size, max_context, token_budget or cache_share, or use a mesh",
)
"""A context in which XLA's report of a failed allocation becomes a `CapacityError`."""
