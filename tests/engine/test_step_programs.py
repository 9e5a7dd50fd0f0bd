"""What is compiled ahead is what is called: nothing is compiled after it, whatever comes."""

import collections
import threading

import jax
import jax.monitoring
import numpy as np
import pytest

import rfjax
from rfjax.engine.buckets import PIECE
from rfjax.engine.cache_plan import plan_cache
from rfjax.engine.config import EngineConfig
from rfjax.engine.engine import Engine
from rfjax.engine.plan_runner import PlanRunner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.step_programs import Expected, Sizes
from rfjax.engine.steps import Made
from rfjax.errors import ConfigError, RequestError

pytestmark = pytest.mark.quick_compile

BIASES = dict.fromkeys(range(9), 1.0)
KINDS = (
    SamplingParams(max_tokens=3, temperature=0.0),
    SamplingParams(max_tokens=3, repetition_penalty=1.2, logit_bias=BIASES),
    SamplingParams(max_tokens=3, n=2, prompt_logprobs=1),
)


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


def make_engine(model, *, burst, ahead=False, slots=2, **settings):
    """A burst of its own, so that no program of another test serves."""
    settings = EngineConfig(burst=burst, mixed_burst=2, max_batch_size=slots, **settings)
    sizes = plan_cache(model.params, model.config, settings).sizes
    runner = PlanRunner(model.params, model.config, sizes, compile_ahead=ahead)
    vocab_size = model.config.vocab_size
    return Engine(runner, sizes, vocab_size=vocab_size, tokenizer=model.tokenizer), runner


def serve(engine, lengths, params):
    for i, n in enumerate(lengths):
        engine.submit(engine.make_request([1 + i, *[5] * (n - 1)], params))
    engine.run_until_done()


class Compilations:
    """Which steps were compiled by which threads since it was last asked."""

    def __init__(self):
        self._noted = []

    def note(self, event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            name = fun_name.removeprefix("jit(").removesuffix(")")
            self._noted.append((name, threading.current_thread().name.partition("_")[0]))

    def new(self):
        noted, self._noted = self._noted, []
        return collections.Counter(noted)


@pytest.fixture
def compilations():
    counted = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counted.note)
    yield counted
    jax.monitoring.unregister_event_duration_listener(counted.note)


def test_requests_compile_nothing_after_a_warm_up(model, compilations):
    engine, _ = make_engine(model, burst=7)
    done = engine.warm_up(KINDS, sequences=2, prompt_tokens=16)
    compiled = compilations.new()
    assert compiled["decode", "rfjax-compile"] == 2
    assert compiled["prefill", "rfjax-compile"] == 2
    assert len({program.name for program in done.programs}) == len(done.programs)
    for lengths in ([3], [16], [7, 9]):
        for kind in KINDS:
            if kind.n == 1 or len(lengths) == 1:
                serve(engine, lengths, kind)
    assert not compilations.new()
    assert engine.warm_up(KINDS, sequences=2, prompt_tokens=16).seconds < done.seconds / 2
    engine.release()
    assert engine.warm_up([KINDS[0]], sequences=1, prompt_tokens=9).programs
    assert not {thread for _, thread in compilations.new()} & {"rfjax-compile"}


def test_a_request_that_comes_meanwhile_waits_for_what_is_being_compiled(model, compilations):
    engine, _ = make_engine(model, burst=8)
    warming = threading.Thread(target=engine.warm_up, kwargs={"sequences": 1, "prompt_tokens": 9})
    warming.start()
    serve(engine, [9], KINDS[0])
    warming.join()
    compiled = [name for name, _ in compilations.new().elements()]
    assert [compiled.count(name) for name in ("prefill", "decode", "open_rows")] == [1, 1, 1]


class Recorder:
    """In the place of the jitted steps: notes which were called, and computes nothing."""

    def __init__(self, runner):
        self.runner, self.named, self.called = runner, runner._programs, set()

    def note(self, program):
        self.called.add(program.name)

    def open_rows(self, rows, tables, at, new):
        self.note(self.named.open_rows(len(at)))
        return rows, tables

    def count_tokens(self, counts, at, prompt, output):
        self.note(self.named.count_tokens(*prompt.shape))
        return counts

    def write_tables(self, tables, columns):
        self.note(self.named.write_tables(len(columns[0][0])))
        return tables

    def copy_pages(self, cache, columns):
        self.note(self.named.copy_pages(len(columns[0][0])))
        return cache

    def prefill(self, params, cache, tables, tokens, *_, config):
        self.note(self.named.prefill(*tokens.shape))
        return cache

    def prefill_reporting(self, params, cache, tables, tokens, *_, n_top, config):
        self.note(self.named.prefill(*tokens.shape, reports=True))
        top = np.zeros((*tokens.shape, n_top))
        values = np.zeros(tokens.shape), top.astype(int), top
        return cache, jax.tree.map(jax.device_put, values)

    def decode(self, params, cache, rows, counts, tables, slots, steps, n_steps, *, n_top, config):
        self.note(self.named.decode(len(slots)))
        shape = (len(slots), int(n_steps))
        made = Made(
            token_ids=np.full(shape, 5),
            logprobs=np.zeros(shape),
            top_ids=np.zeros((*shape, n_top)),
            top_logprobs=np.zeros((*shape, n_top)),
            n_made=np.asarray(steps),
            failed=np.zeros(len(slots), bool),
        )
        return cache, rows, counts, jax.tree.map(jax.device_put, made)


@pytest.mark.parametrize("few_programs", [False, True])
def test_every_program_that_is_called_is_expected(model, few_programs):
    """Whatever the lengths: chunked, cached and preempted prompts, forks and penalties."""
    engine, runner = make_engine(
        model, burst=40, slots=6, token_budget=256, prefill_chunk=128, page_size=16
    )
    runner._rounded = Sizes(runner._sizes, few_programs)
    runner._know_programs()
    recorder = runner._compiled = Recorder(runner)
    rng = np.random.default_rng(1)
    for _ in range(12):
        forked = rng.random() < 0.3
        kind = SamplingParams(
            max_tokens=int(rng.integers(1, 60)),
            ignore_eos=True,
            n=2 if forked else 1,
            repetition_penalty=1.1 if rng.random() < 0.5 else 1.0,
            prompt_logprobs=1 if rng.random() < 0.3 else None,
        )
        lengths = rng.integers(1, rng.choice([8, 60, 190]), 3 if forked else 6)
        serve(engine, lengths, kind)
    expected = Expected(6, 6 * 190, counts=True, forks=True, reports=True)
    programs = [program.name for program in runner._programs.expected(expected)]
    assert len(set(programs)) == len(programs)
    assert recorder.called <= set(programs)
    assert {name.split()[0] for name in recorder.called} == {
        *("open", "count", "write", "copy", "prefill", "decode")
    }


def test_fewer_sequences_and_tokens_take_fewer_programs(model):
    _, runner = make_engine(model, burst=7)
    few = [program.name for program in runner._programs.expected(Expected(1, PIECE))]
    assert few == [
        *("decode of 1 rows", "prefill of 1 x 64 tokens", "prefill of 1 x 32 tokens"),
        *("prefill of 1 x 16 tokens", "open 1 rows", "write 32 pages"),
    ]


def test_programs_of_a_plan_are_compiled_beside_each_other(model, compilations):
    """And each once: the calls find them, those of longer prompts as well."""
    engine, _ = make_engine(model, burst=9, ahead=True, token_budget=80, prefill_chunk=64)
    serve(engine, [9], KINDS[0])
    found = compilations.new()
    assert found["prefill", "rfjax-compile"] == found["decode", "rfjax-compile"] == 1
    assert found["prefill", "MainThread"] == found["decode", "MainThread"] == 0
    serve(engine, [9], KINDS[0])
    assert not compilations.new()
    serve(engine, [150], KINDS[0])  # two chunks of 64, and one of 22
    assert compilations.new()["decode", "MainThread"] == 0


def test_a_failing_compilation_fails_where_it_is_called(model, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("rfjax.engine.steps.decode", failing)
    engine, _ = make_engine(model, burst=11, ahead=True)
    engine.submit(engine.make_request([1, 2, 3], KINDS[0]))
    with pytest.raises(RuntimeError, match="no such instruction"):
        engine.step()
    with pytest.raises(RuntimeError, match="no such instruction"):
        engine.warm_up(sequences=1, prompt_tokens=3)


def test_what_cannot_be_asked_for(model):
    engine, _ = make_engine(model, burst=7)
    for settings in ({"sequences": 0}, {"prompt_tokens": True}, {"threads": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))}: got"):
            engine.warm_up(**{"sequences": 1, "prompt_tokens": 9} | settings)
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.warm_up([SamplingParams(stop_token_ids=[1 << 30])])
