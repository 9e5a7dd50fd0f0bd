"""The asyncio front: coroutines, their cancellation, failing steps, and a clean end."""

import asyncio
import threading

import pytest
from support.fake_device import expected
from support.fake_runner import SIZES, FakeRunner, Letters
from support.pages_check import check_state

from rfjax.engine.async_engine import AsyncEngine
from rfjax.engine.engine import Engine
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import CapacityError, RequestError


def make_engine(faults=None, pace=0.0):
    runner = FakeRunner(SIZES, faults)
    runner.pace = pace
    return Engine(runner, SIZES, vocab_size=50, tokenizer=Letters())


def params_of(seed, **params):
    return SamplingParams(**{"seed": seed, "max_tokens": 20, **params})


def tokens_of(prompt, params):
    return expected(make_engine().make_request(prompt, params), 0)[0]


def check_at_rest(engine):
    check_state(engine._book.state)
    assert engine.free_pages == tuple(group.n_pages - 1 for group in SIZES.groups)
    assert not engine.has_work
    assert not [t for t in threading.enumerate() if t.name.startswith("rfjax-engine")]


def test_many_coroutines_at_once():
    engine = make_engine()

    async def serve():
        async with AsyncEngine(engine) as front:
            first = [front.generate([i, 2], params_of(i)) for i in range(5)]
            outputs = await asyncio.gather(*first, front.generate("hello", params_of(9, n=2)))
            again = await front.generate([0, 2], params_of(0))  # after the thread was idle
            return outputs, again

    outputs, again = asyncio.run(serve())
    for i, output in enumerate(outputs[:5]):
        assert output.token_ids == tokens_of([i, 2], params_of(i))
    assert outputs[5].prompt == "hello"
    assert len(outputs[5].samples) == 2
    assert again == outputs[0]
    check_at_rest(engine)


def test_streams_give_the_whole_in_pieces():
    engine = make_engine()

    async def read(front, seed):
        return [piece async for piece in front.stream([seed], params_of(seed, max_tokens=30))]

    async def serve():
        async with AsyncEngine(engine) as front:
            return await asyncio.gather(*(read(front, seed) for seed in range(4)))

    for seed, pieces in enumerate(asyncio.run(serve())):
        assert len(pieces) > 2
        tokens = [token for piece in pieces for token in piece.token_ids]
        assert tokens == tokens_of([seed], params_of(seed, max_tokens=30))
        assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
    check_at_rest(engine)


def test_cancelling_a_task_or_leaving_a_stream_cancels_the_request():
    engine = make_engine(pace=0.01)

    async def leave(front):
        async for _ in front.stream([3], params_of(3, max_tokens=60)):
            return

    async def serve():
        async with AsyncEngine(engine) as front:
            long = asyncio.create_task(front.generate([1], params_of(1, max_tokens=60)))
            other = asyncio.create_task(front.generate([2], params_of(2)))
            await leave(front)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(front.generate([4], params_of(4, max_tokens=60)), 0.03)
            return await other

    assert asyncio.run(serve()).token_ids == tokens_of([2], params_of(2))
    assert engine.metrics.finished["abort"] == 3
    check_at_rest(engine)


def test_a_timeout_ends_a_request_with_what_it_has():
    engine = make_engine()

    async def serve():
        async with AsyncEngine(engine) as front:
            return await front.generate([1], params_of(1), timeout=0.0)

    assert asyncio.run(serve()).finish_reason == "deadline"
    check_at_rest(engine)


def test_what_is_refused_is_raised_where_it_is_asked_for():
    async def serve():
        async with AsyncEngine(make_engine()) as front:
            with pytest.raises(RequestError, match="empty"):
                await front.generate([])
            with pytest.raises(RequestError, match="outside"):
                async for _ in front.stream([77]):
                    pass
            calls = [front.generate([i], params_of(i)) for i in range(SIZES.max_queue + 3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(RequestError, match="closed"):
            await front.generate([1])
        return results

    results = asyncio.run(serve())
    refused = [r for r in results if isinstance(r, CapacityError)]
    assert len(results) - len(refused) >= SIZES.max_queue


@pytest.mark.parametrize("at", range(12))
def test_a_failing_step_ends_what_was_under_way_and_nothing_else(at):
    engine = make_engine({at: CapacityError("out of memory")})

    async def serve():
        async with AsyncEngine(engine) as front:
            calls = [front.generate([i], params_of(i)) for i in range(6)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            return results, await front.generate([7], params_of(7))

    results, later = asyncio.run(serve())
    failed = [r for r in results if isinstance(r, CapacityError)]
    assert 1 <= len(failed) <= 4  # the slots
    for i, result in enumerate(results):
        if result not in failed:
            assert result.token_ids == tokens_of([i], params_of(i))
    assert later.token_ids == tokens_of([7], params_of(7))
    check_at_rest(engine)


def test_a_device_that_stays_broken_ends_everything():
    engine = make_engine({at: CapacityError("out of memory") for at in range(40)})

    async def serve():
        async with AsyncEngine(engine) as front:
            calls = [front.generate([i], params_of(i)) for i in range(6)]
            return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(result, CapacityError) for result in asyncio.run(serve()))
    check_at_rest(engine)


def test_closing_ends_what_is_under_way():
    engine = make_engine(pace=0.01)

    async def serve():
        front = AsyncEngine(engine)
        calls = [asyncio.create_task(front.generate([i], params_of(i))) for i in range(3)]
        await asyncio.sleep(0)
        await front.aclose()
        await front.aclose()
        return await asyncio.gather(*calls)

    assert {output.finish_reason for output in asyncio.run(serve())} == {"abort"}
    check_at_rest(engine)


def test_others_may_step_the_engine_meanwhile():
    engine = make_engine()
    request = engine.make_request([40], params_of(40, max_tokens=50))

    async def serve():
        async with AsyncEngine(engine) as front:
            calls = asyncio.gather(*(front.generate([i], params_of(i)) for i in range(5)))
            handle = engine.submit(request)
            await asyncio.to_thread(engine.run_until_done, [handle])
            return handle.output(), await calls

    alone, outputs = asyncio.run(serve())
    assert alone.token_ids == expected(request, 0)[0]
    for i, output in enumerate(outputs):
        assert output.token_ids == tokens_of([i], params_of(i))
    engine.run_until_done()
    check_at_rest(engine)
