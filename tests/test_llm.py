"""The LLM class: generation, streaming, chat, perplexity, and what bad input gets."""

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.errors import ConfigError, RequestError, UnsupportedError

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


def test_logprobs_are_those_of_forward(llm):
    output = llm.generate([[1, 270, 300]], GREEDY)[0]
    ids = output.prompt_token_ids + output.token_ids
    forward = jax.jit(rfjax.forward, static_argnames="config")
    logits = np.asarray(
        forward(llm.model.params, np.asarray(ids, np.int32), config=llm.config), np.float64
    )
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = len(output.prompt_token_ids)
    expected = [expected[first - 1 + i, token] for i, token in enumerate(output.token_ids)]
    np.testing.assert_allclose(output.logprobs, expected, atol=1e-4)
    assert output.token_ids == [int(row.argmax()) for row in logits[first - 1 : len(ids) - 1]]


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
    prompt = llm.tokenizer.encode(
        "[user]hi</s>[assistant]", add_special_tokens=False, parse_special=True
    )
    whole = llm.generate([prompt], GREEDY)[0]
    assert "".join(piece.text for piece in pieces) == whole.text


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
    monkeypatch.setattr(llm._runner, "run", lambda requests: pytest.fail("it ran"))
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)


def test_numbers_of_prompts_and_parameters_must_agree(llm):
    with pytest.raises(RequestError, match="2 prompts and 1 sampling parameters"):
        llm.generate(["a", "b"], [GREEDY])


@pytest.mark.parametrize("params", [{"temperature": 0.0}, [None], [{"temperature": 0.0}]])
def test_what_is_no_sampling_parameters_is_refused(llm, params):
    with pytest.raises(RequestError, match=r"expected rfjax\.SamplingParams"):
        llm.generate(["a"], params)


@pytest.mark.parametrize(
    "params",
    [{"stop": "the"}, {"logit_bias": {3: 1.0}}, {"n": 2}, {"logprobs": 2}, {"min_tokens": 1}],
)
def test_what_the_loop_does_not_apply_is_refused_rather_than_ignored(llm, params):
    (name,) = params
    with pytest.raises(UnsupportedError, match=name):
        llm.generate("a", rfjax.SamplingParams(**params))
    with pytest.raises(UnsupportedError, match=name):
        next(iter(llm.stream("a", rfjax.SamplingParams(**params))))


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
