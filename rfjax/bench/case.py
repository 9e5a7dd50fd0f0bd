"""What is measured: one row of the table, named as llama-bench names it. No JAX."""

import dataclasses
import re
from collections.abc import Sequence

from rfjax.errors import ConfigError

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt, then generation, in every one of some sequences; or likelihood scoring.

    Attributes:
        n_prompt: tokens of the prompt; 0 for generation alone.
        n_gen: tokens generated; 0 for the prompt alone.
        n_depth: tokens in the cache before the clock starts.
        n_seqs: sequences computed together.
        n_score: tokens of a context whose likelihoods are computed, instead of all the above.
    """

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_seqs: int = 1
    n_score: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < (1 if field.name == "n_seqs" else 0):
                raise ConfigError(f"{field.name}: got {value}, which is too small")
        if self.n_score and (self.n_prompt or self.n_gen or self.n_depth):
            raise ConfigError("a case either scores, or has a prompt and generates")
        if not (self.n_score or self.n_prompt or self.n_gen):
            raise ConfigError("a case needs tokens: a prompt, generation or scoring")
        if self.n_score and self.n_score < 4:
            raise ConfigError(f"n_score: got {self.n_score}, expected a context of at least 4")

    @property
    def name(self) -> str:
        """llama-bench's name, such as `pp512`, `tg128 @ d4096`; `x8` for several sequences."""
        if self.n_score:
            name = f"score{self.n_score}"
        else:
            parts = ((self.n_prompt, "pp"), (self.n_gen, "tg"))
            name = "+".join(f"{kind}{n}" for n, kind in parts if n)
        if self.n_seqs > 1:
            name += f" x{self.n_seqs}"
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens that count: of all sequences, without those of the depth."""
        return self.n_seqs * (self.n_score or self.n_prompt + self.n_gen)

    @property
    def n_context(self) -> int:
        """Most tokens of a sequence, the depth included."""
        return self.n_score or self.n_depth + self.n_prompt + self.n_gen


def cases(
    *,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    pairs: Sequence[tuple[int, int]] = (),
    depths: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
    scores: Sequence[int] = (),
    score_tokens: int = 2048,
) -> tuple[Case, ...]:
    """Every combination, in llama-bench's order: prompts, generations, pairs; then scoring.

    Args:
        prompts: lengths of prompts; 0 means none.
        generations: tokens to generate from the depth, 0 means none.
        pairs: a prompt and generation after it, in one measurement.
        depths: tokens in the cache beforehand.
        batches: sequences computed together.
        scores: contexts to score.
        score_tokens: tokens scored together: as many contexts as they make up, at least one.

    Raises:
        ConfigError: nothing to measure, or a negative size.
    """
    found = []
    for depth in depths:
        for batch in batches:
            found += [Case(n_prompt=n, n_depth=depth, n_seqs=batch) for n in prompts if n]
            found += [Case(n_gen=n, n_depth=depth, n_seqs=batch) for n in generations if n]
            found += [Case(p, n, n_depth=depth, n_seqs=batch) for p, n in pairs]
    found += [Case(n_score=n, n_seqs=max(1, score_tokens // n)) for n in scores if n]
    if not found:
        raise ConfigError("nothing to measure: give a prompt length, tokens to generate, or both")
    return tuple(dict.fromkeys(found))


def numbers(text: str) -> tuple[int, ...]:
    """llama-bench's lists: `512,2048`, and ranges `1-4`, `first-last+step`, `first-last*factor`.

    Raises:
        ConfigError: anything else.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"got {part!r} in {text!r}, expected numbers with commas between, or ranges such "
                "as 128-512*2"
            )
        first, last, operator, operand = match.groups()
        value, stop, step = int(first), int(last or first), int(operand or 1)
        if (operator == "*" and (step < 2 or value < 1)) or step < 1:
            raise ConfigError(f"the range {part!r} never ends")
        while value <= stop:
            found.append(value)
            value = value * step if operator == "*" else value + step
    return tuple(found)
