"""What an engine runs on, as types: `rfjax.engine.plan_runner.PlanRunner` or a stand-in. No JAX."""

from collections.abc import Sequence
from typing import Protocol

from rfjax.engine.burst_result import BurstResult
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request
from rfjax.engine.warm_up import Program


class Pending(Protocol):
    """A plan that is being carried out."""

    @property
    def plan(self) -> Plan:
        """What was dispatched."""
        ...

    def read(self) -> BurstResult:
        """Wait for the results; one that was interrupted may be repeated."""
        ...


class Device(Protocol):
    """Carries out plans in the order in which they are dispatched."""

    def dispatch(self, plan: Plan) -> Pending:
        """Start a plan without waiting for it."""
        ...

    def reset(self) -> None:
        """Make all pages and rows anew, whatever state a failure left them in."""
        ...

    def programs(
        self, requests: Sequence[Request], *, sequences: int, prompt_tokens: int
    ) -> tuple[Program, ...]:
        """What is to be compiled before requests like these come, many at a time."""
        ...

    def release(self) -> None:
        """Give up pages and rows; `reset` comes before the next plan."""
        ...
