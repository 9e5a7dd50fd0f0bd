"""Loading a model for a command."""

from pathlib import Path
from typing import TYPE_CHECKING

from rfjax.cli.output import printable, spinner
from rfjax.engine.config import EngineConfig
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.llm import LLM


def open_model(path: Path, dtype: str | None, engine: EngineConfig | None = None) -> "LLM":
    """The model at `path`, with a spinner on a terminal while it loads.

    Raises:
        ConfigError: JAX finds no device to run on, or as `LLM`.
    """
    from rfjax.doctor import find_devices
    from rfjax.llm import LLM

    try:
        find_devices()
    except ConfigError as error:
        raise ConfigError(f"{error}. See `rfjax doctor`") from error
    with spinner(f"loading {printable(path.name)}"):
        return LLM(path, dtype=dtype, engine=engine)
