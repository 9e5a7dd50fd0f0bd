"""A model beside a base's file: which tokens count, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from support.tiny_model import tiny_llama

import rfjax
from rfjax.errors import ModelFormatError, RequestError
from rfjax.evals.kl.against_file import (
    base_codes,
    base_divergences,
    kl_divergence,
    write_kl_base,
)
from rfjax.evals.kl.kl_base_file import reading
from rfjax.evals.perplexity import perplexity
from rfjax.ops.logprob_codes import coded_divergences, encoded
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile

N_CTX = 16
IDS = np.random.default_rng(0).integers(3, 300, 5 * N_CTX + 3).tolist()


@pytest.fixture(scope="module")
def model(tiny_llama_path):
    return rfjax.load(tiny_llama_path)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    return rfjax.load(tiny_llama(path, n_layers=1, seed=1))


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """The model's file, and its perplexity."""
    path = tmp_path_factory.mktemp("base") / "base.kld"
    return path, write_kl_base(model, IDS, path, n_ctx=N_CTX, batch_size=2)


def logits_of_chunks(model):
    """Per chunk the logits that count, and the tokens they are for."""
    forward = jax.jit(rfjax.forward, static_argnames="config")
    for i in range(5):
        row = np.array(IDS[i * N_CTX : (i + 1) * N_CTX], np.int32)
        row[0] = model.tokenizer.bos_id
        logits = forward(model.params, row, config=model.config)
        yield np.asarray(logits)[N_CTX // 2 : -1], row[N_CTX // 2 + 1 :]


def test_the_file_holds_the_text_and_the_codes_of_forward(model, base):
    path, result = base
    expected = perplexity(model, IDS, n_ctx=N_CTX, batch_size=2)
    assert result.running == pytest.approx(expected.running, rel=1e-6)
    assert (result.n_tokens, result.n_chunks, result.n_ctx) == (5 * 7, 5, N_CTX)
    with reading(path) as (header, chunks):
        found = list(chunks)
    # BOS is not in the file: what reads it puts it in.
    assert header.tokens.ravel().tolist() == IDS[: 5 * N_CTX]
    assert header.n_vocab == model.config.vocab_size
    for codes, (logits, _) in zip(found, logits_of_chunks(model), strict=True):
        wanted = np.asarray(encoded(logits))
        apart = np.abs(codes[:, 4:].astype(int) - wanted[:, 4:])
        assert apart.max() <= 2 and (apart > 0).mean() < 0.05


def test_a_model_beside_its_own_file(model, base):
    path, written = base
    found = kl_divergence(model, path)
    summary = found.summary
    assert (found.n_chunks, found.n_ctx, summary.count) == (5, N_CTX, 35)
    assert abs(summary.kld.value) < 1e-5
    assert summary.ppl.value == pytest.approx(written.perplexity, rel=1e-6)
    assert summary.ppl.error == pytest.approx(written.stderr, rel=1e-4)
    assert summary.ppl_base.value == pytest.approx(written.perplexity, rel=1e-3)
    assert summary.same_top.value == 1.0


def test_another_model_chunk_by_chunk(other, base):
    path, _ = base
    told = []
    found = kl_divergence(
        other,
        path,
        batch_size=2,
        on_chunk=lambda done, total, statistics: told.append((done, total, statistics.means())),
    )
    with reading(path) as (_, chunks):
        expected = [
            coded_divergences(np.asarray(codes), logits, wanted)
            for codes, (logits, wanted) in zip(chunks, logits_of_chunks(other), strict=True)
        ]
    for i, (done, total, means) in enumerate(told):
        assert (done, total, means.count) == (i + 1, 5, 7 * (i + 1))
        kld = np.concatenate([each.kld for each in expected[: i + 1]])
        nll = np.concatenate([each.nll for each in expected[: i + 1]])
        assert means.kld.value == pytest.approx(kld.mean(), rel=1e-4)
        assert means.ppl.value == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert found.summary.kld == told[-1][2].kld
    assert found.summary.kld.value > 0.01
    some = kl_divergence(other, path, chunks=2, batch_size=2)
    assert (some.n_chunks, some.summary.count) == (2, 14)
    assert some.summary.kld.value == pytest.approx(told[1][2].kld.value, rel=1e-5)


def test_over_several_devices(tiny_llama_path, base, tmp_path):
    spread = rfjax.load(tiny_llama_path, mesh=make_mesh(data=2, model=2))
    path, written = base
    result = write_kl_base(spread, IDS, tmp_path / "spread.kld", n_ctx=N_CTX, batch_size=2)
    assert result.running == pytest.approx(written.running, rel=1e-5)
    found = kl_divergence(spread, path, batch_size=2).summary
    assert abs(found.kld.value) < 1e-5
    assert found.ppl.value == pytest.approx(written.perplexity, rel=1e-5)


def test_an_interrupted_run_leaves_no_file(model, tmp_path):
    def stop(done, total, sums):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_kl_base(model, IDS, tmp_path / "base.kld", n_ctx=N_CTX, batch_size=2, on_sums=stop)
    assert not list(tmp_path.iterdir())


def test_a_model_that_computes_nan_is_refused(model, base, tmp_path):
    path, _ = base
    broken = dataclasses.replace(
        model, params=jax.tree.map(lambda x: np.full_like(x, np.nan), model.params)
    )
    with pytest.raises(ModelFormatError, match="computes NaN"):
        kl_divergence(broken, path, batch_size=2)
    with pytest.raises(ModelFormatError, match="computes NaN"):
        write_kl_base(broken, IDS, tmp_path / "base.kld", n_ctx=N_CTX, batch_size=2)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_the_file_is_refused(model, base):
    path, _ = base
    smaller = dataclasses.replace(model.config, vocab_size=300)
    with pytest.raises(RequestError, match="only models with the same tokens"):
        kl_divergence(dataclasses.replace(model, config=smaller), path)
    shorter = dataclasses.replace(model.config, context_length=8)
    with pytest.raises(RequestError, match=r"chunks of 16 tokens, and the context of .* holds 8"):
        kl_divergence(dataclasses.replace(model, config=shorter), path)
    for sizes in ({"chunks": 0}, {"batch_size": 0}):
        with pytest.raises(RequestError, match="got 0"):
            kl_divergence(model, path, **sizes)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"n_ctx": 64}, "the text has 83 tokens, and a context of 64 needs at least 128"),
        ({"n_ctx": 3}, "n_ctx: got 3"),
        ({"n_ctx": 257}, "the model's context holds 256"),
        ({"chunks": 0}, "chunks: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_what_cannot_be_written_is_refused(model, tmp_path, sizes, message):
    with pytest.raises(RequestError, match=message):
        write_kl_base(model, IDS, tmp_path / "base.kld", **sizes)
    assert not list(tmp_path.iterdir())


def test_logits_of_all_tokens_are_never_held(model):
    """Neither program has f32 values for every token and every entry of the vocabulary."""
    batch, length, vocab = 64, 128, model.config.vocab_size
    tokens = np.zeros((batch, length), np.int32)
    codes = np.zeros((batch, 63, 4 + vocab + vocab % 2), np.uint16)
    programs = (
        jax.make_jaxpr(lambda p, t: base_codes(p, t, first=64, config=model.config)),
        jax.make_jaxpr(lambda p, t: base_divergences(p, t, codes, first=64, config=model.config)),
    )
    for program in programs:
        text = str(program(model.params, tokens))
        assert f"f32[1024,{vocab}]" in text  # a few rows' logits are there
        assert f"f32[4,1024,{vocab}]" not in text and f"f32[4032,{vocab}]" not in text
