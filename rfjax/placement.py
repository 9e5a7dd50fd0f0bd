"""Where a file's tensors would go on this machine, and what would run them, as data.

Nothing is loaded: the plan is the one that loading makes first.
"""

import dataclasses
import os

from rfjax.errors import CapacityError, ConfigError
from rfjax.io.gguf import read_gguf
from rfjax.io.load import plan_load, resolve_dtype
from rfjax.io.memory import MemoryPlan
from rfjax.io.storage import Storage
from rfjax.models.configure import configure
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_product import GROUPED_KERNEL, KERNEL, PLAIN_KERNEL
from rfjax.pallas.target import current_target
from rfjax.quant.layout import LAYOUTS
from rfjax.selfcheck.guard import remembered_policy

DEFAULT_CONTEXT = 4096
"""Tokens of a sequence that room is planned for where nobody says; at most the model's."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a model would be held and run.

    Attributes:
        dtype: of the activations.
        plan: bytes on the device; None where the model does not fit.
        refusal: why it does not fit and what would, or None.
        paths: for every tensor of the file what runs it: "kernel NAME" (for few rows of
            activations; XLA takes many), "XLA from packed blocks" or "plain". Empty where the
            model does not fit.
    """

    dtype: str
    plan: MemoryPlan | None
    refusal: str | None
    paths: dict[str, str]


def place_file(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    weights: str | None = None,
    context: int | None = None,
) -> Placement:
    """Plan a model on the default device.

    Args:
        path: a GGUF file, or any part of a split one.
        dtype, weights: as of `rfjax.load`.
        context: tokens of one sequence for whose cache room must be left; None takes
            `DEFAULT_CONTEXT`, or what the model holds if that is less.

    Raises:
        ModelFormatError, UnsupportedError, ConfigError: as `rfjax.load`; ConfigError also where the
            model's context holds fewer tokens.
    """
    gguf = read_gguf(path)
    config = configure(gguf, dtype=resolve_dtype(dtype))
    if context is None:
        context = min(DEFAULT_CONTEXT, config.context_length)
    elif context > config.context_length:
        raise ConfigError(
            f"context: got {context}, and the model's context holds {config.context_length}"
        )
    try:
        storages, plan = plan_load(gguf, config, weights=weights, context=context)
    except CapacityError as error:
        refusal = str(error).removeprefix(f"{gguf.path}: ")
        return Placement(config.dtype, None, refusal, {})
    gpu = current_target() != "interpret"
    policy = remembered_policy() if gpu else KernelPolicy("xla")
    paths = {
        info.name: path_of(storage, policy, multiplied=_is_multiplied(name, config.tied_output))
        for name, storage in storages.items()
        for info in storage.sources
    }
    return Placement(config.dtype, plan, None, paths)


def path_of(storage: Storage, policy: KernelPolicy, *, multiplied: bool) -> str:
    """What runs one tensor.

    Args:
        storage: how it is held.
        policy: which kernels run.
        multiplied: whether activations are multiplied with it; embeddings only give rows.
    """
    packed = storage.dtype is None
    without = "XLA from packed blocks" if packed else "plain"
    if not multiplied or len(storage.spec.shape) < 2 or policy.implementation == "xla":
        return without
    experts = len(storage.spec.shape) == 3
    kernel = (GROUPED_KERNEL if experts else KERNEL) if packed else PLAIN_KERNEL
    if packed and storage.type not in LAYOUTS:
        return without
    reason = policy.why_disabled(f"{kernel}:{storage.type.name}")
    if reason is not None:
        return f"{without} (the kernel {kernel} is disabled: {reason})"
    return f"kernel {kernel}"


def _is_multiplied(name: str, tied_output: bool) -> bool:
    return tied_output or name != "token_embd.weight"
