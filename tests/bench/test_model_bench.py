"""Measuring whole models: what is computed, counted and refused. No assertion on speed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rfjax.bench.model_bench
import rfjax.bench.subject
from rfjax.bench.case import Case
from rfjax.bench.model_bench import BenchConfig, bench
from rfjax.bench.roof import Roof
from rfjax.bench.steps import generate, prompt_step
from rfjax.bench.subject import from_file, from_shape
from rfjax.cache.dense import init_cache
from rfjax.engine.compiler_options import compiler_options
from rfjax.errors import ConfigError
from rfjax.models.decoder import forward, project
from rfjax.ops.dispatch import KernelPolicy
from rfjax.quant.qtensor import dequantize_packed

pytestmark = pytest.mark.quick_compile

CASES = (
    Case(n_prompt=24),
    Case(n_gen=4, n_seqs=2),
    Case(n_prompt=5, n_gen=3, n_depth=20),
    Case(n_score=16, n_seqs=2),
)


@pytest.fixture(scope="module")
def subject(tiny_llama_path):
    return from_file(tiny_llama_path)


def test_a_kernel_that_failed_its_self_check_stays_disabled(tiny_llama_path, monkeypatch):
    failed = ("quantized_matvec:Q4_K", "wrong")

    def load(*args, kernels, **kwargs):
        kernels = dataclasses.replace(kernels, disabled=(failed,))
        return rfjax.load(*args, kernels=kernels, selfcheck=False, **kwargs)

    monkeypatch.setattr(rfjax.bench.subject, "load", load)
    kernels = from_file(tiny_llama_path, policy=KernelPolicy("pallas")).config.kernels
    assert kernels == KernelPolicy("pallas", disabled=(failed,))


def test_short_runs_are_repeated_for_a_while_and_not_for_ever(subject, monkeypatch):
    def repeated(config, seconds):
        monkeypatch.setattr(rfjax.bench.model_bench, "_prepare", lambda *_: lambda: (seconds, None))
        (result,) = bench(subject, [Case(n_gen=2)], config=config)
        return len(result.samples_ns)

    assert repeated(BenchConfig(3), 1e-6) == 3
    assert repeated(BenchConfig(3, least_seconds=1.0), 0.125) == 8
    assert repeated(BenchConfig(3, least_seconds=1.0), 1.0) == 3
    assert repeated(BenchConfig(3, least_seconds=1.0), 1e-6) == 200


def test_every_kind_of_case_is_measured(subject):
    runs = []
    results = list(
        bench(
            subject,
            CASES,
            config=BenchConfig(repetitions=2, prompt_chunk=16),
            roof=Roof(1e9, 1e9, "float32"),
            on_run=lambda case, number: runs.append((case.name, number)),
        )
    )
    assert [result.test for result in results] == [case.name for case in CASES]
    assert runs == [(case.name, number) for case in CASES for number in range(3)]
    assert [result.n_tokens for result in results] == [24, 8, 8, 32]
    for result in results:
        assert len(result.samples_ns) == 2
        assert result.avg_ts > 0
        assert result.warmup_s > 0
        assert result.matmul_share is not None
    assert [result.bytes_read > 0 for result in results] == [False, True, False, False]


def test_the_steps_compute_what_the_model_does(subject):
    config, rng = subject.config, np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (2, 9)), jnp.int32)
    cache = init_cache(config.kv_shapes, 2, 64, jnp.dtype(config.dtype))
    run_prompt = jax.jit(prompt_step, static_argnames="config")
    hidden, cache = run_prompt(subject.params, cache, tokens[:, :5], jnp.int32(0), config=config)
    run = jax.jit(forward, static_argnames="config")
    whole = [np.asarray(run(subject.params, row, config=config)) for row in tokens]
    after = jax.jit(project, static_argnames="config")(subject.params, hidden, config=config)
    np.testing.assert_allclose(after, np.stack([row[4] for row in whole]), rtol=1e-4, atol=1e-5)
    logits, _ = jax.jit(generate, static_argnames="config")(
        subject.params, cache, tokens[:, 5:], jnp.int32(5), config=config
    )
    np.testing.assert_allclose(logits, np.stack([row[8] for row in whole]), rtol=1e-4, atol=1e-5)


def test_sizes_are_those_that_llama_bench_counts(subject, tiny_llama_path):
    import gguf

    tensors = gguf.GGUFReader(tiny_llama_path).tensors
    assert subject.stored_bytes == sum(int(tensor.n_bytes) for tensor in tensors)
    assert subject.n_params == sum(int(tensor.n_elements) for tensor in tensors)
    assert subject.bos_id == 1


def test_a_synthetic_model_is_measured(monkeypatch):
    plain = from_shape("tiny:q8_0")
    subject = from_shape("tiny:q8_0", weights="packed", policy=KernelPolicy("xla"))
    assert (plain.weights, subject.weights) == ("dequantized", "packed")
    assert subject.config.kernels.implementation == "xla"
    same = dequantize_packed(subject.params.blk[1].ffn_up.weight)
    np.testing.assert_array_equal(plain.params.blk[1].ffn_up.weight, same)
    assert subject.description == "llama 1.9M Q8_0"
    assert subject.filename == "tiny:q8_0"
    asked = []
    monkeypatch.setattr(
        rfjax.bench.model_bench,
        "compiler_options",
        lambda *, packed: asked.append(packed) or compiler_options(packed=packed),
    )
    (result,) = bench(subject, [Case(n_gen=2)], config=BenchConfig(repetitions=1))
    assert asked and all(asked)  # compiled as `LLM` compiles steps with packed weights
    assert (result.copy_share, result.matmul_share) == (None, None)
    assert result.model_size == subject.stored_bytes


def test_what_cannot_be_measured(subject):
    with pytest.raises(ConfigError, match="tg300 takes a context of 300"):
        bench(subject, [Case(n_gen=300)])
    with pytest.raises(ConfigError, match="repetitions: got 0"):
        BenchConfig(repetitions=0)
    with pytest.raises(ConfigError, match="no type mix"):
        from_shape("tiny:q9")
