"""Settings of the commands that generate: defaults, then a TOML file, then flags."""

import dataclasses

from rfjax.engine.config import EngineConfig
from rfjax.engine.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True)
class StreamingEngine(EngineConfig):
    """Engine settings for someone who watches: shorter bursts, so that the text flows."""

    burst: int = 8


@dataclasses.dataclass(frozen=True)
class ChatSampling(SamplingParams):
    """Sampling settings for answers, which end by themselves."""

    max_tokens: int | None = 1024


@dataclasses.dataclass(frozen=True)
class Preset:
    """A preset file of `generate`."""

    engine: StreamingEngine = dataclasses.field(default_factory=StreamingEngine)
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)


@dataclasses.dataclass(frozen=True)
class ChatPreset:
    """A preset file of `chat`: the same tables, other defaults."""

    engine: StreamingEngine = dataclasses.field(default_factory=StreamingEngine)
    sampling: ChatSampling = dataclasses.field(default_factory=ChatSampling)
