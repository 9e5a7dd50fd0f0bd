"""Loading a model for a command."""

from pathlib import Path
from typing import TYPE_CHECKING

from rfjax.cli.output import printable, spinner
from rfjax.engine.config import EngineConfig
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.llm import LLM
    from rfjax.ops.dispatch import KernelPolicy


def open_model(
    path: Path,
    dtype: str | None = None,
    engine: EngineConfig | None = None,
    *,
    weights: str | None = None,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    kernels: "KernelPolicy | None" = None,
    selfcheck: bool | None = None,
) -> "LLM":
    """The model at `path`, with a spinner on a terminal while it loads.

    Args:
        path: of the file.
        dtype, weights: as of `rfjax.load`.
        engine: sizes of batches, chunks and bursts.
        tensor_parallel: devices that share the weights.
        data_parallel: groups of such devices.
        kernels, selfcheck: as of `LLM`.

    Raises:
        ConfigError: JAX finds no device to run on, or too few, or as `LLM`.
    """
    from rfjax.doctor import find_devices
    from rfjax.llm import LLM
    from rfjax.sharding import make_mesh

    try:
        find_devices()
    except ConfigError as error:
        raise ConfigError(f"{error}. See `rfjax doctor`") from error
    mesh = None
    if tensor_parallel * data_parallel > 1:
        mesh = make_mesh(data=data_parallel, model=tensor_parallel)
    with spinner(f"loading {printable(path.name)}"):
        return LLM(
            path,
            dtype=dtype,
            weights=weights,
            mesh=mesh,
            engine=engine,
            kernels=kernels,
            selfcheck=selfcheck,
        )
