"""Requests for a runner, greedy unless said, and the end of a run."""

from collections.abc import Iterable

from rfjax.engine.request import Request, make_request
from rfjax.engine.runner import Progress
from rfjax.engine.sampling_params import SamplingParams
from rfjax.io.load import Model


def requests(model: Model, prompts: Iterable[list[int]], **params) -> list[Request]:
    """One request a prompt of token ids; `params` are of `SamplingParams`."""
    settings = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, **params})
    return [
        make_request(
            prompt,
            settings,
            vocab_size=model.config.vocab_size,
            max_context=model.config.context_length,
            end_ids=frozenset(),
        )
        for prompt in prompts
    ]


def last(progresses: Iterable[Progress]) -> Progress:
    """The state when everything is finished."""
    *_, progress = progresses
    return progress
