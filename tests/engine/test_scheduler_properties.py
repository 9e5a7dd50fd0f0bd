"""Whatever arrives, is cancelled, preempted or lost: outputs and pages are as they should be."""

import collections
import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.fake_device import VOCAB, FakeDevice, expected
from support.pages_check import check_state

from rfjax.engine import scheduler
from rfjax.engine.finish import Failed
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.request import make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler import (
    CacheLost,
    Cancel,
    Received,
    Stopped,
    Submit,
    Tick,
    transition,
)
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.scheduler_state import initial_state
from rfjax.errors import CapacityError

MAX_CONTEXT = 40
FULL = SchedulerConfig(
    groups=(CacheGroup("full", 17),),
    page_size=4,
    max_context=MAX_CONTEXT,
    slots=4,
    token_budget=12,
    prefill_chunk=7,
    burst=6,
    mixed_burst=2,
    max_queue=5,
)
MIXED = dataclasses.replace(
    FULL, groups=(CacheGroup("full", 17), CacheGroup("window", 14, window=6)), page_size=3
)
MIXED = dataclasses.replace(MIXED, groups=(CacheGroup("full", 19), *MIXED.groups[1:]))
NO_PREFIXES = dataclasses.replace(FULL, prefix_caching=False)
MIXED_NO_PREFIXES = dataclasses.replace(MIXED, prefix_caching=False)


class Scheduling(RuleBasedStateMachine):
    """Random events, with up to so many bursts under way while the next is planned."""

    config = FULL
    depth = 1

    def __init__(self):
        super().__init__()
        self.state = initial_state(self.config)
        self.device = FakeDevice(self.config)
        self.now = 0.0
        self.results = collections.deque()
        self.n_submitted = 0
        self.requests = {}
        self.outputs = collections.defaultdict(list)
        self.finished = {}

    def send(self, event):
        before = self.state
        self.state, effects = transition(before, event)
        again, repeated = transition(before, event)  # the old state is what it was
        assert repeated == effects
        assert again.queue == self.state.queue
        assert again.active == self.state.active
        self.now += 1
        for output in effects.outputs:
            key = (output.request.id, output.sample)
            assert key not in self.finished, "a sequence goes on after its end"
            self.outputs[key] += output.token_ids
            assert len(self.outputs[key]) == output.n_output
            if output.finish is not None:
                self.finished[key] = output.finish
        return effects

    @rule(
        shared=st.integers(0, 16),
        own=st.integers(0, 8),
        follows=st.sampled_from([None, None, 1, 2, 3]),
        salt=st.sampled_from(["", "", "other"]),
        max_tokens=st.integers(1, 16),
        n=st.sampled_from([1, 1, 1, 2, 3, 5]),
        stops=st.lists(st.integers(0, VOCAB - 1), max_size=2),
        min_tokens=st.integers(0, 3),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        patience=st.sampled_from([None, None, None, 5, 30]),
        prompt_logprobs=st.sampled_from([None, None, 1]),
    )
    def submit(
        self,
        shared,
        own,
        follows,
        salt,
        max_tokens,
        n,
        stops,
        min_tokens,
        priority,
        patience,
        prompt_logprobs,
    ):
        self.n_submitted += 1
        name = f"r{self.n_submitted}"
        prompt = [1 + i % 5 for i in range(shared)]
        if follows is not None and (earlier := self.requests.get(f"r{self.n_submitted - follows}")):
            prompt = [*earlier.token_ids, *self.outputs[earlier.id, 0]][:28]
        prompt += [(self.n_submitted * 7 + i) % VOCAB for i in range(own)]
        request = make_request(
            prompt or [3],
            SamplingParams(
                n=n,
                max_tokens=max_tokens,
                min_tokens=min(min_tokens, max_tokens),
                stop_token_ids=tuple(stops),
                seed=self.n_submitted,
                prompt_logprobs=prompt_logprobs,
            ),
            vocab_size=VOCAB,
            max_context=MAX_CONTEXT,
            end_ids=frozenset(),
            request_id=name,
            priority=priority,
            arrival=self.now,
            deadline=None if patience is None else self.now + patience,
            cache_salt=salt,
        )
        full = self.state.n_queued == self.config.max_queue
        try:
            self.send(Submit(request))
        except CapacityError:
            assert full
        else:
            assert not full
            self.requests[name] = request

    @rule(break_after=st.sampled_from([None, None, None, 0, 1, 3]))
    def dispatch(self, break_after):
        if len(self.results) > self.depth:
            self.receive()
        plan = self.send(Tick(self.now)).plan
        rows = self.device.run(plan, break_after)
        if rows:
            self.results.append((plan.burst, rows))
        elif self.results:
            self.receive()

    @precondition(lambda self: self.results)
    @rule()
    def receive(self):
        burst, rows = self.results.popleft()
        self.send(Received(burst, rows, self.now))

    @rule(pick=st.integers(0, 3))
    def cancel(self, pick):
        names = list(self.requests)
        if pick < len(names):
            self.send(Cancel(names[-1 - pick], self.now))

    @rule(pick=st.integers(0, 3))
    def stop_one(self, pick):
        live = list(self.state.live)
        if pick < len(live):
            self.send(Stopped(live[pick], Failed("for the test"), self.now))

    @precondition(lambda self: self.n_submitted % 4 == 3)
    @rule()
    def lose(self):
        self.device = FakeDevice(self.config)
        self.send(CacheLost())
        if self.n_submitted % 2:
            self.results.clear()  # or they come nevertheless, and are dropped

    @invariant()
    def all_is_accounted_for(self):
        check_state(self.state)

    def teardown(self):
        ticks = 0
        while self.state.live:
            ticks += 1
            assert ticks < 60 * (1 + len(self.requests)), "somebody starves"
            self.dispatch(None)
        check_state(self.state)
        assert all(pool.n_owned == 0 for pool in self.state.pools)
        assert self.state.free_slots == tuple(range(self.config.slots))
        for name, request in self.requests.items():
            for index in range(request.params.n):
                tokens, finish = expected(request, index)
                ended = self.finished.pop((name, index))
                got = self.outputs[name, index]
                if ended.reason in ("stop", "length"):
                    assert (got, ended) == (tokens, finish)
                else:
                    assert got == tokens[: len(got)]
        assert not self.finished


class MixedScheduling(Scheduling):
    config = MIXED
    depth = 2


class SchedulingWithoutPrefixes(Scheduling):
    config = NO_PREFIXES


class MixedSchedulingWithoutPrefixes(MixedScheduling):
    config = MIXED_NO_PREFIXES


@pytest.mark.parametrize(
    ("machine", "examples"),
    [
        (Scheduling, 60),
        (MixedScheduling, 60),
        (SchedulingWithoutPrefixes, 20),
        (MixedSchedulingWithoutPrefixes, 20),
    ],
)
def test_outputs_and_pages_are_right_whatever_happens(machine, examples, monkeypatch):
    monkeypatch.setattr(scheduler, "NAMED_EVERY", 5)  # pages wait for keys, but not for long
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
