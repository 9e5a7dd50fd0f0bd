"""Speed of a model with random weights, made straight on the device: no file is needed.

python examples/synthetic_speed.py [8b|tiny] prints tokens per second of decoding, prefill and
scoring. Every figure is the median of several runs after one that compiles.
"""

import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.engine.config import EngineConfig
from rfjax.engine.request import make_request
from rfjax.engine.runner import Runner
from rfjax.engine.sampling_params import SamplingParams
from rfjax.evals.perplexity import score
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.params import Params, ParamSpec, param_spec
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope

LAYER = LayerConfig(
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    attention_scale=128**-0.5,
    mask=Mask("causal"),
    rope=Rope("interleaved", 128, 500000.0),
    qk_norm=False,
    activation="silu",
    ffn_dim=14336,
    experts=None,
    biases=frozenset(),
)
LLAMA_8B = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    d_model=4096,
    context_length=8192,
    norm_eps=1e-5,
    layers=(LAYER,) * 32,
    tied_output=False,
    output_bias=False,
    rope_factors=False,
    dtype="bfloat16",
)
TINY = dataclasses.replace(
    LLAMA_8B, vocab_size=1000, d_model=256, layers=(dataclasses.replace(LAYER, ffn_dim=512),) * 2
)
SHAPES = {"8b": LLAMA_8B, "tiny": TINY}


def random_params(config: ModelConfig) -> Params:
    """Normal weights with a deviation of 0.02; norms are ones."""

    def make(index: int, spec: ParamSpec) -> jax.Array:
        if spec.wide:
            return jnp.ones(spec.shape, jnp.float32)
        return normal(jax.random.key(index), spec.shape)

    normal = jax.jit(
        lambda key, shape: jax.random.normal(key, shape, config.dtype) * 0.02, static_argnums=1
    )
    leaves, tree = jax.tree.flatten(param_spec(config))
    return jax.tree.unflatten(tree, [make(i, spec) for i, spec in enumerate(leaves)])


def generation_seconds(
    runner: Runner, config: ModelConfig, batch: int, prompt: int, output: int
) -> tuple[float, float]:
    """Seconds until the first token (prefill), and from there to the last (decode)."""
    request = make_request(
        [1 + i % 500 for i in range(prompt)],
        SamplingParams(max_tokens=output, temperature=0.0),
        vocab_size=config.vocab_size,
        max_context=config.context_length,
        end_ids=frozenset(),
    )
    start = time.perf_counter()
    progresses = runner.run([request] * batch)
    next(progresses)
    first = time.perf_counter()
    for _ in progresses:
        pass
    return first - start, time.perf_counter() - first


def main(shape: str = "8b", repeats: int = 3) -> dict[str, float]:
    config = SHAPES[shape]
    params = random_params(config)
    runner = Runner(params, config, EngineConfig(burst=128))
    rates: dict[str, float] = {}

    def report(name: str, tokens: int, run) -> None:
        start = time.perf_counter()
        run()
        compiled = time.perf_counter() - start
        rates[name] = tokens / statistics.median(run() for _ in range(repeats))
        print(f"{name:28s} {rates[name]:10.1f} tokens/s   (first call {compiled:.1f} s)")

    print(f"{shape} in {config.dtype} on {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    for batch in (1, 8, 32):
        decode = lambda n=batch: generation_seconds(runner, config, n, 1, 129)[1]  # noqa: E731
        report(f"decode 128, batch {batch}", 128 * batch, decode)
    report("prefill 2048", 2048, lambda: generation_seconds(runner, config, 1, 2048, 2)[0])

    scoring = jax.jit(score, static_argnames=("first", "config"))
    for n_ctx, batch in ((512, 4), (2048, 1)):
        rng = np.random.default_rng(0)
        tokens = jnp.asarray(rng.integers(0, config.vocab_size, (batch, n_ctx)), jnp.int32)

        def run(tokens=tokens, n_ctx=n_ctx) -> float:
            start = time.perf_counter()
            jax.block_until_ready(scoring(params, tokens, first=n_ctx // 2, config=config))
            return time.perf_counter() - start

        report(f"score {n_ctx} x {batch}", n_ctx * batch, run)
    return rates


if __name__ == "__main__":
    main(*sys.argv[1:2])
