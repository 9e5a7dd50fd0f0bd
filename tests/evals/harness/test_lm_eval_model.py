"""The model class for lm-eval, against the steps of its Hugging Face backend in f64.

The reference follows `lm_eval.models.huggingface.HFLM` 0.4.13 over logits of `rfjax.forward`.
"""

import pathlib
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from support.gguf_files import write_gguf
from support.tiny_model import tiny_llama

import rfjax
from rfjax.errors import ConfigError, RequestError
from rfjax.evals.harness.lm_eval_model import RfjaxLM
from rfjax.evals.loglikelihood import rolling_windows
from rfjax.evals.records.journal import Journal

pytestmark = pytest.mark.quick_compile

LENGTH = 64
BOS, EOS = 1, 2
PAIRS = [
    ("The cat", " sat on the mat"),
    ("The cat sat on ", "the mat"),  # the space goes to the continuation
    ("The cat\n \n", "sat"),
    ("", "Hello there"),
    ("", "<s>Hello"),  # BOS is the context then, not a token to score
    ("<s>Hello", " there"),  # BOS is not doubled
    ("In the end</s>", "x"),
    ("What", "a"),
    ("What", "b"),
    ("long " * 30, "continuation"),
    ("long " * 30, "x " * 20),
    ("x", "y" * LENGTH),  # not one token of the context is left
]
TOO_LONG = [PAIRS.index(pair) for pair in PAIRS[-3:]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tiny_llama(
        tmp_path_factory.mktemp("lm") / "lm.gguf", n_layers=1, context_length=LENGTH, seed=3
    )
    return rfjax.LLM(path, compilation_cache=False)


@pytest.fixture
def lm(llm):
    return RfjaxLM(llm)


@pytest.fixture(scope="module")
def logprobs(llm):
    """f64 [T, V] log-probabilities of what follows each of T tokens."""
    forward = jax.jit(rfjax.forward, static_argnames="config")

    def compute(tokens):
        padded = jnp.asarray(list(tokens) + [0] * (LENGTH - len(tokens)), jnp.int32)
        logits = np.asarray(forward(llm.model.params, padded, config=llm.config), np.float64)
        logits = logits[: len(tokens)]
        peak = logits.max(axis=-1, keepdims=True)
        return logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))

    return compute


def encode(llm, text, special=None):
    special = not text.startswith("<s>") if special is None else special
    return llm.tokenizer.encode(text, add_special_tokens=special, parse_special=True)


def reference(llm, logprobs, context, continuation):
    """(log-probability, greedy) of a pair as HFLM computes it."""
    if not context:
        cont = encode(llm, continuation, special=False)
        ctx, cont = ([BOS], cont) if cont[0] != BOS else (cont[:1], cont[1:])
    else:
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces:
            context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
        ctx, whole = encode(llm, context), encode(llm, context + continuation)
        cont = whole[len(ctx) :]
    inputs = (ctx + cont)[-(LENGTH + 1) :][:-1]
    cont = cont[-len(inputs) :]  # HFLM asserts that all of it fits
    rows = logprobs(inputs)[-len(cont) :]
    return rows[np.arange(len(cont)), cont].sum(), bool((rows.argmax(axis=-1) == cont).all())


def rolling_reference(llm, logprobs, text):
    tokens = encode(llm, text)
    total, done = 0.0, 0
    while done < len(tokens):
        end = min(done + LENGTH, len(tokens))
        inputs = [BOS, *tokens][max(0, end - LENGTH) : end]
        wanted = tokens[done:end]
        total += logprobs(inputs)[-len(wanted) :][np.arange(len(wanted)), wanted].sum()
        done = end
    return total


def generation_reference(llm, logprobs, context, until, n_tokens):
    tokens = encode(llm, context)[-(LENGTH - n_tokens) :]
    out = []
    while len(out) < n_tokens:
        out.append(int(logprobs(tokens + out)[-1].argmax()))
        text = llm.tokenizer.decode(out)
        if out[-1] == EOS or any(stop in text for stop in until):
            break
    text = llm.tokenizer.decode([token for token in out if token != EOS])
    for stop in until:
        text = text.split(stop)[0]
    return text


def instances(kind, arguments, task="t"):
    return [Instance(kind, {}, args, 0, (task, i, 1)) for i, args in enumerate(arguments)]


def test_likelihoods_are_those_of_the_hugging_face_backend(llm, lm, logprobs):
    found = lm.loglikelihood(instances("loglikelihood", PAIRS))
    expected = [reference(llm, logprobs, *pair) for pair in PAIRS]
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], rtol=2e-5)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert all(isinstance(value, float) and isinstance(greedy, bool) for value, greedy in found)
    assert lm.n_truncated == {"t": len(TOO_LONG)}


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory):
    """A model over bytes and one pair of them, without BOS."""

    def write(path, metadata, tensors):
        metadata = {k: v for k, v in metadata.items() if not k.endswith(("bos_token_id", "scores"))}
        n = len(metadata["tokenizer.ggml.tokens"])
        own = ["Ġ", "x", "y", "Ġx", "<eos>"]
        return write_gguf(
            path,
            {
                **metadata,
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": own + [f"unused {i}" for i in range(n - len(own))],
                "tokenizer.ggml.token_type": np.array([1, 1, 1, 1] + [3] * (n - 4), np.int32),
                "tokenizer.ggml.merges": ["Ġ x"],
                "tokenizer.ggml.eos_token_id": 4,
                "tokenizer.ggml.unknown_token_id": 4,
            },
            tensors,
        )

    path = tmp_path_factory.mktemp("lm") / "bytes.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.tiny_model.write_gguf", write)
        tiny_llama(path, n_layers=1, context_length=LENGTH, seed=3)
    return RfjaxLM(rfjax.LLM(path, compilation_cache=False))


@pytest.mark.parametrize("pair", [(" ", "x"), ("  ", "xy"), (" ", " xy x")])
def test_white_space_alone_is_no_context(without_bos, pair):
    """One token of a continuation is all there is of the first pair."""
    lm = without_bos
    assert lm.tok_encode("xy") == [1, 2]
    assert lm.tok_encode(" x") == [3]
    alone, told = lm.loglikelihood(instances("loglikelihood", [("", "".join(pair)), pair]))
    assert told == alone
    assert told[0] < 0


def test_white_space_alone_is_no_context_where_bos_is_left_out(llm):
    lm = RfjaxLM(llm, add_bos_token=False)
    alone, told = lm.loglikelihood(instances("loglikelihood", [("", "  the"), (" ", " the")]))
    assert told == alone


def test_greedy_is_told_from_not_greedy(llm, lm, logprobs):
    likely = int(logprobs(encode(llm, "The cat"))[-1].argmax())
    windows = [(None, encode(llm, "The cat"), [token]) for token in (likely, likely - 1)]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(windows)] == [True, False]


def test_whole_texts_are_scored_in_windows(llm, lm, logprobs):
    texts = ["A", "word " * 12, "many words " * 40, "<s>begun", "x" * (LENGTH - 2)]
    found = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in texts])
    )
    expected = [rolling_reference(llm, logprobs, text) for text in texts]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert lm.n_truncated == {}  # nothing is cut off


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=50), st.integers(1, 20))
def test_the_windows_of_texts_are_those_of_rolling_likelihoods(ids, length):
    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, BOS, length, 1))
    ours = [(one.context, one.tokens) for one in rolling_windows(ids, BOS, length)]
    assert ours == [(tuple(context), tuple(tokens)) for context, tokens in theirs]


def test_a_shorter_context_truncates_earlier(llm, logprobs):
    lm = RfjaxLM(llm, max_length=8)
    ((value, _),) = lm.loglikelihood(instances("loglikelihood", [("a b c d e f g h i", " j")]))
    tokens = encode(llm, "a b c d e f g h i j")
    n = len(tokens) - len(encode(llm, "a b c d e f g h i"))
    rows = logprobs(tokens[-9:-1])[-n:]
    assert value == pytest.approx(rows[np.arange(n), tokens[-n:]].sum(), rel=2e-5)


def test_generations_stop_as_the_hugging_face_backend_stops(llm, lm, logprobs):
    whole = generation_reference(llm, logprobs, "The cat", [], 12)
    stop = next(char for char in whole[2:] if char != "�")
    asked = [
        ("The cat", {"until": [], "max_gen_toks": 12}),
        ("The cat", {"until": stop, "max_gen_toks": 12, "do_sample": False}),
        ("<s>Once", {"until": ["\n\n", "q"], "max_gen_toks": 5, "temperature": 0.0}),
        ("long " * 40, {"until": ["\n"], "max_gen_toks": 10}),
    ]
    found = lm.generate_until(instances("generate_until", asked))
    expected = [
        generation_reference(llm, logprobs, text, list(given["until"]), given["max_gen_toks"])
        for text, given in asked
    ]
    assert found == expected
    assert len(found[1]) < len(found[0])
    assert lm.n_truncated == {"t": 1}


def test_samples_are_drawn_by_place_and_seed(llm):
    given = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = instances("generate_until", [("The cat", given)] * 2)
    first, again, other = (
        RfjaxLM(llm, seed=seed).generate_until(asked) for seed in (1234, 1234, 7)
    )
    assert first == again
    assert first[0] != first[1]
    assert first != other


def test_tokens_and_lengths(llm, lm):
    assert lm.tok_encode("ab", add_special_tokens=False) == encode(llm, "ab", special=False)
    assert lm.tok_encode("ab").count(BOS) == lm.tok_encode("<s>ab").count(BOS) == 1
    assert lm.tok_encode("a b c", left_truncate_len=2) == encode(llm, "a b c")[-2:]
    assert RfjaxLM(llm, add_bos_token=False).tok_encode("ab")[0] != BOS
    assert (lm.max_length, lm.max_gen_toks) == (LENGTH, 256)
    assert (lm.eot_token_id, lm.prefix_token_id) == (EOS, BOS)
    assert RfjaxLM(llm, prefix_token_id=EOS).prefix_token_id == EOS
    assert lm.tokenizer_name == "rfjax__lm.gguf__default"


def test_lm_eval_caches_what_it_is_told(lm):
    told = []

    class Hook:
        def add_partial(self, *what):
            told.append(what)

    lm.set_cache_hook(Hook())
    pair, text = ("The cat", " sat"), ("The cat",)
    generation = ("The cat", {"until": ["\n"], "max_gen_toks": 2})
    expected = [
        ("loglikelihood", pair, *lm.loglikelihood(instances("loglikelihood", [pair]))),
        (
            "loglikelihood_rolling",
            text,
            *lm.loglikelihood_rolling(instances("loglikelihood_rolling", [text])),
        ),
        (
            "generate_until",
            generation,
            *lm.generate_until(instances("generate_until", [generation])),
        ),
    ]
    assert told == expected


def test_a_journal_is_taken_up_without_computing_again(llm, tmp_path, monkeypatch):
    likelihoods = instances("loglikelihood", PAIRS)
    given = {"until": ["\n"], "max_gen_toks": 4}
    generations = instances("generate_until", [("a", given), ("b", given), ("a", given)])

    def run(n=None):
        with Journal.open(tmp_path / "j.jsonl", {"model": 1}) as journal:
            lm = RfjaxLM(llm, journal=journal)
            return (
                lm.loglikelihood(likelihoods[:n]),
                lm.generate_until(generations[:n]),
                len(journal),
                lm.n_truncated,
            )

    run(1)
    whole = run()
    assert whole[2] == len(set(PAIRS)) + 2
    monkeypatch.setattr(rfjax.LLM, "generate", None)

    def score(self, continuations, on_scored=None):
        assert not continuations
        return []

    monkeypatch.setattr("rfjax.evals.scoring.scorer.Scorer.score", score)
    assert run() == whole


def test_progress_is_told(llm):
    told = []
    lm = RfjaxLM(llm, on_progress=lambda *what: told.append(what))
    lm.loglikelihood(instances("loglikelihood", PAIRS[:2]))
    lm.generate_until(instances("generate_until", [("a", {"max_gen_toks": 2})]))
    assert told[-1] == ("generating", 1, 1)
    assert ("scoring", 2, 2) in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "task t, document 0: got the generation settings num_beams, expected"),
        ({"max_gen_toks": LENGTH}, "got 64 tokens to generate, .* room for 64: lower it"),
        ({"do_sample": True, "temperature": -1.0}, "temperature: got -1.0"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(lm, given, message):
    with pytest.raises(RequestError, match=message):
        lm.generate_until(instances("generate_until", [("a", {"max_gen_toks": 2} | given)]))


def test_neutral_settings_of_other_backends_are_no_matter(lm):
    given = {"max_gen_toks": 2, "num_beams": 1, "use_cache": True}
    assert lm.generate_until(instances("generate_until", [("a", given)]))


def test_empty_continuations_are_named(lm, monkeypatch):
    with pytest.raises(RequestError, match="task t, document 0: got an empty continuation"):
        lm.loglikelihood(instances("loglikelihood", [("a", "")]))
    with pytest.raises(RequestError, match=r"the continuation 'b' has no tokens of its own"):
        lm._loglikelihood_tokens([(("a", "b"), [1, 2], [])])


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_lengths_out_of_range_are_refused(llm, length):
    with pytest.raises(ConfigError, match=f"max_length: got {length}, expected 1 to"):
        RfjaxLM(llm, max_length=length)


def test_chats_go_through_the_models_template(llm, lm):
    chat = [{"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(chat) == "[user]Hi</s>[assistant]"
    opened = [*chat, {"role": "assistant", "content": " Well, "}]
    assert lm.apply_chat_template(opened, add_generation_prompt=False).endswith(
        "[assistant] Well, "
    )
    assert lm.chat_template(True) == llm.tokenizer.chat_template
    assert lm.chat_template(False) is None
    assert "<|im_start|>" in lm.chat_template("chatml")
    assert "<|im_start|>user" in lm.apply_chat_template(chat)
    assert lm.tokenizer_name.endswith("__chatml")
    with pytest.raises(RequestError, match="no chat template is named"):
        lm.chat_template("chatlm")


def test_a_message_that_is_not_rendered_cannot_be_continued(llm):
    lm = RfjaxLM(llm, chat_template="{{ messages[0]['role'] }}")
    with pytest.raises(RequestError, match="does not render the last message"):
        lm.apply_chat_template(
            [{"role": "assistant", "content": "Well"}], add_generation_prompt=False
        )


def test_lm_eval_knows_the_class_by_its_name(llm):
    assert get_model("rfjax") is RfjaxLM
    arguments = {"pretrained": llm.model.path, "max_length": 32}
    made = RfjaxLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": "cuda:0"})
    assert made.max_length == 32
    root = pathlib.Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["rfjax"].partition(":")
    assert (module, name) == (RfjaxLM.__module__, RfjaxLM.__name__)
