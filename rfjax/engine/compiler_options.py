"""What XLA is asked for when the steps of a model are compiled."""

import jax

_LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def compiler_options(*, packed: bool) -> dict[str, str] | None:
    """Options for programs that compute with weights, some of them packed or none.

    On the CPU XLA starts whatever can be started. Unpacking needs nothing but weights, so it
    would unpack all layers at once and hold them: packed weights are scheduled for least memory,
    which unpacks one at a time. None asks for nothing.
    """
    return dict(_LEAST_MEMORY) if packed and jax.default_backend() == "cpu" else None
