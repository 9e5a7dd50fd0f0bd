"""The engine over a device without arrays: what requests give, alone and among others."""

import dataclasses
import gc
import threading

import pytest
from support.fake_device import expected
from support.fake_runner import SIZES, FakeRunner, Letters, logprob, piece, top_logprobs
from support.pages_check import check_state

from rfjax.engine.engine import Engine
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import CapacityError, ConfigError, RequestError


def make_engine(runner=None, *, sizes=SIZES, tokenizer=None, **settings):
    runner = FakeRunner(sizes) if runner is None else runner
    tokenizer = Letters() if tokenizer is None else tokenizer
    return Engine(runner, sizes, vocab_size=50, tokenizer=tokenizer, **settings)


def submit(engine, name, n_prompt=5, *, deadline=None, priority=0, on_output=None, **params):
    params = SamplingParams(**{"seed": sum(map(ord, name)), "max_tokens": 20, **params})
    prompt = [(sum(map(ord, name)) + i) % 50 for i in range(n_prompt)]
    request = engine.make_request(
        prompt, params, request_id=name, deadline=deadline, priority=priority
    )
    return engine.submit(request, on_output=on_output)


def text_of(tokens):
    return "".join(map(piece, tokens))


def check_at_rest(engine):
    check_state(engine._book.state)
    assert engine.free_pages == tuple(group.n_pages - 1 for group in SIZES.groups)
    assert not engine.has_work
    assert not engine._book.news
    assert not engine._book.state.in_flight
    assert not engine._flying


@pytest.mark.parametrize("depth", [1, 2])
def test_a_requests_tokens_are_those_of_it_alone(depth):
    engine = make_engine(depth=depth)
    handles = [submit(engine, name, n) for name, n in (("a", 1), ("b", 37), ("c", 8), ("d", 20))]
    handles += [submit(engine, "e", 5, n=3, logprobs=2, prompt_logprobs=1)]
    engine.run_until_done()
    for handle in handles:
        output = handle.output()
        assert output.prompt_token_ids == list(handle.request.token_ids)
        for index, sample in enumerate(output.samples):
            tokens, finish = expected(handle.request, index)
            assert sample.token_ids == tokens
            assert sample.finish_reason == finish.reason
            assert sample.text == text_of(tokens)
            start = len(handle.request.token_ids)
            assert sample.logprobs == [logprob(start + i, t) for i, t in enumerate(tokens)]
            if handle.id == "e":
                assert sample.top_logprobs == [top_logprobs(start + i, 2) for i in range(20)]
            else:
                assert sample.top_logprobs is None
    check_at_rest(engine)


def test_a_burst_is_dispatched_before_the_last_is_read():
    runner = FakeRunner()
    engine = make_engine(runner)
    submit(engine, "a", max_tokens=40)
    engine.run_until_done()
    assert runner.calls[:6] == ["dispatch", "dispatch", "read", "dispatch", "read", "dispatch"]
    runner = FakeRunner()
    engine = make_engine(runner, depth=1)
    submit(engine, "a", max_tokens=40)
    engine.run_until_done()
    assert runner.calls[:4] == ["dispatch", "read", "dispatch", "read"]
    with pytest.raises(ConfigError, match="depth: got 3"):
        make_engine(depth=3)


def test_the_pieces_of_steps_streams_and_callbacks_are_the_whole():
    engine, heard = make_engine(), []
    by_step = submit(engine, "a", n=2, logprobs=1)
    called = submit(engine, "b", on_output=heard.append)
    streamed = submit(engine, "c")
    stepped = []
    pieces = list(engine.stream(streamed))
    while engine.has_work:
        stepped += engine.step()
    assert {p.request_id for p in heard} == {"b"}
    assert {p.request_id for p in pieces} == {"c"}
    for handle, given in ((called, heard), (streamed, pieces)):
        (sample,) = handle.output().samples
        assert "".join(p.text for p in given) == sample.text
        assert [t for p in given for t in p.token_ids] == sample.token_ids
        assert [p.finish_reason for p in given[:-1]] == [None] * (len(given) - 1)
    for index, sample in enumerate(by_step.output().samples):
        seconds = [p for p in stepped if (p.request_id, p.sample) == ("a", index)]
        # what the stream's steps gave is gone: a handle has all of it
        assert sample.text.endswith("".join(p.text for p in seconds))


def test_stop_strings_end_a_sequence_across_tokens():
    engine = make_engine()
    plain = submit(engine, "a", max_tokens=40)
    engine.run_until_done()
    text, tokens = plain.output().text, plain.output().token_ids
    stop = text[13:18]
    end = text.index(stop)
    for include in (False, True):
        handle = submit(
            engine, "a", max_tokens=40, stop=("nowhere", stop), include_stop_str_in_output=include
        )
        engine.run_until_done()
        output = handle.output()
        assert output.text == text[: end + (len(stop) if include else 0)]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.token_ids == tokens[: len(output.token_ids)]
        assert len(text_of(output.token_ids)) - len(text[: end + len(stop)]) in (0, 1)
        assert len(output.logprobs) == len(output.token_ids)
    assert engine.metrics.finished["stop"] == 2
    check_at_rest(engine)


def test_stop_tokens_have_a_reason_where_the_user_gave_them():
    class Ending(Letters):
        eog_ids = frozenset()

    engine = make_engine(tokenizer=Ending())
    plain = submit(engine, "a")
    engine.run_until_done()
    stop = plain.output().token_ids[9]
    first = plain.output().token_ids.index(stop)
    ended = submit(engine, "a", stop_token_ids=(stop,))
    engine.run_until_done()
    assert ended.output().stop_reason == stop
    assert ended.output().token_ids == plain.output().token_ids[: first + 1]
    assert ended.output().text == text_of(plain.output().token_ids[:first])
    Ending.eog_ids = frozenset({stop})
    own = submit(engine, "a")
    ignored = submit(engine, "b", ignore_eos=True)
    engine.run_until_done()
    assert (own.output().finish_reason, own.output().stop_reason) == ("stop", None)
    assert own.output().token_ids == ended.output().token_ids
    assert ignored.output().finish_reason == "length"


def test_likelihoods_of_a_prompt_are_those_of_all_its_tokens_but_the_first():
    engine = make_engine()
    handle = submit(engine, "a", 40, prompt_logprobs=2, max_tokens=3)
    one = submit(engine, "b", 1, prompt_logprobs=0, max_tokens=3)
    other = submit(engine, "c", 40, max_tokens=3)
    engine.run_until_done()
    ids = handle.request.token_ids
    assert handle.output().prompt_logprobs == [None] + [
        {ids[at]: logprob(at, ids[at]), **top_logprobs(at, 2)} for at in range(1, 40)
    ]
    assert one.output().prompt_logprobs == [None]
    assert other.output().prompt_logprobs is None


def test_a_sequence_whose_logits_are_nan_ends_alone():
    runner = FakeRunner()
    engine = make_engine(runner)
    runner.nan_after = {"a": 7, "c": 0}
    handles = [submit(engine, name) for name in "abc"]
    engine.run_until_done()
    for handle, n in zip(handles, (7, 20, 0), strict=True):
        output = handle.output()
        assert output.token_ids == expected(handle.request, 0)[0][:n]
        assert output.error == (None if n == 20 else "the model computes NaN")
        assert output.finish_reason == ("length" if n == 20 else "error")
    check_at_rest(engine)


def test_a_token_that_the_tokenizer_lacks_ends_its_request_alone():
    class Small(Letters):
        def push(self, ids):
            if 17 in ids:
                raise RequestError("token id 17 is outside the vocabulary")
            return super().push(ids)

    engine = make_engine(tokenizer=Small())
    handles = [submit(engine, name) for name in "abcdef"]
    engine.run_until_done()
    ends = set()
    for handle in handles:
        tokens, _ = expected(handle.request, 0)
        ends.add(handle.output().finish_reason)
        assert (handle.output().finish_reason == "error") == (17 in tokens)
        assert (handle.output().error is not None) == (17 in tokens)
    assert ends == {"error", "length"}
    check_at_rest(engine)


def test_cancelling_frees_the_pages_at_once_and_leaves_no_trace():
    engine = make_engine()
    handle, other = submit(engine, "a", 30, n=2), submit(engine, "b", 30)
    for _ in range(4):
        engine.step()
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("unknown")
    assert handle.done
    assert [s.finish_reason for s in handle.output().samples] == ["abort", "abort"]
    assert "a" not in engine._book.state.requests
    engine.run_until_done()
    assert other.output().token_ids == expected(other.request, 0)[0]
    check_at_rest(engine)
    assert submit(engine, "a").id == "a"


def test_a_deadline_ends_a_request():
    time = [0.0]
    engine = make_engine(clock=lambda: time[0])
    late, other = submit(engine, "a", deadline=2.0), submit(engine, "b")
    engine.step()
    time[0] = engine.now + 2.0
    engine.run_until_done()
    assert late.output().finish_reason == "deadline"
    assert other.output().finish_reason == "length"
    check_at_rest(engine)


def test_a_full_queue_and_a_taken_name_are_refused_at_submit():
    engine = make_engine()
    handles = [submit(engine, str(i)) for i in range(SIZES.max_queue)]
    with pytest.raises(CapacityError, match="the queue is full"):
        submit(engine, "more")
    engine.step()
    with pytest.raises(RequestError, match="'1' is taken"):
        submit(engine, "1")
    handles.append(submit(engine, "more"))
    engine.run_until_done(handles)
    assert all(handle.output().finish_reason == "length" for handle in handles)
    with pytest.raises(RequestError, match="has not ended"):
        submit(engine, "new").output()


def test_bad_requests_are_refused_before_anything_runs():
    engine = make_engine()
    for prompt, message in (([], "empty"), ([50], "outside"), ("", "empty"), ([1] * 64, "holds")):
        with pytest.raises(RequestError, match=message):
            engine.make_request(prompt)
    engine = Engine(FakeRunner(), SIZES, vocab_size=50)
    with pytest.raises(RequestError, match="no tokenizer, so it cannot read text"):
        engine.make_request("text")
    with pytest.raises(RequestError, match="no tokenizer, so it cannot read stop strings"):
        engine.make_request([1], SamplingParams(stop="x"))
    handle = engine.submit(engine.make_request([1, 2], SamplingParams(seed=1, max_tokens=4)))
    engine.run_until_done()
    assert (handle.output().text, len(handle.output().token_ids)) == ("", 4)


def test_leaving_a_stream_cancels_its_request():
    engine = make_engine()
    other = submit(engine, "b")
    for piece_ in engine.stream(submit(engine, "a", max_tokens=50)):
        assert piece_.finish_reason is None
        break
    gc.collect()
    assert "a" not in engine._book.state.requests
    engine.run_until_done()
    assert other.output().finish_reason == "length"
    check_at_rest(engine)


def test_a_stream_thrown_away_while_the_engine_changes_cancels_later():
    engine = make_engine()
    handle = submit(engine, "a", max_tokens=50)
    stream = engine.stream(handle)
    next(stream)
    with engine._changing:  # as when the garbage collector runs inside a transition
        stream.close()
        assert not handle.done
    engine.step()
    assert handle.output().finish_reason == "abort"
    check_at_rest(engine)


def test_a_callback_may_submit_and_cancel():
    engine, given = make_engine(), []

    def on_output(piece_):
        given.append(piece_.finish_reason)
        if len(given) == 1:
            submit(engine, "b", on_output=on_output)
            engine.cancel("a")

    submit(engine, "a", on_output=on_output)
    engine.run_until_done()
    assert given.count("abort") == given.count("length") == 1
    check_at_rest(engine)


def test_a_callback_that_raises_ends_its_request_alone():
    engine, calls = make_engine(), []

    def on_output(piece_):
        calls.append(piece_)
        raise ValueError("no")

    failing = submit(engine, "a", on_output=on_output, n=2)
    other = submit(engine, "b")
    given = []
    with pytest.raises(ValueError, match="no"):
        while True:
            given += engine.step()
    while engine.has_work:
        given += engine.step()
    assert len(calls) == 1
    for sample in failing.output().samples:
        assert sample.finish_reason == "error"
        assert sample.error == "on_output raised ValueError('no')"
    assert other.output().token_ids == expected(other.request, 0)[0]
    pieces = [p for p in given if p.request_id == "b"]
    assert "".join(p.text for p in pieces) == other.output().text
    check_at_rest(engine)


def test_prefixes_stay_cached_between_requests():
    engine = make_engine()
    for _ in range(2):
        submit(engine, "a", 30)
        engine.run_until_done()
    assert engine.metrics.prefix_hits == 28
    assert engine.metrics.generation_tokens == 40
    assert engine.metrics.finished["length"] == 2
    assert engine.metrics.running == engine.metrics.waiting == 0


def test_memory_is_given_up_and_taken_again():
    runner = FakeRunner()
    engine = make_engine(runner)
    handles = [submit(engine, "a", 30), submit(engine, "b")]
    engine.step()
    engine.release()
    assert runner.lost
    assert engine.free_pages == (SIZES.groups[0].n_pages - 1,)
    engine.run_until_done()
    for handle in handles:
        assert handle.output().token_ids == expected(handle.request, 0)[0]
    check_at_rest(engine)


def test_a_warm_up_that_fails_or_comes_late_loses_no_request():
    """It may leave rows half made anew, so all begin again, as after a failed step."""
    runner = FakeRunner()
    engine = make_engine(runner)
    handle = submit(engine, "a", 9)
    engine.step()
    runner.faults = {len(runner.calls): CapacityError("no room")}
    with pytest.raises(CapacityError, match="no room"):
        engine.warm_up()
    engine.step()
    assert runner.calls[-4:].count("reset") == 1
    assert engine.warm_up(sequences=1, prompt_tokens=5).programs == ()
    engine.release()
    assert engine.warm_up([SamplingParams(n=2)]).programs == ()
    assert runner.calls[-2:] == ["reset", "programs"]
    engine.run_until_done()
    assert handle.output().token_ids == expected(handle.request, 0)[0]
    check_at_rest(engine)


def test_several_threads_submit_cancel_and_step():
    engine = make_engine(sizes=dataclasses.replace(SIZES, max_queue=100))
    done = {}

    def serve(thread):
        for i in range(12):
            name = f"{thread}.{i}"
            handle = submit(engine, name, 3 + i)
            if i % 4 == 3:
                engine.cancel(name)
            engine.run_until_done([handle])
            done[name] = handle

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.run_until_done()
    assert len(done) == 48
    for name, handle in done.items():
        tokens, _ = expected(handle.request, 0)
        output = handle.output()
        assert output.token_ids == tokens[: len(output.token_ids)]
        assert output.finish_reason == ("abort" if int(name.split(".")[1]) % 4 == 3 else "length")
    check_at_rest(engine)
