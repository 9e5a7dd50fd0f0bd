"""Whatever fails, wherever: pages come back, and tokens are those of an undisturbed engine."""

import dataclasses
import linecache
import sys

import pytest
from support.fake_device import expected
from support.fake_runner import SIZES as LARGER
from support.fake_runner import FakeRunner, Letters
from support.pages_check import check_state

from rfjax.engine.engine import Engine
from rfjax.engine.page_table import CacheGroup
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import CapacityError

SIZES = dataclasses.replace(LARGER, groups=(CacheGroup("full", 22),))
REQUESTS = (
    ("a", 30, {"n": 2, "temperature": 1.0}),
    ("b", 3, {"stop": ("Jai", "ZZ")}),
    ("c", 18, {"logprobs": 1, "prompt_logprobs": 1}),
    ("d", 41, {"max_tokens": 4}),
    ("e", 9, {}),
)
"""Chunked prompts, forks, preemption, stop strings: with two bursts under way."""


def make_engine(faults=None):
    runner = FakeRunner(SIZES, faults)
    return Engine(runner, SIZES, vocab_size=50, tokenizer=Letters()), runner


def submit_all(engine, handles):
    for name, n_prompt, params in REQUESTS:
        params = SamplingParams(**{"seed": ord(name), "max_tokens": 17, **params})
        prompt = [(ord(name) + i) % 50 for i in range(n_prompt)]
        request = engine.make_request(prompt, params, request_id=name)
        handles[name] = engine.submit(request)


def outputs(handles):
    return {name: handle.output() for name, handle in handles.items()}


@pytest.fixture(scope="module")
def undisturbed():
    """What the requests give where nothing fails, and the calls that this takes."""
    engine, runner = make_engine()
    handles = {}
    submit_all(engine, handles)
    engine.run_until_done()
    for handle in handles.values():
        for index, sample in enumerate(handle.output().samples):
            tokens, _ = expected(handle.request, index)
            assert sample.token_ids == tokens[: len(sample.token_ids)]
    assert engine.metrics.preemptions > 0
    assert engine.metrics.finished["stop"] > 0
    return outputs(handles), runner.calls


def check_free(engine):
    check_state(engine._book.state)
    assert engine.free_pages == tuple(group.n_pages - 1 for group in SIZES.groups)


def check_again(engine, wanted):
    """Pages are back, and later requests give the same again."""
    assert not engine.has_work
    check_free(engine)
    handles = {}
    submit_all(engine, handles)
    engine.run_until_done()
    assert outputs(handles) == wanted
    check_free(engine)


ERRORS = (CapacityError("out of memory"), RuntimeError("a failure"), KeyboardInterrupt())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_call_costs_no_page_and_no_token(undisturbed, error):
    wanted, calls = undisturbed
    for at, name in enumerate(calls):
        engine, runner = make_engine({at: error})
        handles, given = {}, []
        submit_all(engine, handles)
        with pytest.raises(type(error)):
            while True:
                given += engine.step()
        assert len(runner.calls) == at + 1
        lost = not (name == "read" and isinstance(error, KeyboardInterrupt))
        if lost:
            check_free(engine)
        while engine.has_work:  # the requests that were under way go on
            given += engine.step()
        assert outputs(handles) == wanted
        assert ("reset" in runner.calls) == lost
        for request_id, output in outputs(handles).items():
            for index, sample in enumerate(output.samples):
                pieces = [p for p in given if (p.request_id, p.sample) == (request_id, index)]
                assert "".join(p.text for p in pieces) == sample.text
        check_again(engine, wanted)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_cancelling_after_a_failing_call_leaves_nothing(undisturbed, error):
    wanted, calls = undisturbed
    for at in range(0, len(calls), 3):
        engine, _ = make_engine({at: error, at + 2: error})
        handles = {}
        for _ in range(2):
            submit_all(engine, handles)
            with pytest.raises(type(error)):
                engine.run_until_done()
            for name in handles:
                engine.cancel(name)
            assert not engine._book.state.live
            check_free(engine)
            engine.step()
        check_again(engine, wanted)


def test_a_reset_that_fails_is_tried_again(undisturbed):
    wanted, _ = undisturbed
    engine, runner = make_engine({5: CapacityError("one"), 6: CapacityError("two")})
    handles = {}
    submit_all(engine, handles)
    for message in ("one", "two"):
        with pytest.raises(CapacityError, match=message):
            engine.run_until_done()
        check_free(engine)
    engine.run_until_done()
    assert runner.calls[5:8] == ["dispatch", "reset", "reset"]
    assert outputs(handles) == wanted


def test_a_stream_that_fails_ends_its_request_and_no_other(undisturbed):
    wanted, _ = undisturbed
    engine, _ = make_engine({6: CapacityError("out of memory")})
    handles = {}
    submit_all(engine, handles)
    with pytest.raises(CapacityError):
        list(engine.stream(handles["a"]))
    engine.run_until_done()
    assert {s.finish_reason for s in handles["a"].output().samples} == {"abort"}
    rest = outputs(handles)
    assert {name: rest[name] for name in "bcde"} == {name: wanted[name] for name in "bcde"}


class Interrupts:
    """Raises KeyboardInterrupt at one line of the engine's own modules, the `at`-th that runs."""

    FILES = (
        *("engine.py", "book.py", "handle.py", "stop.py", "scheduler.py", "scheduler_state.py"),
        *("planner.py", "page_pool.py", "page_table.py", "persistent.py", "sequence.py"),
    )

    def __init__(self, at=None):
        self.at = at
        self.count = 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def call(self, frame, event, _):
        file = frame.f_code.co_filename
        return self.line if "rfjax/engine/" in file and file.endswith(self.FILES) else None

    def line(self, frame, event, _):
        # A real interrupt cannot come between the end of a `with` and the release of its lock,
        # which is what the second event of that line is.
        if event == "line" and not self.text(frame).startswith("with "):
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self.line

    @staticmethod
    def text(frame):
        return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def serve(engine, handles):
    for name, n_prompt, params in REQUESTS[:3]:
        params = SamplingParams(**{"seed": ord(name), "max_tokens": 17, **params})
        prompt = [(ord(name) + i) % 50 for i in range(n_prompt)]
        request = engine.make_request(prompt, params, request_id=name)
        if name not in handles:
            handles[name] = engine.submit(request)
    while engine.has_work:
        engine.step()


def test_an_interrupt_at_any_line_costs_no_page_and_no_token():
    engine, _ = make_engine()
    handles = {}
    with Interrupts() as lines:
        serve(engine, handles)
    wanted, total = outputs(handles), lines.count
    assert total > 3000
    stride = max(1, total // 90)
    for at in [*range(1, 40), *range(40, total, stride)]:
        engine, _ = make_engine()
        handles = {}
        try:
            with Interrupts(at):
                serve(engine, handles)
        except KeyboardInterrupt:
            known = engine._book.state.requests  # what was submitted, if only just so
            handles |= {name: engine._handles[name] for name in known}
            serve(engine, handles)
        assert outputs(handles) == wanted, at
        check_free(engine)
        assert not engine._book.news
