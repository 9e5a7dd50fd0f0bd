"""rfjax: functional LLM inference for GGUF models in JAX.

Names are imported when they are first used, so that `import rfjax` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfjax.engine.config import EngineConfig as EngineConfig
    from rfjax.engine.output import RequestOutput as RequestOutput
    from rfjax.engine.output import SampleOutput as SampleOutput
    from rfjax.engine.output import StreamOutput as StreamOutput
    from rfjax.engine.sampling_params import SamplingParams as SamplingParams
    from rfjax.evals.perplexity import PerplexityResult as PerplexityResult
    from rfjax.io.load import Model as Model
    from rfjax.io.load import load as load
    from rfjax.llm import LLM as LLM
    from rfjax.models.decoder import forward as forward
    from rfjax.ops.dispatch import KernelPolicy as KernelPolicy

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "EngineConfig",
    "KernelPolicy",
    "Model",
    "PerplexityResult",
    "RequestOutput",
    "SampleOutput",
    "SamplingParams",
    "StreamOutput",
    "forward",
    "load",
]

_EXPORTS = {
    "EngineConfig": "rfjax.engine.config",
    "KernelPolicy": "rfjax.ops.dispatch",
    "LLM": "rfjax.llm",
    "Model": "rfjax.io.load",
    "PerplexityResult": "rfjax.evals.perplexity",
    "RequestOutput": "rfjax.engine.output",
    "SampleOutput": "rfjax.engine.output",
    "SamplingParams": "rfjax.engine.sampling_params",
    "StreamOutput": "rfjax.engine.output",
    "forward": "rfjax.models.decoder",
    "load": "rfjax.io.load",
}


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rfjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return [*globals(), *_EXPORTS]
