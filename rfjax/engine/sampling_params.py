"""What a user asks of one generation."""

import dataclasses
from collections.abc import Iterable

from rfjax.errors import RequestError

_MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop; names and meanings as in vLLM.

    Attributes:
        max_tokens: most tokens to generate; None generates until a stop token or the end of the
            context.
        temperature: 0 takes the most likely token; above 0 logits are divided by it.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the most likely tokens that together have this probability; 1 keeps all.
        min_p: keep tokens with at least this share of the most likely one's probability.
        repetition_penalty: above 1 makes tokens of the prompt and of the output less likely.
        seed: of the random choices; the same seed gives the same tokens, whatever else runs in
            the batch. None draws one.
        stop_token_ids: tokens that end the generation, besides the model's own.
        ignore_eos: do not stop at the model's own end tokens.

    Raises:
        RequestError: a value out of range.
    """

    max_tokens: int | None = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        if not isinstance(self.stop_token_ids, Iterable):
            raise RequestError(
                f"stop_token_ids: got {self.stop_token_ids!r}, expected a sequence of token ids"
            )
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_int("top_k", self.top_k, -1, 2**31 - 1)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, _MAX_SEED)
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, 0, 2**31 - 1)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos: got {self.ignore_eos!r}, expected True or False")
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, above=True)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)


def _check(name: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    """Refuse what is not a number from `least` (or `above` it) to `most`; NaN is outside."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most) or (above and value == least):
        expected = f"above {least:g}, at most {most:g}" if above else f"from {least:g} to {most:g}"
        raise RequestError(f"{name}: got {value!r}, expected a number {expected}")


def _check_int(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name}: got {value!r}, expected an integer from {least} to {most}")
