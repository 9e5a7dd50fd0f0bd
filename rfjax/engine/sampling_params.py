"""What a user asks of one generation."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from rfjax.errors import RequestError

MAX_LOGPROBS = 20
_MAX_SEED = 2**32 - 1
_MAX_INT = 2**31 - 1


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
            the batch. None draws one. Sample i of `n` takes `seed + i`.
        stop_token_ids: tokens that end the generation, besides the model's own.
        ignore_eos: do not stop at the model's own end tokens.
        typical_p: keep the tokens whose surprise is nearest to the expected one and that together
            have this probability; 1 keeps all.
        presence_penalty: subtracted from the logits of tokens that are in the output.
        frequency_penalty: subtracted from a token's logit once for each time it is in the output.
        logit_bias: token id to what is added to its logit; kept as sorted pairs.
        allowed_token_ids: the only tokens that may be chosen; None allows all.
        min_tokens: stop tokens cannot be chosen before so many tokens are out, and stop strings
            are not looked for.
        stop: texts that end the generation, one or several; kept as a tuple.
        include_stop_str_in_output: leave the stop string at the end of the text.
        n: how many samples to draw.
        logprobs: how many of the most likely tokens to report with each generated one; None
            reports the generated one's only.
        prompt_logprobs: the same for the tokens of the prompt; None reports nothing of them.

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
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | tuple[tuple[int, float], ...] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    min_tokens: int = 0
    stop: str | tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            allowed = _ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise RequestError(
                    "allowed_token_ids: got none, expected at least one token id; None allows all"
                )
            object.__setattr__(self, "allowed_token_ids", allowed)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        object.__setattr__(self, "stop", _strings(self.stop))
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, _MAX_INT)
        _check_int("min_tokens", self.min_tokens, 0, _MAX_INT)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens: got {self.min_tokens}, expected at most max_tokens, which is "
                f"{self.max_tokens}"
            )
        _check_int("top_k", self.top_k, -1, _MAX_INT)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, _MAX_SEED)
        for name in ("ignore_eos", "include_stop_str_in_output"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise RequestError(f"{name}: got {value!r}, expected True or False")
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, above=True)
        _check("typical_p", self.typical_p, 0.0, 1.0, above=True)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check_int(name, value, 0, MAX_LOGPROBS)
        _check_int("n", self.n, 1, 1024)
        if self.n > 1 and self.temperature == 0:
            raise RequestError(
                f"n: got {self.n}, expected 1 with temperature 0, where all samples are the same: "
                "raise the temperature"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as it is kept."""
        return _strings(self.stop)

    @property
    def logit_biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as it is kept: (token id, what to add), by token id."""
        return _pairs(self.logit_bias)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Iterable):
        raise RequestError(f"{name}: got {value!r}, expected a sequence of token ids")
    ids = tuple(value)
    for token in ids:
        _check_int(name, token, 0, _MAX_INT)
    return ids


def _pairs(value: Any) -> tuple[tuple[int, float], ...]:
    if not value:
        return ()
    try:
        listed: list[tuple[Any, Any]] = list(dict(value).items())
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"logit_bias: got {value!r}, expected a mapping of token ids to numbers"
        ) from error
    if isinstance(value, Mapping):  # JSON's and TOML's keys are texts
        listed = [
            (int(token) if isinstance(token, str) and token.isdecimal() else token, bias)
            for token, bias in listed
        ]
    for token, bias in listed:
        _check_int("logit_bias", token, 0, _MAX_INT)
        _check("logit_bias", bias, -100.0, 100.0)
    return tuple(sorted((token, float(bias)) for token, bias in listed))


def _strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if strings is None:
        return ()
    if not isinstance(strings, Iterable) or isinstance(strings, bytes | bytearray):
        raise RequestError(f"stop: got {value!r}, expected a text or a sequence of texts")
    strings = tuple(strings)
    if not all(isinstance(string, str) and string for string in strings):
        raise RequestError(f"stop: got {value!r}, expected texts that are not empty")
    return strings


def _check(name: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    """Refuse what is not a number from `least` (or `above` it) to `most`; NaN is outside."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most) or (above and value == least):
        expected = f"above {least:g}, at most {most:g}" if above else f"from {least:g} to {most:g}"
        raise RequestError(f"{name}: got {value!r}, expected a number {expected}")


def _check_int(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name}: got {value!r}, expected an integer from {least} to {most}")
