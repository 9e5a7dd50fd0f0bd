"""The LLM class: generation, streaming, chat, perplexity, and what bad input gets."""

import asyncio
import gc
import threading
import weakref

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.engine.async_engine import AsyncEngine
from rfjax.errors import CapacityError, ConfigError, RequestError

pytestmark = pytest.mark.quick_compile

GREEDY = rfjax.SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def llm(tiny_llama_path):
    return rfjax.LLM(tiny_llama_path, compilation_cache=False)


def test_outputs_come_in_the_order_of_the_prompts(llm):
    prompts = ["the other", "a", "in the heat on the ton", "so"]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt_token_ids == llm.tokenizer.encode(prompt)
        assert len(output.token_ids) == len(output.logprobs) <= 12
        assert all(value <= 0 for value in output.logprobs)
        assert output == llm.generate(prompt, GREEDY)[0]


def test_more_prompts_than_a_batch_holds(tiny_llama_path, llm):
    small = rfjax.LLM(
        tiny_llama_path, engine=rfjax.EngineConfig(max_batch_size=2), compilation_cache=False
    )
    prompts = ["the", "a on", "in"]
    assert small.generate(prompts, GREEDY) == llm.generate(prompts, GREEDY)


def test_logprobs_of_output_and_prompt_are_those_of_forward(llm):
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=12, logprobs=3, prompt_logprobs=2)
    prompt = [1, *range(270, 310)]
    output = llm.generate([prompt], params)[0]
    ids = output.prompt_token_ids + output.token_ids
    forward = jax.jit(rfjax.forward, static_argnames="config")
    logits = np.asarray(
        forward(llm.model.params, np.asarray(ids, np.int32), config=llm.config), np.float64
    )
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = len(output.prompt_token_ids)
    own = [expected[first - 1 + i, token] for i, token in enumerate(output.token_ids)]
    np.testing.assert_allclose(output.logprobs, own, atol=1e-4)
    assert output.token_ids == [int(row.argmax()) for row in logits[first - 1 : len(ids) - 1]]

    def best(row, n):
        return {int(i): row[i] for i in np.argsort(-row)[:n]}

    for top, row in zip(output.top_logprobs, expected[first - 1 :], strict=False):
        assert top == pytest.approx(best(row, 3), abs=1e-4)
    assert output.prompt_logprobs[0] is None
    for at in range(1, first):
        wanted = {prompt[at]: expected[at - 1, prompt[at]], **best(expected[at - 1], 2)}
        assert output.prompt_logprobs[at] == pytest.approx(wanted, abs=1e-4)
    plain = llm.generate([prompt], GREEDY)[0]
    assert (plain.token_ids, plain.logprobs) == (output.token_ids, output.logprobs)
    assert plain.top_logprobs is plain.prompt_logprobs is None


def test_samples_of_a_prompt_are_those_of_their_seeds(llm):
    params = rfjax.SamplingParams(temperature=1.2, seed=7, max_tokens=12, n=3)
    (output,) = llm.generate("the other", params)
    assert len({tuple(sample.token_ids) for sample in output.samples}) == 3
    for i, sample in enumerate(output.samples):
        alone = rfjax.SamplingParams(temperature=1.2, seed=7 + i, max_tokens=12)
        assert llm.generate("the other", alone)[0].samples == (sample,)
    assert (output.text, output.token_ids) == (output.samples[0].text, output.samples[0].token_ids)
    pieces = list(llm.stream("the other", params))
    for i, sample in enumerate(output.samples):
        assert "".join(p.text for p in pieces if p.sample == i) == sample.text


def test_a_stop_string_ends_the_output_and_is_left_out_of_its_text(llm):
    params = rfjax.SamplingParams(temperature=1.0, seed=11, max_tokens=40)
    full = llm.generate("the", params)[0]
    stop = full.text[9:12]
    shorter = rfjax.SamplingParams(temperature=1.0, seed=11, max_tokens=40, stop=stop)
    stopped = llm.generate("the", shorter)[0]
    assert stopped.text == full.text[: full.text.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.token_ids == full.token_ids[: len(stopped.token_ids)]
    assert "".join(piece.text for piece in llm.stream("the", shorter)) == stopped.text


def test_more_prompts_than_the_queue_holds(tiny_llama_path, llm):
    small = rfjax.EngineConfig(max_batch_size=2, max_queue=1, burst=8)
    small = rfjax.LLM(tiny_llama_path, engine=small, compilation_cache=False)
    prompts = ["the", "a on", "in", "the other", "so"]
    assert small.generate(prompts, GREEDY) == llm.generate(prompts, GREEDY)


def test_a_warm_up_says_what_it_compiled(llm):
    for params in (GREEDY, [GREEDY], ()):
        done = llm.warm_up(params, sequences=1, prompt_tokens=4, threads=1)
        names = [program.name for program in done.programs]
        assert names[:2] == ["decode of 1 rows", "prefill of 1 x 16 tokens"]
    with pytest.raises(ConfigError, match="sequences: got 0"):
        llm.warm_up(sequences=0)


def test_a_prefix_is_taken_from_the_cache_in_later_calls(llm):
    prompt = "the other in the heat on the ton so it was " * 3
    first = llm.generate(prompt, GREEDY)
    before = llm.engine.metrics.prefix_hits
    assert llm.generate(prompt, GREEDY) == first
    assert llm.engine.metrics.prefix_hits > before


def free_pages(llm):
    return llm.engine.free_pages


@pytest.mark.parametrize("call", ["dispatch", "read"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), "RESOURCE_EXHAUSTED: no room"])
def test_an_interrupted_call_leaves_nothing_behind(llm, monkeypatch, call, error):
    wanted, pages = llm.generate(["the", "other"], GREEDY), free_pages(llm)
    calls = []
    if isinstance(error, str):
        error = jax.errors.JaxRuntimeError(error)

    def failing(function):
        def call(*args):
            calls.append(args)
            if len(calls) > 2:
                raise error
            return function(*args)

        return call

    owner, name = (llm.engine._device, "_dispatch") if call == "dispatch" else (jax, "device_get")
    monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CapacityError
    with pytest.raises(expected):
        llm.generate(["the", "other", "in"], params)
    assert free_pages(llm) == pages
    calls.clear()
    with pytest.raises(expected):
        list(llm.stream("the", params))
    assert free_pages(llm) == pages
    monkeypatch.undo()
    assert llm.generate(["the", "other"], GREEDY) == wanted
    assert not llm.engine.has_work


def test_perplexity_has_the_room_of_the_cache(llm):
    expected = llm.generate("the", GREEDY)
    cache = [weakref.ref(leaf) for leaf in jax.tree.leaves(llm.engine._device._cache)]
    llm.perplexity(list(range(3, 100)), n_ctx=32)
    gc.collect()
    assert not any(reference() for reference in cache)
    assert llm.generate("the", GREEDY) == expected


def test_coroutines_share_the_engine(llm):
    prompts = ["the", "a on", "in", "so"]

    async def serve():
        async with AsyncEngine(llm.engine) as front:
            pieces = [piece async for piece in front.stream("the", GREEDY)]
            return pieces, await asyncio.gather(*(front.generate(p, GREEDY) for p in prompts))

    pieces, outputs = asyncio.run(serve())
    assert outputs == llm.generate(prompts, GREEDY)
    assert "".join(piece.text for piece in pieces) == outputs[0].text


def test_threads_share_an_engine(llm):
    prompts = ["the", "a on", "in", "so"]
    expected = {prompt: llm.generate(prompt, GREEDY) for prompt in prompts}
    found = {}

    def run(prompt):
        found[prompt] = llm.generate(prompt, GREEDY)

    threads = [threading.Thread(target=run, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_the_same_seed_gives_the_same_tokens_whatever_else_runs(llm):
    seeded = rfjax.SamplingParams(temperature=1.5, top_p=0.95, seed=3, max_tokens=12)
    other = rfjax.SamplingParams(temperature=0.9, top_k=3, seed=9, max_tokens=12)
    alone = llm.generate("the", seeded)[0]
    assert llm.generate(["in", "the", "a"], [other, seeded, GREEDY])[1] == alone
    assert llm.generate("the", rfjax.SamplingParams(temperature=1.5, seed=4))[0] != alone


def test_a_stop_token_ends_the_output_and_is_left_out_of_its_text(llm):
    full = llm.generate("the", GREEDY)[0]
    stop = full.token_ids[4]
    first = full.token_ids.index(stop)
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=(stop,))
    stopped = llm.generate("the", params)[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == full.token_ids[: first + 1]
    assert stopped.text == llm.tokenizer.decode(full.token_ids[:first], continuation=True)
    assert full.finish_reason == "length"


def test_the_pieces_of_a_stream_add_up_to_the_whole(llm):
    params = rfjax.SamplingParams(temperature=2.0, seed=5, max_tokens=60)
    whole = llm.generate("the", params)[0]
    pieces = list(llm.stream("the", params))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.token_ids] == whole.token_ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason


def test_output_stops_at_the_end_of_the_context(tiny_llama_path):
    llm = rfjax.LLM(
        tiny_llama_path, engine=rfjax.EngineConfig(max_context=20), compilation_cache=False
    )
    params = rfjax.SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    output = llm.generate([[1, 2, 3]], params)[0]
    assert len(output.token_ids) == 17
    assert output.finish_reason == "length"


def test_chat_goes_through_the_files_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    pieces = list(llm.chat(messages, GREEDY))
    prompt = llm.tokenizer.encode("[user]hi</s>[assistant]", parse_special=True)
    assert prompt[0] == llm.tokenizer.bos_id  # the file asks for it, and its template has none
    whole = llm.generate([prompt], GREEDY)[0]
    assert "".join(piece.text for piece in pieces) == whole.text


def test_chat_takes_another_template_and_ends_as_its_family_does(llm, monkeypatch):
    asked = []

    def stream(prompt, params):
        asked.append((llm.tokenizer.decode(prompt, skip_special_tokens=False), params))
        return iter(())

    monkeypatch.setattr(llm, "stream", stream)
    messages = [{"role": "user", "content": "hi"}]
    mine = rfjax.SamplingParams(stop="x", stop_token_ids=(7,))
    list(llm.chat(messages, mine, template="chatml"))
    list(llm.chat(messages, template="llama2"))
    list(llm.chat(messages, rfjax.SamplingParams(ignore_eos=True), template="chatml"))
    list(llm.chat(messages, template="{{ word }}", template_kwargs={"word": "hello"}))
    texts, params = zip(*asked, strict=True)
    assert texts[0] == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert texts[1] == "<s>[INST] hi [/INST]"
    assert texts[3] == "<s>hello"
    assert [p.stop_strings for p in params] == [("x", "<|im_end|>"), (), (), ()]
    assert params[0].stop_token_ids == (7,)


def test_chat_hides_or_shows_reasoning(llm):
    messages = [{"role": "user", "content": "hi"}]
    template = "{{ messages[0].content }}<think>"
    shown = list(llm.chat(messages, GREEDY, template=template))
    hidden = list(llm.chat(messages, GREEDY, template=template, reasoning="hide"))
    text = "".join(piece.text for piece in shown)
    assert text.startswith("<think>")
    assert [piece.text for piece in hidden] == [""] * len(hidden)
    thought = "".join(piece.reasoning for piece in hidden)
    assert thought == text.removeprefix("<think>").strip()
    with pytest.raises(RequestError, match="expected 'show' or 'hide'"):
        llm.chat(messages, reasoning="mute")


@pytest.mark.parametrize(
    "prompts, message",
    [
        ("", "prompt is empty"),
        ([[]], "prompt is empty"),
        (["fine", ""], "prompt is empty"),
        ("a" * 400, "the context holds 256"),
        ([[100000]], "outside the vocabulary"),
        ([1.7, 2.2], "token ids, which are integers: got"),
        ([[True]], "token ids, which are integers: got"),
        (b"bytes", "token ids, which are integers: got b'bytes'"),
        ([b"bytes"], "token ids, which are integers: got b'bytes'"),
        ([["text", "text"]], "token ids, which are integers: got"),
        ([1, "text"], "token ids, which are integers: got 1"),
        (None, "token ids, which are integers: got None"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(llm, monkeypatch, prompts, message):
    monkeypatch.setattr(llm.engine, "step", lambda: pytest.fail("it ran"))
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)


def test_numbers_of_prompts_and_parameters_must_agree(llm):
    with pytest.raises(RequestError, match="2 prompts and 1 sampling parameters"):
        llm.generate(["a", "b"], [GREEDY])


@pytest.mark.parametrize("params", [{"temperature": 0.0}, [None], [{"temperature": 0.0}]])
def test_what_is_no_sampling_parameters_is_refused(llm, params):
    with pytest.raises(RequestError, match=r"expected rfjax\.SamplingParams"):
        llm.generate(["a"], params)


def test_token_ids_may_be_numpy_arrays(llm):
    ids = [1, 270, 300]
    whole = llm.generate([ids, ids], GREEDY)
    assert llm.generate(np.array([ids, ids]), GREEDY) == whole
    assert llm.generate(np.array(ids), GREEDY) == llm.generate([ids], GREEDY)


def test_a_context_beyond_the_models_is_refused(tiny_llama_path):
    with pytest.raises(ConfigError, match="max_context: got 1000"):
        rfjax.LLM(
            tiny_llama_path, engine=rfjax.EngineConfig(max_context=1000), compilation_cache=False
        )


def test_two_models_live_side_by_side(llm, tmp_path):
    path = tiny_llama(tmp_path / "other.gguf", seed=1, n_layers=1)
    other = rfjax.LLM(path, compilation_cache=False)
    before = llm.generate("the", GREEDY)
    assert other.generate("the", GREEDY) != before
    assert llm.generate("the", GREEDY) == before
