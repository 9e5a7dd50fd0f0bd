"""A device without arrays: it carries out plans, and checks that pages hold what they should.

Where a real device has a token's keys and values, pages hold a hash of all tokens up to it, on
which these depend. The model's next token is a hash of all tokens before it and the seed, so a
sequence's output depends on nothing else. Every read of a
chunk or a first decode step goes through the page tables, as attention's would.
"""

import dataclasses
import itertools

from rfjax.engine.finish import LengthReached, StopToken
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request
from rfjax.engine.scheduler_config import SchedulerConfig

VOCAB = 50
_PRIME = 1_000_003
_MASK = 2**61 - 1


def digest(tokens, seed):
    """Hash of a sequence, to which tokens can be added by `advance`."""
    state = seed + 1
    for token in tokens:
        state = advance(state, token)
    return state


def advance(state, token):
    return (state * _PRIME + token + 7) & _MASK


def next_token(state):
    return (state >> 17) % VOCAB


def expected(request: Request, index: int):
    """Output tokens of a sample computed alone, and why it ends."""
    state = digest(request.token_ids, request.seed_of(index))
    tokens = []
    while True:
        tokens.append(next_token(state))
        state = advance(state, tokens[-1])
        if tokens[-1] in request.stop_ids and len(tokens) > request.params.min_tokens:
            return tokens, StopToken(tokens[-1])
        if len(request.token_ids) + len(tokens) >= request.limit:
            return tokens, LengthReached()


@dataclasses.dataclass
class Row:
    request: Request
    sequence: int
    tokens: list[int]
    hashes: list[int]  # of the tokens up to each
    state: int
    ended: bool = False


class FakeDevice:
    """Memory of every cache group, page tables, and the rows of the decode batch."""

    def __init__(self, config: SchedulerConfig):
        self.config = config
        size = config.page_size
        self.memory = [[None] * (group.n_pages * size) for group in config.groups]
        self.tables = [[[0] * config.max_pages for _ in range(config.slots)] for _ in config.groups]
        self.rows: dict[int, Row] = {}
        self.prompt_logprobs: dict[int, set[int]] = {}

    def run(self, plan: Plan, break_after: int | None = None) -> list[list[int]]:
        """Carry out a plan; tokens of each row. `break_after` ends the burst early."""
        assert plan.n_tokens <= self.config.token_budget
        self._prepare(plan)
        for chunk in plan.prefill:
            assert len(chunk.token_ids) <= self.config.prefill_chunk
            row = self.rows[chunk.slot]
            assert row.sequence == chunk.sequence
            end = chunk.start + len(chunk.token_ids)
            assert tuple(row.tokens[chunk.start : end]) == chunk.token_ids
            assert end < len(row.tokens)
            for position in range(chunk.start, end):
                self._store(chunk.slot, position)
            if chunk.prompt_logprobs is not None:
                self.prompt_logprobs.setdefault(row.sequence, set()).update(range(chunk.start, end))
        for chunk in plan.prefill:
            self._check(chunk.slot, chunk.start, chunk.start + len(chunk.token_ids))
        for memory, copies in zip(self.memory, plan.copies, strict=True):
            size = self.config.page_size
            read = [memory[page * size : (page + 1) * size] for page in copies.sources]
            for page, content in zip(copies.targets, read, strict=True):
                memory[page * size : (page + 1) * size] = content
        return self._decode(plan, break_after)

    def _prepare(self, plan: Plan):
        for opened in plan.opened:
            seed = opened.request.seed_of(opened.index)
            tokens = list(opened.token_ids)
            assert tuple(tokens[: len(opened.request.token_ids)]) == opened.request.token_ids
            hashes = list(itertools.accumulate(tokens, advance, initial=0))[1:]
            self.rows[opened.slot] = Row(
                opened.request, opened.sequence, tokens, hashes, digest(tokens, seed)
            )
            for table in self.tables:
                table[opened.slot] = [0] * self.config.max_pages
        for table, writes in zip(self.tables, plan.writes, strict=True):
            columns = zip(writes.slots, writes.indices, writes.pages, strict=True)
            for slot, index, page in columns:
                assert page != 0
                table[slot][index] = page

    def _decode(self, plan: Plan, break_after: int | None):
        decode = plan.decode
        assert len(set(decode.slots)) == len(decode.slots)
        made: list[list[int]] = [[] for _ in decode.slots]
        n_steps = plan.n_steps if break_after is None else min(break_after, plan.n_steps)
        assert n_steps <= max(self.config.burst, self.config.mixed_burst)
        for step in range(n_steps):
            running = []
            for i, slot in enumerate(decode.slots):
                row = self.rows[slot]
                assert row.sequence == decode.sequences[i]
                if not row.ended and len(made[i]) < decode.steps[i]:
                    running.append((i, slot, row))
                    self._store(slot, len(row.tokens) - 1)
            for i, slot, row in running:
                if step == 0:
                    self._check(slot, len(row.tokens) - 1, len(row.tokens))
                token = next_token(row.state)
                row.state = advance(row.state, token)
                row.tokens.append(token)
                row.hashes.append(advance(row.hashes[-1], token))
                made[i].append(token)
                n_output = len(row.tokens) - len(row.request.token_ids)
                stopped = token in row.request.stop_ids and (
                    n_output > row.request.params.min_tokens
                )
                row.ended = stopped or len(row.tokens) >= row.request.limit
        return made

    def _store(self, slot: int, position: int):
        size, content = self.config.page_size, self.rows[slot].hashes[position]
        for memory, table in zip(self.memory, self.tables, strict=True):
            page = table[slot][position // size]
            assert page != 0, "a write to the null page"
            memory[page * size + position % size] = content

    def _check(self, slot: int, start: int, end: int):
        """Queries at positions `[start, end)` find the sequence's own tokens in every group."""
        size, hashes = self.config.page_size, self.rows[slot].hashes
        for group, memory, table in zip(self.config.groups, self.memory, self.tables, strict=True):
            begin = 0 if group.window is None else max(0, start - group.window + 1)
            for position in range(begin, end):
                page = table[slot][position // size]
                held = memory[page * size + position % size]
                assert held == hashes[position], (slot, position)
