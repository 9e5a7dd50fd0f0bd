"""What a task of lm-eval asks to be generated, as a request of ours. Imports lm-eval."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import handle_stop_sequences

from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Settings of Hugging Face's `generate` that say what is done anyway."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One text to be generated.

    Attributes:
        prompt: token ids, at least one.
        n_cut: tokens at the prompt's beginning that were left out.
        params: how tokens are chosen, and what ends the text.
        until: what the text ends before; end of text by its name is among it.
        key: the same where prompt and parameters are.
    """

    prompt: tuple[int, ...]
    n_cut: int
    params: SamplingParams
    until: tuple[str, ...]
    key: str


def generation(
    ids: Sequence[int],
    settings: Mapping[str, Any],
    *,
    end: str | None,
    room: int,
    seed: int,
    name: str,
) -> Generation:
    """The request for a prompt with a task's settings.

    Args:
        ids: the whole prompt.
        settings: as lm-eval's `normalize_gen_kwargs` gives them.
        end: how the vocabulary spells the end of text.
        room: most tokens of prompt and output; a longer prompt loses its beginning.
        seed: of a text that is sampled.
        name: of the request, for messages.

    Raises:
        RequestError: a setting that rfjax does not have, or one out of range; or no room for a
            prompt beside the tokens that are asked for.
    """
    left = dict(settings)
    until = tuple(text for text in handle_stop_sequences(left.pop("until"), end) if text)
    n_tokens = left.pop("max_gen_toks")
    if n_tokens >= room:
        raise RequestError(
            f"{name}: got {n_tokens} tokens to generate, and prompt and output together have room "
            f"for {room}: lower it, such as with --gen_kwargs max_gen_toks={max(1, room // 2)}"
        )
    prompt = tuple(ids[-(room - n_tokens) :])
    sampling = _sampling(left, seed, name)
    params = SamplingParams(max_tokens=n_tokens, stop=until, **sampling)
    described = json.dumps([prompt, dataclasses.asdict(params)])
    digest = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
    return Generation(prompt, len(ids) - len(prompt), params, until, f"generation {digest}")


def _sampling(left: dict[str, Any], seed: int, name: str) -> dict[str, Any]:
    """What of a task's settings says how tokens are chosen."""
    sampling = {key: left.pop(key) for key in _SAMPLING if key in left}
    sampling.setdefault("temperature", 0.0)
    if not left.pop("do_sample"):
        sampling["temperature"] = 0.0
    unknown = [key for key, value in left.items() if _NEUTRAL.get(key) != value]
    if unknown:
        raise RequestError(
            f"{name}: got the generation settings {', '.join(unknown)}, expected of until, "
            f"max_gen_toks, do_sample, {', '.join(_SAMPLING)}"
        )
    if sampling["temperature"]:
        sampling["seed"] = seed
    return sampling
