"""One rule of the scheduler at a time; test_scheduler_properties.py has all of them at once."""

import dataclasses

import pytest
from support.fake_device import FakeDevice, expected
from support.pages_check import check_state

from rfjax.engine.finish import Cancelled, DeadlineExceeded, LengthReached, StopString, StopToken
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
from rfjax.engine.sequence import Preempted, Running, token_ids
from rfjax.errors import CapacityError, ConfigError, RequestError

CONFIG = SchedulerConfig(
    groups=(CacheGroup("full", 41),),
    page_size=4,
    max_context=64,
    slots=4,
    token_budget=24,
    prefill_chunk=16,
    burst=8,
    mixed_burst=2,
    max_queue=3,
)


def request(name, prompt, *, stop_ids=(), priority=0, deadline=None, salt="", **params):
    tokens = list(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
    return make_request(
        tokens,
        SamplingParams(seed=1, stop_token_ids=stop_ids, **params),
        vocab_size=100,
        max_context=64,
        end_ids=frozenset(),
        request_id=name,
        priority=priority,
        deadline=deadline,
        cache_salt=salt,
    )


class Engine:
    """Drives the scheduler and a fake device, one burst at a time unless told otherwise."""

    def __init__(self, config=CONFIG):
        self.state = initial_state(config)
        self.device = FakeDevice(config)
        self.outputs = {}
        self.finished = {}

    def send(self, event):
        self.state, effects = transition(self.state, event)
        check_state(self.state)
        for output in effects.outputs:
            key = (output.request.id, output.sample)
            self.outputs.setdefault(key, []).extend(output.token_ids)
            if output.finish is not None:
                self.finished[key] = output.finish
        return effects

    def submit(self, *args, **kwargs):
        made = request(*args, **kwargs)
        self.send(Submit(made))
        return made

    def dispatch(self, now=0.0):
        plan = self.send(Tick(now)).plan
        return plan, Received(plan.burst, self.device.run(plan), now)

    def step(self, now=0.0):
        plan, results = self.dispatch(now)
        self.send(results)
        return plan

    def drain(self):
        plans = []
        while self.state.live:
            plans.append(self.step())
        return plans

    def ids(self, ranks):
        return [self.state.live[number].sequence.request.id for _, number in ranks]


def test_a_request_alone_is_prefilled_in_chunks_and_then_decodes():
    engine = Engine()
    made = engine.submit("a", 40, max_tokens=20)
    plans = engine.drain()
    chunks = [(chunk.start, len(chunk.token_ids)) for plan in plans for chunk in plan.prefill]
    assert chunks == [(0, 16), (16, 16), (32, 7)]
    assert [plan.n_steps for plan in plans] == [0, 0, 2, 8, 8, 2]
    assert (engine.outputs["a", 0], engine.finished["a", 0]) == expected(made, 0)
    assert engine.state.pools[0].n_owned == 0


def test_a_prompt_of_one_token_needs_no_prefill():
    engine = Engine()
    engine.submit("a", 1, max_tokens=1)
    (plan,) = engine.drain()
    assert (plan.prefill, plan.decode.steps) == ((), (1,))


def test_prompts_mix_with_decoding_under_the_token_budget():
    engine = Engine()
    for name in "abc":
        engine.submit(name, [ord(name)] * 17, max_tokens=30)
    plan = engine.step()
    assert [len(chunk.token_ids) for chunk in plan.prefill] == [16, 7]
    assert plan.n_tokens == 24
    plan = engine.step()
    assert plan.decode.slots[0] == 0
    assert [len(chunk.token_ids) for chunk in plan.prefill] == [9, 13]
    assert plan.n_tokens == 24
    assert plan.n_steps == CONFIG.mixed_burst


def test_slots_stay_and_the_lowest_free_one_is_given():
    engine = Engine()
    for name in "abc":
        engine.submit(name, 2, max_tokens=30)
    engine.step()
    engine.send(Cancel("b", 0.0))
    engine.submit("d", 2, max_tokens=30)
    plan = engine.step()
    assert [(opened.slot, opened.request.id) for opened in plan.opened] == [(1, "d")]
    assert sorted(plan.decode.slots) == [0, 1, 2]


def test_a_full_queue_refuses_and_changes_nothing():
    engine = Engine()
    for name in "abc":
        engine.submit(name, 4)
    before = engine.state
    with pytest.raises(CapacityError, match="the queue is full: 3 requests wait"):
        engine.submit("d", 4)
    assert engine.state is before
    engine.step()
    engine.submit("d", 4)


def test_a_taken_id_and_a_sequence_beyond_the_context_are_refused():
    engine = Engine()
    engine.submit("a", 4)
    with pytest.raises(RequestError, match="request id 'a' is taken"):
        engine.submit("a", 4)
    with pytest.raises(RequestError, match="may grow to 65 tokens, and the context holds 64"):
        engine.send(Submit(dataclasses.replace(request("b", 4), limit=65)))


def test_the_queue_goes_by_priority_and_then_by_arrival():
    engine = Engine(dataclasses.replace(CONFIG, slots=1, max_queue=9))
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        engine.submit(name, 2, max_tokens=1, priority=priority)
    opened = [opened.request.id for plan in engine.drain() for opened in plan.opened]
    assert opened == ["d", "b", "a", "c"]


def test_nobody_overtakes_the_head_of_the_queue():
    small = dataclasses.replace(CONFIG, groups=(CacheGroup("full", 17),))
    engine = Engine(small)
    engine.submit("a", [7] * 40, max_tokens=20)
    engine.step()
    engine.submit("b", [8] * 40, max_tokens=1)
    engine.submit("c", [9] * 2, max_tokens=1)
    engine.step()
    assert engine.ids(engine.state.queue) == ["b", "c"]
    engine.drain()
    assert {finish.reason for finish in engine.finished.values()} == {"length"}


def test_short_of_pages_the_last_in_order_is_preempted_and_comes_back_whole():
    small = dataclasses.replace(CONFIG, groups=(CacheGroup("full", 17),), prefix_caching=False)
    engine = Engine(small)
    made = [
        engine.submit(name, [ord(name) % 50] * 12, max_tokens=40, priority=priority)
        for name, priority in (("a", 1), ("b", 0), ("c", 0))
    ]
    preempted = []
    while engine.state.live:
        effects = engine.send(Tick(0.0))
        preempted += [engine.state.live[number].sequence.request.id for number in effects.preempted]
        rows = engine.device.run(effects.plan)
        engine.send(Received(effects.plan.burst, rows, 0.0))
    assert preempted[:2] == ["a", "c"]
    assert "b" not in preempted
    for one in made:
        assert (engine.outputs[one.id, 0], engine.finished[one.id, 0]) == expected(one, 0)


def test_a_cached_prefix_is_not_computed_again_but_for_its_last_token():
    engine = Engine()
    engine.submit("a", 33, max_tokens=4)
    engine.drain()
    n = engine.send(Submit(request("b", 33, max_tokens=4)))
    assert n.plan is None
    effects = engine.send(Tick(0.0))
    assert [admission.n_cached for admission in effects.admissions] == [32]
    assert effects.plan.prefill == ()
    assert effects.plan.opened[0].n_cached == 32
    engine.submit("c", 33, max_tokens=4, salt="other")
    assert [a.n_cached for a in engine.send(Tick(0.0)).admissions] == [0]


def test_output_is_a_prefix_for_what_follows_too():
    engine = Engine()
    first = engine.submit("a", 10, max_tokens=12)
    engine.drain()
    longer = list(first.token_ids) + engine.outputs["a", 0] + [5, 6]
    engine.submit("b", longer, max_tokens=2)
    assert [a.n_cached for a in engine.send(Tick(0.0)).admissions] == [20]


def test_a_long_output_is_known_in_part_while_it_grows():
    config = dataclasses.replace(
        CONFIG, groups=(CacheGroup("full", 600), CacheGroup("window", 600, window=8))
    )
    config = dataclasses.replace(config, max_context=1000, burst=64)
    engine = Engine(config)
    first = request("a", 10, max_tokens=600)
    engine.send(Submit(dataclasses.replace(first, limit=610)))
    engine.step()
    while engine.state.live[0].history.length < 300:
        engine.step()
    history = engine.state.live[0].history
    assert 0 < len(history.keys) < history.length // 4  # the rest waits for keys
    output = engine.outputs["a", 0]
    assert token_ids(first, history) == (*first.token_ids, *output)
    tokens = (*first.token_ids, *output)[:200]
    engine.send(Submit(dataclasses.replace(request("b", 4), token_ids=tokens, limit=210)))
    assert [a.n_cached for a in engine.send(Tick(0.0)).admissions] == [196]


def test_a_page_whose_last_token_is_not_computed_is_not_known():
    engine = Engine()
    first = engine.submit("a", 6, max_tokens=12)
    engine.step()
    assert engine.state.live[0].history.length == 8  # and seven of them are computed
    engine.send(Cancel("a", 0.0))
    engine.submit("b", [*first.token_ids, *engine.outputs["a", 0], 5], max_tokens=2)
    assert [a.n_cached for a in engine.send(Tick(0.0)).admissions] == [4]


def test_samples_share_the_full_pages_of_the_prompt_and_copy_the_partial_one():
    engine = Engine()
    made = engine.submit("a", 11, max_tokens=9, n=3)
    plan = engine.step()
    assert [len(chunk.token_ids) for chunk in plan.prefill] == [10]
    source = engine.device.tables[0][0][2]
    assert plan.copies[0].sources == (source, source)
    assert len({source, *plan.copies[0].targets}) == 3
    assert len(plan.decode.slots) == 3
    tables = [live.tables[0].pages for live in engine.state.live.values()]
    assert len({table[:2] for table in tables}) == 1
    engine.drain()
    for index in range(3):
        assert (engine.outputs["a", index], engine.finished["a", index]) == expected(made, index)


def test_a_sample_without_a_slot_waits_for_its_turn():
    engine = Engine(dataclasses.replace(CONFIG, slots=2))
    made = engine.submit("a", 11, max_tokens=9, n=3)
    engine.step()
    assert engine.state.queue == ((0, 2),)
    engine.drain()
    assert engine.outputs["a", 2] == expected(made, 2)[0]


def test_samples_go_on_when_the_first_ends_before_the_fork():
    engine = Engine()
    made = engine.submit("a", 40, max_tokens=3, n=2)
    engine.step()
    engine.send(Stopped(0, Cancelled(), 0.0))
    engine.drain()
    assert engine.finished["a", 0] == Cancelled()
    assert engine.outputs["a", 1] == expected(made, 1)[0]


def test_prompt_logprobs_are_computed_for_every_token_once_cached_or_not():
    engine = Engine()
    engine.submit("a", 20, max_tokens=1)
    engine.drain()
    engine.submit("b", 20, max_tokens=3, prompt_logprobs=2, n=2)
    plans = engine.drain()
    chunks = [chunk for plan in plans for chunk in plan.prefill]
    assert [(c.start, len(c.token_ids), c.prompt_logprobs) for c in chunks] == [
        (0, 16, 2),
        (16, 3, 2),
    ]


def test_tokens_behind_the_end_are_dropped_when_the_next_burst_runs_already():
    engine = Engine()
    made = engine.submit("a", 5, max_tokens=30)
    tokens, _ = expected(made, 0)
    engine.send(Cancel("a", 0.0))
    stopping = request("b", 5, max_tokens=30, stop_ids=(tokens[1],))
    engine.send(Submit(stopping))
    _, first = engine.dispatch()
    plan, second = engine.dispatch()
    assert plan.decode.slots == (0,)
    engine.send(first)
    assert engine.finished["b", 0] == StopToken(tokens[1])
    assert not engine.state.live
    engine.send(second)
    assert engine.outputs["b", 0] == tokens[: tokens.index(tokens[1]) + 1]


def test_a_burst_that_runs_already_is_heard_after_a_preemption():
    small = dataclasses.replace(CONFIG, groups=(CacheGroup("full", 17),), mixed_burst=8)
    engine = Engine(small)
    made = [engine.submit(name, [ord(name)] * 12, max_tokens=50) for name in "ab"]
    results = []
    while not any(isinstance(live, Preempted) for live in engine.state.live.values()):
        if len(results) > 1:
            engine.send(results.pop(0))
        results.append(engine.dispatch()[1])
    preempted = engine.state.live[1]
    assert isinstance(preempted, Preempted)
    assert preempted.dispatched > preempted.history.length
    for result in results:
        engine.send(result)
    assert engine.state.live[1].history.length == preempted.dispatched
    engine.drain()
    for one in made:
        assert (engine.outputs[one.id, 0], engine.finished[one.id, 0]) == expected(one, 0)


def test_the_length_is_reached_without_another_burst():
    engine = Engine()
    engine.submit("a", 5, max_tokens=2)
    plan, results = engine.dispatch()
    assert plan.decode.steps == (2,)
    following, _ = engine.dispatch()
    assert following.is_empty
    engine.send(results)
    assert engine.finished["a", 0] == LengthReached()


def test_a_deadline_ends_what_waits_and_what_runs():
    engine = Engine(dataclasses.replace(CONFIG, slots=1))
    engine.submit("a", 5, max_tokens=50, deadline=10.0)
    engine.submit("b", 5, max_tokens=1, deadline=8.0)
    engine.submit("c", 5, max_tokens=1, deadline=99.0)
    engine.step(now=1.0)
    engine.step(now=9.0)
    assert engine.finished == {("b", 0): DeadlineExceeded()}
    engine.step(now=10.0)
    assert engine.finished["a", 0] == DeadlineExceeded()
    assert engine.finished["c", 0] == LengthReached()
    assert engine.state.earliest_deadline == 99.0


def test_cancelling_ends_every_sample_and_nothing_twice():
    engine = Engine()
    engine.submit("a", 5, n=3)
    engine.step()
    effects = engine.send(Cancel("a", 0.0))
    assert [output.finish for output in effects.outputs] == [Cancelled()] * 3
    assert engine.send(Cancel("a", 0.0)).outputs == ()
    assert engine.send(Stopped(0, Cancelled(), 0.0)).outputs == ()
    assert engine.state.pools[0].n_owned == 0


def test_a_stop_string_ends_one_sequence():
    engine = Engine()
    engine.submit("a", 5, n=2)
    engine.step()
    engine.send(Stopped(1, StopString("END"), 0.0))
    assert engine.finished == {("a", 1): StopString("END")}
    assert [live.sequence.index for live in engine.state.live.values()] == [0]


def test_a_stop_token_does_not_count_before_min_tokens():
    tokens, _ = expected(request("a", 5, max_tokens=30), 0)
    engine = Engine()
    engine.submit("a", 5, max_tokens=30, stop_ids=(tokens[0],), min_tokens=2)
    engine.drain()
    assert len(engine.outputs["a", 0]) > 2


def test_after_a_lost_cache_all_is_computed_again():
    engine = Engine()
    made = engine.submit("a", 9, max_tokens=20)
    engine.step()
    _, results = engine.dispatch()
    engine.send(CacheLost())
    engine.device = FakeDevice(CONFIG)
    engine.send(results)  # late: not wanted any more
    assert isinstance(engine.state.live[0], Preempted)
    assert len(engine.outputs["a", 0]) == 2
    engine.drain()
    assert engine.outputs["a", 0] == expected(made, 0)[0]


def test_pages_behind_a_window_are_given_back():
    config = dataclasses.replace(
        CONFIG, groups=(CacheGroup("full", 41), CacheGroup("window", 41, window=8))
    )
    engine = Engine(config)
    engine.submit("a", 40, max_tokens=20)
    most = 0
    while engine.state.live:
        engine.step()
        most = max(most, engine.state.pools[1].n_owned)
    assert most <= config.groups[1].most_pages(60, config.longest_step, 4) == 11
    assert engine.state.pools[1].n_idle > 0


def test_the_steps_of_a_burst_fit_the_longest_row():
    engine = Engine()
    engine.submit("a", 2, max_tokens=5)
    engine.step()
    assert isinstance(engine.state.live[0], Running)
    assert engine.step().n_steps == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("burst", 0, r"burst: got 0, expected an integer of at least 1"),
        ("slots", True, r"slots: got True"),
        ("groups", (), r"groups: got none"),
        ("token_budget", 4, r"token_budget: got 4, expected more than slots"),
        ("max_context", 161, r"cache group full: got 41 pages .*, expected at least 42"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **{field: value})
