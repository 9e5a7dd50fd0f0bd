"""A plan runner without arrays, on `FakeDevice`, that can be told to fail at any of its calls."""

import time

from support.fake_device import VOCAB, FakeDevice

from rfjax.engine.burst_result import BurstResult, PromptResult, RowResult
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.plan import Plan
from rfjax.engine.scheduler_config import SchedulerConfig

SIZES = SchedulerConfig(
    groups=(CacheGroup("full", 31),),
    page_size=4,
    max_context=64,
    slots=4,
    token_budget=24,
    prefill_chunk=16,
    burst=8,
    mixed_burst=2,
    max_queue=6,
)
"""Small enough for chunked prompts, several bursts and preemption."""


def logprob(position, token):
    """What the fake model says of a token at a position."""
    return -((position * 31 + token * 7) % 97 + 1) / 10


def top_logprobs(position, n):
    """The most likely tokens at a position."""
    ranked = sorted(range(VOCAB), key=lambda token: (-logprob(position, token), token))
    return {token: logprob(position, token) for token in ranked[:n]}


class FakeRunner:
    """As `rfjax.engine.plan_runner.PlanRunner`, for engines.

    Attributes:
        calls: names of the calls so far, in order: "dispatch", "read", "reset", "programs".
        faults: call number to the error that it raises. A failed dispatch may have run or not; one
            that fails loses the pages, and so does a failed read, but for a KeyboardInterrupt.
        nan_after: request id to the tokens of output after which its logits are NaN.
        reading, dispatching: bursts read and dispatched so far.
        pace: seconds that a read takes.
    """

    def __init__(self, sizes=SIZES, faults=None):
        self.sizes = sizes
        self.faults = faults or {}
        self.calls = []
        self.nan_after = {}
        self.reading = self.dispatching = 0
        self.pace = 0.0
        self.device = FakeDevice(sizes)
        self.lost = False

    def dispatch(self, plan: Plan):
        self.called("dispatch", before=plan.burst % 2 == 0)
        assert not self.lost, "the pages were lost and not made anew"
        result = self.run(plan)
        if plan.burst % 2:
            self.fail("dispatch")
        self.dispatching += 1
        return FakeBurst(self, plan, result, self.dispatching)

    def reset(self):
        self.called("reset")
        self.device = FakeDevice(self.sizes)
        self.lost = False

    def release(self):
        self.lost = True

    def programs(self, requests, *, sequences, prompt_tokens):
        self.called("programs")
        return ()

    def called(self, name, before=True):
        self.calls.append(name)
        if before:
            self.fail(name)

    def fail(self, name):
        error = self.faults.pop(len(self.calls) - 1, None)
        if error is not None:
            self.lost |= name != "read" or not isinstance(error, KeyboardInterrupt)
            raise error

    def run(self, plan: Plan) -> BurstResult:
        known = {slot: len(row.tokens) for slot, row in self.device.rows.items()}
        known |= {opened.slot: len(opened.token_ids) for opened in plan.opened}
        made = self.device.run(plan)
        rows = tuple(
            self.row(slot, known[slot], tokens)
            for slot, tokens in zip(plan.decode.slots, made, strict=True)
        )
        prompt = tuple(
            PromptResult(
                sequence=chunk.sequence,
                start=chunk.start,
                logprobs=[
                    logprob(at + 1, self.device.rows[chunk.slot].tokens[at + 1])
                    for at in range(chunk.start, chunk.start + len(chunk.token_ids))
                ],
                top_logprobs=[
                    top_logprobs(at + 1, chunk.prompt_logprobs)
                    for at in range(chunk.start, chunk.start + len(chunk.token_ids))
                ],
            )
            for chunk in plan.prefill
            if chunk.prompt_logprobs is not None
        )
        return BurstResult(rows, prompt)

    def row(self, slot, start, tokens) -> RowResult:
        row, failed = self.device.rows[slot], None
        limit = self.nan_after.get(row.request.id)
        if limit is not None:
            room = max(0, len(row.request.token_ids) + limit - start)
            if len(tokens) > room:
                tokens, failed = tokens[:room], "the model computes NaN"
                row.ended = True
        n_top = row.request.params.logprobs
        return RowResult(
            token_ids=tokens,
            logprobs=[logprob(start + i, token) for i, token in enumerate(tokens)],
            top_logprobs=[top_logprobs(start + i, n_top) for i in range(len(tokens))]
            if n_top
            else None,
            failed=failed,
        )


class FakeBurst:
    """A burst that was dispatched; bursts are read in order."""

    def __init__(self, runner, plan, result, number):
        self.runner, self.plan, self.result, self.number = runner, plan, result, number

    def read(self) -> BurstResult:
        time.sleep(self.runner.pace)
        self.runner.called("read")
        assert not self.runner.lost, "a burst is read whose pages were lost"
        assert self.number >= self.runner.reading  # an interrupted one is read again
        self.runner.reading = self.number
        return self.result


class Letters:
    """A tokenizer of `VOCAB` tokens: token n is a letter, and every seventh is two."""

    eog_ids = frozenset()

    def encode(self, text):
        return [ord(character) % VOCAB for character in text]

    def stream(self, *, continuation):
        assert continuation
        return self

    def push(self, ids):
        return "".join(map(piece, [ids] if isinstance(ids, int) else ids))

    def flush(self):
        return ""


def piece(token):
    letter = chr(ord("A") + token)
    return letter + "-" if token % 7 == 0 else letter
