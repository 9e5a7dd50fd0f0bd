"""Scheduling to measure: so many sequences, burst after burst. No JAX."""

import dataclasses
import re
from collections.abc import Sequence

from rfjax.errors import ConfigError

SHAPES = (
    "256x8@32",
    "256x32@16",
    "256x32@32",
    "256x32@64",
    "256x32@32/window",
    "256x32@32/plain",
    "256x32@32/churn",
    "256x32@32/engine",
    "256x32@32/engine/frozen",
)
"""What is measured by default."""

_FLAGS = ("window", "plain", "churn", "engine", "frozen")
_SHAPE = re.compile(r"(\d+)x(\d+)@(\d+)((?:/(?:window|plain|churn|engine|frozen))*)")


@dataclasses.dataclass(frozen=True)
class ScheduleCase:
    """Sequences that decode.

    Attributes:
        running: how many.
        burst: tokens that each makes in a burst.
        page_size: tokens of a page.
        window: whether there is a second cache group, of layers with a sliding window.
        plain: whether to do without prefix caching.
        churn: whether sequences end, and further requests take their places; otherwise all go on.
        engine: whether to measure whole steps of the engine instead of the scheduler alone.
        frozen: whether Python's garbage collector is to leave alone what exists before the clock
            starts (`gc.freeze`).
    """

    running: int
    burst: int
    page_size: int
    window: bool = False
    plain: bool = False
    churn: bool = False
    engine: bool = False
    frozen: bool = False

    def __post_init__(self):
        if min(self.running, self.burst, self.page_size) < 1:
            raise ConfigError(f"{self.name}: expected sequences, tokens and pages of at least 1")
        if self.churn and self.engine:
            raise ConfigError(f"{self.name}: expected /churn or /engine, not both")

    @property
    def name(self) -> str:
        """As `schedule_cases` reads it."""
        flags = [flag for flag in _FLAGS if getattr(self, flag)]
        return "/".join((f"{self.running}x{self.burst}@{self.page_size}", *flags))


def schedule_cases(shapes: Sequence[str] = SHAPES) -> tuple[ScheduleCase, ...]:
    """Cases from texts such as `256x32@16/window`.

    Raises:
        ConfigError: a text that is none.
    """
    cases = []
    for text in shapes:
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"schedule: got {text!r}, expected SEQUENCESxBURST@PAGE with any of /window, "
                "/plain, /churn, /engine, /frozen behind it"
            )
        flags = match[4].split("/")
        running, burst, page_size = (int(match[i]) for i in (1, 2, 3))
        given = {flag: True for flag in _FLAGS if flag in flags}
        cases.append(ScheduleCase(running, burst, page_size, **given))
    return tuple(cases)
